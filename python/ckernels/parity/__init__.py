"""Compare results with float64 and with PyTorch, and say by what margin they hold.

Importing this package needs NumPy alone. The levels that use PyTorch import it when they run.
"""

from .compare import Report, Verdict, assert_parity, compare
from .trace import Trace, trace_torch

__all__ = ["Report", "Trace", "Verdict", "assert_parity", "compare", "trace_torch"]
