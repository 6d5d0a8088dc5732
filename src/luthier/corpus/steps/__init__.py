"""What can be done to records: each step a small file."""
