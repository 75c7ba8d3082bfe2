"""The probes of an op put together: one verdict, one margin, one line of a table."""

import math
from dataclasses import dataclass, field

import numpy as np

from . import levels
from .compare import Verdict
from .levels import Case

#: Documented ceilings by the dtype of a call, which hold besides the rule and are far looser: of the largest error,
#: relative to the larger of 1 and max|exact|, and of the NMSE.
CEILING = {"float32": 1e-5, "float16": math.inf, "bfloat16": math.inf}
NMSE_CEILING = {"float32": 1e-7, "float16": 1e-6, "bfloat16": 1e-4}

# Worse ones last: the verdict of a case is the worst of its probes.
_ORDER = [
    Verdict.EXACT,
    Verdict.WITHIN_BUDGET,
    Verdict.UNDECIDED,
    Verdict.VACUOUS,
    Verdict.REFERENCE_WRONG,
    Verdict.EXCESS_DRIFT,
    Verdict.STRUCTURAL,
    levels.ERROR,
]


@dataclass
class Tally:
    """What the probes of one op, output, dtype and backend came to."""

    dtype: str
    verdict: str = Verdict.EXACT
    margin: float = 0.0
    worst: object = None  # (report, label) of the worst probe
    error: float = 0.0
    peer_error: float = 0.0
    nmse: float = 0.0
    own: list = field(default_factory=list)  # (max, mean square) relative to the result's size
    peer: list = field(default_factory=list)
    failures: list = field(default_factory=list)
    ulp_counts: np.ndarray | int = 0  # of all probes together
    probes: int = 0
    seconds: float = 0.0

    def add(self, report, probe, ceilings=True):
        """Take in the report of one probe; a pass beyond a documented ceiling is none."""
        label = probe.label
        self.probes += 1
        verdict, reason = report.verdict, report.reason + (f"; {report.where}" if report.where else "")
        if ceilings and report.ok and not probe.is_extreme(self.dtype):
            relative = report.max_abs / max(1.0, report.exact_max)
            if relative > CEILING[self.dtype] or report.nmse > NMSE_CEILING[self.dtype]:
                verdict = Verdict.EXCESS_DRIFT
                reason = f"beyond the documented ceiling: error {relative:.2g}, nmse {report.nmse:.2g}"
        if not verdict.ok:
            self.failures.append(f"{label}: {reason}")
        worse = _ORDER.index(verdict) > _ORDER.index(self.verdict)
        if self.worst is None or worse or (verdict == self.verdict and report.margin > self.margin):
            self.worst = (report, label)
        if worse:
            self.verdict = verdict
        self.margin = max(self.margin, report.margin)
        if not math.isfinite(report.max_abs):
            return
        self.ulp_counts = self.ulp_counts + np.array(report.ulp_counts)
        self.error = max(self.error, report.max_abs)
        self.nmse = max(self.nmse, report.nmse)
        if report.peer_max is not None and report.exact_max:
            self.peer_error = max(self.peer_error, report.peer_max)
            self.own.append((report.max_abs / report.exact_max, (report.rms / report.exact_rms) ** 2))
            self.peer.append((report.peer_max / report.exact_max, (report.peer_rms / report.exact_rms) ** 2))

    def fail(self, exception, label):
        """Take in what a probe raised."""
        self.verdict = levels.ERROR
        self.failures.append(f"{label}: {type(exception).__name__}: {exception}")

    def ratios(self):
        """Our error over the peer's, relative to the result's size, of all probes together: of maximum and of RMS."""
        if not self.peer:
            return None, None
        ours = max(m for m, _ in self.own), math.sqrt(sum(s for _, s in self.own))
        theirs = max(m for m, _ in self.peer), math.sqrt(sum(s for _, s in self.peer))
        return tuple(0.0 if a == 0 else a / b if b else math.inf for a, b in zip(ours, theirs, strict=True))

    def case(self, spec, what, isa, **data):
        """Make the case of all probes together."""
        report, label = self.worst or (None, "")
        note = "; ".join(self.failures[:3]) + (f"; and {len(self.failures) - 3} more" if len(self.failures) > 3 else "")
        measured = report is not None
        of_max, of_rms = self.ratios()
        return Case(
            "ops",
            spec.name,
            what,
            self.dtype,
            isa,
            self.verdict,
            self.margin if measured else None,
            self.error if measured else None,
            self.peer_error if self.peer else None,
            None if of_max is None else max(of_max, of_rms),
            self.nmse if measured else None,
            note,
            self.seconds,
            {
                "probes": self.probes,
                "worst_probe": label,
                "ratio_max": of_max,
                "ratio_rms": of_rms,
                "ulp_counts": np.asarray(self.ulp_counts).tolist() if measured else None,
            }
            | data,
            report,
        )
