"""What a comparison came to: the verdict, the figures, the worst elements, and how they are told."""

import math
from dataclasses import dataclass, field
from enum import StrEnum


class Verdict(StrEnum):
    """What a comparison, or a case of ``ck parity``, came to."""

    EXACT = "EXACT"
    WITHIN_BUDGET = "WITHIN_BUDGET"
    EXCESS_DRIFT = "EXCESS_DRIFT"
    STRUCTURAL = "STRUCTURAL"
    REFERENCE_WRONG = "REFERENCE_WRONG"
    EQUIVALENT_AT_OUTPUT = "EQUIVALENT_AT_OUTPUT"
    VACUOUS = "VACUOUS"
    UNDECIDED = "UNDECIDED"

    @property
    def ok(self):
        """True for the verdicts that pass."""
        return self in (Verdict.EXACT, Verdict.WITHIN_BUDGET, Verdict.EQUIVALENT_AT_OUTPUT)


@dataclass(frozen=True)
class Element:
    """One element of a comparison."""

    index: tuple
    actual: float
    exact: float
    peer: float | None
    error: float
    ulp: float

    def __str__(self):
        place = "[" + ", ".join(map(str, self.index)) + "]" if self.index else "the scalar"
        peer = "" if self.peer is None else f", peer {self.peer:.9g}"
        error = f"error {self.error:.3g} ({self.ulp:.3g} ulp)"
        return f"{place}: actual {self.actual:.9g}, exact {self.exact:.9g}{peer}, {error}"


@dataclass
class Report:
    """The outcome of one comparison.

    Attributes
    ----------
    verdict : Verdict
        What it came to; ``ok`` is true for EXACT and WITHIN_BUDGET alone.
    margin : float
        Error divided by what is allowed, the larger of the two rules (maximum and root mean square): 1 or less passes.
    max_abs, rms : float
        Largest and root mean square of ``actual - exact``.
    ulp : float
        Largest error in units of the last place of ``actual``'s dtype at the exact value.
    nmse : float
        mean((exact - actual)²) / mean(exact²), the plain mean square error where exact is all but zero.
    cosine, correlation : float
        Printed, never decide.
    compared, size : int
        Elements that count as evidence (finite on both sides), and all elements.
    peer_max, peer_rms, ratio_max, ratio_rms : float or None
        The peer's own error, and ours divided by it.
    allowed_max, allowed_rms : float or None
        The two budgets.
    reason : str
        One sentence on why this verdict.
    misplaced : int
        NaN and inf that stand where exact has none, or the reverse.
    ulp_counts : list of int
        How many elements err by how many ulp: by nothing, below 1/4, 1/2, 1, 2, 4, 8, 16, 64, 1024, and by more.
    slices : list of (int, int, float)
        Of a failure: axis, index along it, and the share of the squared error in that slice, where one slice of an axis
        has more than half of it.
    """

    name: str = ""
    verdict: Verdict = Verdict.UNDECIDED
    reason: str = ""
    margin: float = math.nan
    margin_max: float = math.nan
    margin_rms: float = math.nan
    allowed_max: float | None = None
    allowed_rms: float | None = None
    max_abs: float = math.nan
    rms: float = math.nan
    ulp: float = math.nan
    nmse: float = math.nan
    cosine: float = math.nan
    correlation: float = math.nan
    compared: int = 0
    size: int = 0
    shape: tuple = ()
    dtype: str = ""
    peer_max: float | None = None
    peer_rms: float | None = None
    ratio_max: float | None = None
    ratio_rms: float | None = None
    exact_max: float = math.nan
    exact_rms: float = math.nan
    exceeding: int = 0
    where: str = ""
    slices: list = field(default_factory=list)
    ulp_counts: list = field(default_factory=list)
    misplaced: int = 0
    notes: list = field(default_factory=list)
    _worst: list = field(default_factory=list, repr=False)

    @property
    def ok(self):
        """True when the comparison passed."""
        return self.verdict.ok

    @property
    def ratio(self):
        """Our error over the peer's, the larger of maximum and root mean square; None without a peer."""
        return None if self.ratio_max is None else max(self.ratio_max, self.ratio_rms)

    @property
    def needed(self):
        """The smallest ``bound`` that this result passes with, which is no advice to use it; None where none does."""
        return self.max_abs if self.compared and math.isfinite(self.max_abs) and not self.misplaced else None

    def worst(self, count=10):
        """Return the elements with the largest errors, largest first (at most 100 are kept)."""
        return self._worst[:count]

    def to_dict(self):
        """Return the figures as plain Python numbers and strings (for JSON; NaN and inf become None)."""
        result = {}
        for key in self.__dataclass_fields__:
            if key != "_worst":
                value = getattr(self, key)
                result[key] = None if isinstance(value, float) and not math.isfinite(value) else value
        result["verdict"] = str(self.verdict)
        result["shape"] = list(self.shape)
        result["worst"] = [
            {"index": list(e.index), "actual": repr(e.actual), "exact": repr(e.exact), "error": repr(e.error)}
            for e in self.worst(10)
        ]
        return result

    def __str__(self):
        what = f"{self.name + ' ' if self.name else ''}{self.dtype} [{', '.join(map(str, self.shape))}]"
        lines = [f"{self.verdict}: {what}: {self.reason}"]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.slices:
            held = (
                f"{share:.0%} of the squared error at index {index} of axis {axis}"
                for axis, index, share in self.slices
            )
            lines.append(f"  slices: {'; '.join(held)}")
        lines += [f"  {'worst' if i == 0 else '     '} at {e}" for i, e in enumerate(self.worst(3))]
        if self.compared:
            for label, error, allowed, margin, peer, ratio in (
                ("max", self.max_abs, self.allowed_max, self.margin_max, self.peer_max, self.ratio_max),
                ("rms", self.rms, self.allowed_rms, self.margin_rms, self.peer_rms, self.ratio_rms),
            ):
                line = f"  {label} error {error:.3g}"
                if allowed is not None:
                    line += f" of {allowed:.3g} allowed (margin {margin:.3g})"
                if peer is not None:
                    line += f"; the peer's {peer:.3g} (ratio {ratio:.3g})"
                lines.append(line)
            lines.append(
                f"  {self.ulp:.3g} ulp, nmse {self.nmse:.3g}, cosine {self.cosine:.9f}, "
                f"compared {self.compared} of {self.size}, exact up to {self.exact_max:.3g}"
            )
            if not self.ok and self.needed is not None:
                part = f" ({self.needed / self.exact_max:.3g} of the largest)" if self.exact_max else ""
                lines.append(f"  would pass with bound={self.needed:.3g}{part}")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)
