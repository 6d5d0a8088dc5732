"""Documents and tables: files found, unpacked and read."""
