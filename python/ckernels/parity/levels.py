"""What every level of ``ck parity`` shares: the options it gets and the cases it yields.

A level is a module with ``run(options)``, which yields one :class:`Case` for each thing it compared, as soon as it is
known. What cannot be run on this machine (an instruction set, a device, no PyTorch) is a case too, with the verdict
NOT_MEASURED and the reason: it is listed and does not fail. What should have been there and is not is UNMEASURED, and
fails. So does ERROR: the case raised an exception. No two cases of a level have the same name, pass, dtype and ISA.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from .compare import Verdict


class OptionError(ValueError):
    """An option names what does not exist: an op, a preset, a model. ``ck`` prints the text and exits with 4."""


NOT_MEASURED = "NOT_MEASURED"
UNMEASURED = "UNMEASURED"
ERROR = "ERROR"

#: The dtypes that may be asked for.
DTYPES = ("float32", "float16", "bfloat16")

PASSING = frozenset({Verdict.EXACT, Verdict.WITHIN_BUDGET, Verdict.EQUIVALENT_AT_OUTPUT})
FAILING = frozenset({Verdict.EXCESS_DRIFT, Verdict.STRUCTURAL, Verdict.REFERENCE_WRONG, UNMEASURED, ERROR})

#: Levels in the order in which ``ck parity`` runs them: name, module, headline.
LEVELS = {
    "ops": ("ckernels.parity.ops", "level 1: every op, forward and backward, in every dtype, on every instruction set"),
    "layer": ("ckernels.parity.layer", "level 2: the decoder layer, stage by stage, forward and backward"),
    "stages": ("ckernels.parity.stages", "level 3: a real model's layers, stage by stage, forward and backward"),
    "forward": ("ckernels.parity.forward", "level 4: a real model's logits"),
    "train": ("ckernels.parity.train", "level 5: training steps"),
    "invariance": (
        "ckernels.parity.invariance",
        "bits that must be equal: prefill ≡ chunks ≡ decode ≡ forward, any threads, any batch",
    ),
    "kv": ("ckernels.parity.kv", "key-value caches: = is equal bit for bit, a number is error over what is allowed"),
}

#: The headline of level 1 with ``--backends``.
OP_DIFF = "op-diff: every op on each backend against float64, and each backend beside each other"


@dataclass
class Options:
    """What the user asked for. A level reads the fields that concern it.

    ``level`` is the level being run: a module that serves two levels ("invariance" and "kv") tells them apart by it.
    ``backends`` names two or more, with commas between them: "ops" then compares these with each other.
    ``dtype`` may name several with commas between them; :func:`dtypes_of` takes them apart.
    ``progress(text)`` may be called with what is being worked on; ``None`` where nobody looks.
    """

    level: str = "all"
    quick: bool = False
    full: bool = False
    stress: bool = False
    op: str | None = None
    dtype: str | None = None
    isa: str | None = None
    backends: str | None = None
    config: str | None = None
    steps: int | None = None
    optimizer: str | None = None
    lr: float | None = None
    model: str | None = None
    layer: int | None = None
    text: str | None = None
    seed: int = 0
    save: str | None = None
    progress: Callable[[str], None] | None = None

    def tell(self, text):
        """Report progress, where someone looks."""
        if self.progress is not None:
            self.progress(text)


def dtypes_of(options):
    """Return the dtypes asked for, in the order of DTYPES, or None; OptionError where one is none of them."""
    if options.dtype is None:
        return None
    asked = [name.strip() for name in options.dtype.split(",")]
    for name in asked:
        if name not in DTYPES:
            raise OptionError(f"no dtype is called {name!r}; there are {', '.join(DTYPES)}")
    return tuple(name for name in DTYPES if name in asked)


@dataclass
class Case:
    """One thing compared, or the reason why it was not.

    Attributes
    ----------
    level : str
        "ops", "layer", "stages", "forward", "train", "invariance" or "kv".
    name : str
        The op, stage, tensor or property.
    what : str
        Pass and output: "forward", "backward dx", "step 3 weights"...
    dtype, isa : str
        Of the call under test; "" where it has none. A result may have another dtype: see ``report.dtype``.
    verdict : str
        A verdict of :class:`~ckernels.parity.Verdict`, NOT_MEASURED, UNMEASURED or ERROR.
    margin : float or None
        Error over what is allowed.
    error, peer_error : float or None
        Largest error against float64, ours and the peer's.
    ratio : float or None
        Ours over the peer's, the larger of maximum and root mean square.
    nmse : float or None
    note : str
        One line for the reader: the reason of a failure, the inputs of the worst case, extra figures.
    seconds : float
    data : dict
        Further figures by name (KL divergence, loss of both ...): plain numbers and strings.
    report : Report or None
        The whole comparison, for ``--format json`` and for the text of a failure.
    """

    level: str
    name: str
    what: str = ""
    dtype: str = ""
    isa: str = ""
    verdict: str = Verdict.UNDECIDED
    margin: float | None = None
    error: float | None = None
    peer_error: float | None = None
    ratio: float | None = None
    nmse: float | None = None
    note: str = ""
    seconds: float = 0.0
    data: dict = field(default_factory=dict)
    report: object = field(default=None, repr=False, compare=False)

    @property
    def failed(self):
        """True where this case makes the run fail."""
        return self.verdict in FAILING


def _number(value):
    return None if value is None or math.isnan(value) else value


def case_of(level, name, what, report, *, isa="", seconds=0.0, note="", **data):
    """Make the case of one comparison.

    Parameters
    ----------
    level, name, what, isa, note : str
        As in :class:`Case`. Without ``note``, a failure's note is the report's reason.
    report : Report
        What :func:`ckernels.parity.compare` returned.
    seconds : float
        How long it took.
    **data
        Further figures.
    """
    if not note and not report.ok:
        note = report.reason + (f"; {report.where}" if report.where else "")
    return Case(
        level,
        name,
        what,
        report.dtype,
        isa,
        report.verdict,
        _number(report.margin),
        _number(report.max_abs),
        report.peer_max,
        report.ratio,
        _number(report.nmse),
        note,
        seconds,
        data,
        report,
    )


def not_measured(level, name, reason, what="", *, isa="", dtype=""):
    """Make the case of something this machine or installation cannot run."""
    return Case(level, name, what, dtype, isa, NOT_MEASURED, note=reason)


def unmeasured(level, name, reason, what="", *, isa="", dtype=""):
    """Make the case of something that should have been measured and was not. It fails."""
    return Case(level, name, what, dtype, isa, UNMEASURED, note=reason)


def error_case(level, name, exception, what="", *, isa="", dtype=""):
    """Make the case of something that raised. It fails."""
    return Case(level, name, what, dtype, isa, ERROR, note=f"{type(exception).__name__}: {exception}")


def exit_code(cases):
    """Return the exit code of a run: 1 a failure, 3 nothing compared or vacuous, 2 undecided, 0 all within budget."""
    verdicts = [case.verdict for case in cases]
    if any(v in FAILING for v in verdicts):
        return 1
    if Verdict.VACUOUS in verdicts or not any(v in PASSING or v == Verdict.UNDECIDED for v in verdicts):
        return 3
    if Verdict.UNDECIDED in verdicts:
        return 2
    return 0
