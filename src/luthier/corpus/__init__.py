"""Files to clean, split records, with a ledger of every row that was dropped."""
