"""Copies of records: exact, near, of single lines and of passages. Arrays per unit, then one decision over all."""
