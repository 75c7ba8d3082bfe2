"""Compare results with float64 and with PyTorch, and say by what margin they hold.

Importing this package needs NumPy alone. The levels that use PyTorch import it when they run.
"""

from .compare import Report, Verdict, assert_parity, compare

__all__ = ["Report", "Verdict", "assert_parity", "compare"]
