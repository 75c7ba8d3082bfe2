"""Compare results with float64 and with PyTorch, and say by what margin they hold.

Importing this package needs NumPy alone. The levels that use PyTorch import it when they run.
"""

from .compare import Report, Verdict, assert_parity, compare
from .diagnose import Diagnosis, diagnose
from .diff import Diff, diff
from .shrinking import shrink
from .telling import Probe, probe
from .trace import Trace, trace_torch

__all__ = [
    "Diagnosis",
    "Diff",
    "Probe",
    "Report",
    "Trace",
    "Verdict",
    "assert_parity",
    "compare",
    "diagnose",
    "diff",
    "probe",
    "shrink",
    "trace_torch",
]
