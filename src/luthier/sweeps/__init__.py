"""`luthier sweep`: one recipe with other values of some keys, compared on validation rows."""

from luthier.sweeps.run import sweep

__all__ = ["sweep"]
