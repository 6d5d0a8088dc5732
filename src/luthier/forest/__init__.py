"""The token forest: batches in which every distinct token is computed once."""
