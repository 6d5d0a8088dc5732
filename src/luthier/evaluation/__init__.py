"""Evaluation: every arm on the same frozen rows, the statistics of the comparison, the verdict."""
