"""From inputs to a folder of clean, split records with their ledger: in units, resumable, on many machines."""

from luthier.corpus.build.run import prepare_corpus

__all__ = ["prepare_corpus"]
