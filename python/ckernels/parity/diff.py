"""Where two computations part: every stage of a candidate recomputed in float64 from the candidate's own inputs to it.

What is left is the stage's *own* error. What its inputs already had is *inherited*, and is told apart. docs/diagnose.md
walks through it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

import numpy as np

from .alignment import aligned, other_orders
from .arithmetic import Arithmetic, format_of
from .backward import gradient_names
from .equations import Equations, Missing, split, stage_names
from .grafting import Graft, model_parts
from .levels import UNMEASURED
from .settings import ConfigError, Settings
from .verdicts import Verdict

# Kernels of attention make no array of these: a capture computes them for itself; what follows does not come from it.
_CAPTURED = ("scores", "probs", "d_scores", "d_probs")
# The same Jacobian from what such a kernel saved: the sum of probs · d_probs as that of attn · d_attn.
_FLASH = {"d_scores": {"saved": True}}


@dataclass
class StageDiff:
    """One stage of a candidate.

    Attributes
    ----------
    name, layer, stage
        Of the stage; the layer is None outside of layers.
    verdict : str
        Of the stage's own error; UNMEASURED where the candidate does not have it.
    margin : float
        Own error over what rounding allows, 1 or less passes.
    own, inherited, total : float or None
        Relative RMS errors: of the stage alone, of what its inputs brought, and of both; None where it is not known.
    amplification : float or None
        Relative error that the inputs brought into the result, over the largest one that they had.
    own_max, allowed_max : float
        Largest own error, and what is allowed.
    sources : list of str
        The candidate's arrays that the stage was recomputed from.
    through : list of str
        Stages that the candidate does not have and that were computed on the way.
    note : str
    """

    name: str
    verdict: str
    margin: float = math.nan
    own: float | None = None
    inherited: float | None = None
    total: float | None = None
    amplification: float | None = None
    own_max: float = math.nan
    allowed_max: float = math.nan
    sources: list = field(default_factory=list)
    through: list = field(default_factory=list)
    note: str = ""

    @property
    def layer(self):
        """Number of the layer, or None."""
        return split(self.name)[0]

    @property
    def stage(self):
        """Name without the layer."""
        return split(self.name)[1]

    @property
    def diverges(self):
        """True where the stage's own error is more than rounding."""
        return self.verdict in (Verdict.STRUCTURAL, Verdict.EXCESS_DRIFT)

    def __str__(self):
        if self.verdict == UNMEASURED:
            return f"{self.name:24} UNMEASURED    {self.note}"
        figures = [f"{_short(v):>9}" for v in (self.own, self.inherited, self.amplification, self.margin)]
        return f"{self.name:24} {self.verdict:13} {' '.join(figures)}  {self.note}".rstrip()


def _short(value):
    return "-" if value is None or math.isnan(value) else "inf" if math.isinf(value) else f"{value:.2g}"


@dataclass
class Diff:
    """All stages of a candidate, in the order of computation.

    Attributes
    ----------
    stages : list of StageDiff
    format : str
        The number format in which the candidate was taken to compute.
    """

    stages: list
    format: str
    graft: object = field(default=None, repr=False)

    def __getitem__(self, name):
        """The stage of that name."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    @property
    def diverging(self):
        """The stages whose own error is more than rounding, in the order of computation."""
        return [stage for stage in self.stages if stage.diverges]

    @property
    def first(self):
        """The first of them, or None."""
        return next(iter(self.diverging), None)

    @property
    def unmeasured(self):
        """Stages that the candidate does not have and that no later stage was recomputed through."""
        seen = {name for stage in self.stages for name in stage.through}
        return [s for s in self.stages if s.verdict == UNMEASURED and s.name not in seen]

    @property
    def margin(self):
        """The largest margin; NaN where nothing was measured."""
        return max((s.margin for s in self.stages if not math.isnan(s.margin)), default=math.nan)

    @property
    def verdict(self):
        """Of the whole: the first divergence's, VACUOUS where nothing was compared, UNMEASURED where a stage lacks."""
        if self.first:
            return self.first.verdict
        verdicts = [s.verdict for s in self.stages if s.verdict != UNMEASURED]
        if not verdicts or Verdict.VACUOUS in verdicts:
            return Verdict.VACUOUS
        if self.unmeasured:
            return UNMEASURED
        return Verdict.EXACT if all(v == Verdict.EXACT for v in verdicts) else Verdict.WITHIN_BUDGET

    @property
    def exit_code(self):
        """0 within budget, 1 a failure or a missing stage, 3 vacuous."""
        return {Verdict.EXACT: 0, Verdict.WITHIN_BUDGET: 0, Verdict.VACUOUS: 3}.get(self.verdict, 1)

    def summary(self):
        """One or two sentences."""
        measured = [s for s in self.stages if s.verdict != UNMEASURED]
        text = f"{self.verdict}: {len(measured)} stages recomputed in float64 from the candidate's own inputs"
        if self.first:
            first = self.first
            text += f"; {len(self.diverging)} of them differ by more than {self.format} explains. The first is "
            text += f"{first.name}: own error {_short(first.own)} of its size, {_short(first.margin)} times the budget"
        elif measured:
            text += f"; all within what {self.format} explains, worst margin {_short(self.margin)}"
        if self.unmeasured:
            names = [s.name for s in self.unmeasured]
            text += f"; {len(names)} UNMEASURED: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        return text + "."

    def __str__(self):
        heads = [f"{v:>9}" for v in ("own", "inherited", "amplified", "margin")]
        lines = [f"{'stage':24} {'verdict':13} {' '.join(heads)}", *map(str, self.stages), self.summary()]
        return "\n".join(lines)

    def to_dict(self):
        """Plain values, for JSON: NaN and infinity become None."""
        stages = [asdict(s) | {"verdict": str(s.verdict), "layer": s.layer, "stage": s.stage} for s in self.stages]
        for stage in stages:
            stage |= {k: None for k, v in stage.items() if isinstance(v, float) and not math.isfinite(v)}
        return {
            "schema": 1, "tool": "ck.parity.diff", "verdict": str(self.verdict), "format": self.format,
            "first": self.first.name if self.first else None, "exit_code": self.exit_code, "stages": stages,
            "summary": self.summary(),
        }  # fmt: skip


def diff(candidate, model, *, names=None, dtype=None, assume=None, progress=None):
    """Recompute every stage of a candidate in float64 from the candidate's own inputs to that stage.

    Parameters
    ----------
    candidate : Trace
        Stages from any implementation. Those that are not there are UNMEASURED; the next stage is recomputed through
        them.
    model : object or (config, params)
        What the candidate should be: anything with ``config`` and ``params`` by Hugging Face names.
    names : dict or path, optional
        Foreign names: ``{"blk.{i}.attn_norm": "layers.{i}.ln1"}``, or a JSON file with it.
    dtype : str, optional
        In which the candidate computes; told from its arrays unless given.
    assume : list of str, optional
        Hypotheses that are part of the model, by name, as in ``["rope: angles in float32"]``.
    progress : callable, optional
        Called with the name of each stage.

    Returns
    -------
    Diff

    Raises
    ------
    ValueError
        The configuration is not understood, or nothing says how many tokens there are.

    Notes
    -----
    What is allowed is three times the error of a plain computation in the candidate's own dtype plus two ulp, for the
    largest error and for the RMS: the rule of `compare`, the peer's error being the larger of two orders of summation.

    Examples
    --------
    >>> import numpy as np, ckernels as ck
    >>> from ckernels.parity import probes
    >>> model = ck.models.Model(ck.models.configs.single_layer, probes.parameters(ck.models.configs.single_layer))
    >>> trace = model.trace(np.arange(7) * 5)
    >>> diff(trace, model).verdict.ok
    True
    >>> trace.arrays["layers.0.act"] = trace.arrays["layers.0.up"]
    >>> diff(trace, model).first.name
    'layers.0.act'
    """
    graft, notes, refused = grafted(candidate, model, names, dtype, assume)
    expected = _expected(graft, set(graft.given) | set(refused))
    parties, whole = graft.parties(), _whole(graft)
    stages = []
    for name in expected:
        if progress is not None:
            progress(name)
        if name not in graft.given:
            note = refused.get(name, "the candidate does not have it")
            stages.append(StageDiff(name, UNMEASURED, note=note))
            continue
        try:
            stages.append(_stage(graft, name, parties, whole, notes))
        except Missing as reason:
            stages.append(StageDiff(name, UNMEASURED, note=str(reason)))
        for party in parties:  # what is given is not asked for again
            party.values.pop(name, None)
    stages += [
        StageDiff(name, UNMEASURED, note="no stage of this model has that name")
        for name in [*graft.given, *refused]
        if name not in expected
    ]
    return Diff(stages, graft.format, graft)


def grafted(candidate, model, names=None, dtype=None, assume=None):
    """A `Graft` of a trace and a model, with notes and refusals of the alignment."""
    from .hypotheses import edits_named

    config, params = model_parts(model)
    try:
        settings = Settings.of(config)
    except ConfigError as error:
        raise ValueError(f"diff(): {error}") from None
    graft = Graft(config, params, {}, candidate.inputs, "float32")
    given, notes, refused = aligned(candidate, settings, graft.weights, names)
    graft.given = given
    graft.format = dtype or format_of(a for n, a in given.items() if not n.startswith("loss"))
    graft.assume = edits_named(assume or (), graft)
    return graft, notes, refused


def _expected(graft, have):
    """Every stage that a whole trace of this kind has."""
    names = stage_names(graft.settings, graft.weights.__contains__)
    if "x" in graft.inputs:  # a layer by itself
        names = [n for n in names if n.startswith("layers.")]
    gradients = any(split(n)[0] is not None and split(n)[1].startswith("d_") for n in have) or "d_logits" in have
    if "targets" in graft.inputs or "loss" in have:
        names.append("loss")
    if gradients:
        weights = graft.weights.params if any(n.startswith("d_") and n[2:] in graft.weights for n in have) else ()
        listed = gradient_names(graft.settings, weights, names)
        names += [n for n in listed if "x" not in graft.inputs or n != "d_embedding"]
    return names


def _whole(graft):
    """The exact run of the whole model, from the inputs alone."""
    roots = {} if "ids" in graft.inputs or "x" in graft.inputs else {
        n: graft.given[n] for n in ("embedding",) if n in graft.given}  # fmt: skip
    return Equations(graft.settings, graft.weights, Arithmetic(), roots, graft.inputs, graft.assume)


def _stage(graft, name, parties, whole, notes):
    judged, want = graft.judge(name, parties)
    found = np.asarray(graft.given[name]).astype(np.float64)
    note = notes.get(name, "")
    if judged.margin > 1:
        judged, found, order = _reordered(graft, name, parties, judged, found)
        note = "; ".join(filter(None, (note, order)))
    if judged.margin > 1:
        judged, parties, want, fused = _fused(graft, name, parties, judged, want)
        note = "; ".join(filter(None, (note, fused)))
    result = StageDiff(
        name, judged.verdict, judged.margin, judged.relative, own_max=judged.error_max, allowed_max=judged.allowed_max,
        sources=parties[0].sources(name), through=[s for s in parties[0].chain(name) if s != name], note=note,
    )  # fmt: skip
    if judged.odd:
        result.note = f"{judged.odd} NaN or inf out of place; {result.note}".rstrip("; ")
    if result.verdict.ok:
        reason = _shows_nothing(graft, name, parties[0], want, judged)
        if reason:
            result.verdict, result.note = Verdict.VACUOUS, reason
    _inherit(graft, result, whole, want, found)
    return result


def captured(name):
    """The stages between a stage of attention and its operands, which fused kernels never have."""
    index, stage = split(name)
    if index is None or stage not in ("attn", "d_q_rope", "d_k_rope", "d_v", "d_q", "d_k"):
        return frozenset()
    return frozenset(f"layers.{index}.{inner}" for inner in _CAPTURED)


def _fused(graft, name, parties, judged, want):
    """The same stage from the operands of attention, as a fused kernel computes it, where that fits better."""
    if not captured(name):
        return judged, parties, want, ""
    drop = captured(name) & graft.given.keys()
    for edits in ({}, _FLASH) if split(name)[1].startswith("d_") else ({},):
        others = graft.parties(edits, drop)
        try:
            other, value = graft.judge(name, others)
        except Missing:
            break
        if other.margin <= 1:
            return other, others, value, "from the operands of attention, as a fused kernel does"
    return judged, parties, want, ""


def _reordered(graft, name, parties, judged, found):
    """Another order of axes with equal extents that fits, where this one does not."""
    if found.ndim == 4 and len(set(found.shape[1:])) < 3 and not name.startswith("loss"):
        before = graft.given[name]
        for order in other_orders(before):
            graft.given[name] = np.ascontiguousarray(before.transpose(order))
            other, _ = graft.judge(name, parties)
            if other.margin <= 1:
                return other, graft.given[name].astype(np.float64), f"axes {order}"
        graft.given[name] = before
    return judged, found, ""


def _shows_nothing(graft, name, exact, want, judged):
    """Why a pass of this stage proves nothing, or ""."""
    _, stage = split(name)
    if not want.size:
        return "empty"
    if judged.exact_max == 0:
        return "all zero, so an output of zeros would pass"
    if want.size > 1 and np.ptp(want) <= judged.allowed_max and stage != "loss":
        return "one number everywhere, so a constant would pass"
    if stage in ("q_rope", "k_rope"):
        index, kind = split(name)
        plain = kind.replace("_rope", "_norm")
        plain = plain if f"layers.{index}.{plain}" in graft.given else kind.replace("_rope", "")
        try:
            still = exact.at(index, plain)
        except Missing:
            return ""
        if np.abs(still - want).max() <= judged.allowed_max:
            return "equal to its input: these positions do not turn anything"
    return ""


def _inherit(graft, result, whole, want, found):
    """Fill in what came from before: the recomputed stage against the exact run of the whole model."""
    try:
        right = whole(result.name)
    except Missing:
        return
    size = float(np.sqrt(np.mean(right**2))) if right.size else 0.0
    if not size:
        return
    with np.errstate(invalid="ignore"):
        result.inherited = float(np.sqrt(np.mean((want - right) ** 2))) / size
        result.total = float(np.sqrt(np.mean((found - right) ** 2))) / size
    errors = []
    for name in result.sources:
        try:
            source = whole(name)
        except Missing:
            continue
        mean = float(np.sqrt(np.mean(source**2)))
        if mean:
            errors.append(float(np.sqrt(np.mean((np.asarray(graft.given[name], np.float64) - source) ** 2))) / mean)
    largest = max(errors, default=0.0)
    result.amplification = result.inherited / largest if largest else None
