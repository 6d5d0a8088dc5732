"""Synthetic data: records written by a model from seeds, filtered, and marked as synthetic for ever."""
