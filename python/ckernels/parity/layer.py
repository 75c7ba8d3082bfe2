"""Level 2: one decoder layer, forward and backward, stage by stage.

Three parties for every stage: `exact` in float64, transformers in float32, and our layer. A stage that is not there is
UNMEASURED and fails; it is never scored. Ceilings of the documentation hold on top of the rule.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from . import exact, peer, probes
from .compare import Verdict, compare
from .levels import OptionError, case_of, error_case, not_measured, unmeasured

LEVEL = "layer"
CEILING_FORWARD = 1e-4  # of a layer's output and of everything on the way to it
CEILING_GRADIENT = 1e-5  # of gradients of the size that one training step has
CEILING_NMSE = 1e-7

#: Configurations of a run: quick, default, full.
CONFIGS = {"quick": ("tiny",), "default": ("tiny", "gqa", "wide"), "full": ("tiny", "gqa", "wide", "deep", "medium")}

#: Families beside Llama of a quick run; others have all.
QUICK_FAMILIES = ("gemma3_text", "gpt2")


def run(options, *, build=None):
    """Compare our decoder layer with float64 and with transformers.

    Parameters
    ----------
    options : Options
        ``config`` names one preset, or the small one of a family; ``isa`` one instruction set; ``quick`` and ``full``
        choose how many there are.
    build : callable, optional
        ``build(config, params)`` makes the layer under test; ``ck.nn.DecoderLayer`` unless given.

    Yields
    ------
    Case
        One for each stage, gradient of a stage, gradient of a parameter and ``dx``; presets beyond the first are
        condensed to the worst case of each pass, unless ``full``.
    """
    import ckernels as ck
    from ckernels.models import configs, families

    reason = peer.missing()
    if reason:
        yield not_measured(LEVEL, "decoder layer", reason)
        return
    presets = {**configs, **families}
    if options.config is not None and options.config not in presets:
        raise OptionError(f"no preset {options.config!r}; there are {', '.join(presets)}")
    if options.isa is not None and options.isa not in ck.isas():
        yield not_measured(LEVEL, "decoder layer", "this CPU or build does not have it", isa=options.isa)
        return
    if build is None:
        from ckernels.nn import DecoderLayer as build
    size = "quick" if options.quick else "full" if options.full or options.stress else "default"
    names = [options.config] if options.config else CONFIGS[size]
    if not options.config:
        names = [*names, *(QUICK_FAMILIES if options.quick else families)]
    # Stage by stage for the first preset, and for all where somebody wants to see them; else one line a pass.
    runs = [(name, name, None, index == 0 or options.full) for index, name in enumerate(names)]
    if not options.quick and not options.config:
        runs.append(("gqa from 7 and 4095", "gqa", _positions(), options.full))
    with ck.use(options.isa or ck.isa()):
        isa = ck.isa()
        for label, name, positions, listed in runs:
            options.tell(f"layer {label}")
            cases = _cases(label, presets[name], build, options.seed, isa, positions)
            try:
                yield from cases if listed else condense(cases, label)
            except Exception as error:
                yield error_case(LEVEL, label, error, isa=isa)


def condense(cases, label):
    """One case for each pass: the one with the largest margin. What fails or is undecided is listed by itself.

    Parameters
    ----------
    cases : iterable of Case
        They are all run before the first is yielded.
    label : str
        Takes the place of the names.
    """
    cases = list(cases)
    for what in dict.fromkeys(case.what for case in cases):
        same = [case for case in cases if case.what == what]
        fine = [case for case in same if getattr(case.verdict, "ok", False)]
        yield from (case for case in same if case not in fine)
        if fine:
            worst = max(fine, key=lambda case: case.margin or 0.0)
            seconds = sum(case.seconds for case in fine)
            note = f"the worst of {len(fine)}: {worst.name.split(': ')[-1]}"
            yield replace(worst, name=f"{label}: {len(fine)} arrays", note=note, seconds=seconds)


def _positions():
    """A start of its own for each item of the batch, one of them far out."""
    return np.arange(probes.TOKENS) + np.array([[7], [4095]])


def _cases(label, config, build, seed, isa, positions=None):
    """All cases of one configuration."""
    params = probes.layer_parameters(probes.parameters(config, seed))
    x, dy = probes.layer_input(config, seed)
    want = exact.layer(config, params, x, positions=positions, dy=dy)
    # Far from the start transformers' float32 angles are wrong by far more than rounding; the equations in float32 by
    # PyTorch, with tables rounded once, are the stricter peer there. They are also the peer of other families.
    other = (
        peer.layer(config, params, x, dy)
        if positions is None and config.model_type == "llama"
        else exact.layer(config, params, x, positions=positions, dy=dy, dtype="float32")
    )
    start = time.perf_counter()
    under_test = build(config, params)
    got, output = run_layer(under_test, x, dy, positions)
    seconds = time.perf_counter() - start
    if config.learned_positions:
        _without_zero(config, want)
    for what, found, right, beside in _pairs(got, want, other):
        yield judge(LEVEL, f"{label}: {what}", found, right, beside, isa=isa, seconds=seconds)
        seconds = 0.0  # the layer ran once for all stages
    plain, ctx = under_test.forward(x, positions=positions)
    yield _equal(f"{label}: output with and without capture", plain, output, isa)
    dx, grads = under_test.backward(dy, ctx)
    flat = [np.concatenate([np.ravel(array) for array in (run.dx, *run.grads.values())]) for run in (
        exact.Run(dx=dx, grads=grads), got)]  # fmt: skip
    yield _equal(f"{label}: gradients with and without capture", *flat, isa)


def _without_zero(config, want):
    """Leave out the gradient that is 0: without rotation a bias of all keys moves all scores of a query alike."""
    want.grads.pop("self_attn.k_proj.bias", None)


def run_layer(layer, x, dy, positions=None):
    """Run a layer forward and backward with capture; returns what it leaves behind as a `Run`, and its output."""
    stages, gradients = {}, {}
    output, ctx = layer.forward(x, positions=positions, stages=stages)
    dx, grads = layer.backward(dy, ctx, stages=gradients)
    return exact.Run(stages=stages | gradients, grads=dict(grads), dx=dx), output


def _equal(name, got, want, isa):
    """The case of two arrays that must have the same bits."""
    return case_of(LEVEL, name, "bits", compare(got, want, bitwise=True, name=name), isa=isa)


def _pairs(got, want, other):
    """Every stage, gradient of a stage, gradient of a parameter and dx: name, ours or None, exact, peer."""
    for name, right in want.stages.items():
        yield name, got.stages.get(name), right, other.stages[name]
    yield "dx", got.dx, want.dx, other.dx
    for name, right in want.grads.items():
        yield f"d_{name}", got.grads.get(name), right, other.grads[name]


def judge(level, name, found, right, beside, *, isa="", seconds=0.0):
    """Make the case of one array: the three-party rule, then the ceilings.

    Parameters
    ----------
    level, name, isa, seconds
        As in `Case`; a name whose last word begins with "d" and names a gradient is a backward one.
    found : array or None
        Ours; None is UNMEASURED.
    right, beside : array
        Exact and the peer's.
    """
    backward = name.split(": ")[-1].startswith(("d_", "dx"))
    what = "backward" if backward else "forward"
    if found is None:
        return unmeasured(level, name, "the layer gave no such array", what, isa=isa)
    found = np.asarray(found)
    if found.shape != right.shape:
        return unmeasured(level, name, f"shape {found.shape} instead of {right.shape}", what, isa=isa)
    report = compare(found, right, beside, name=name)
    case = case_of(level, name, what, report, isa=isa, seconds=seconds)
    ceiling = CEILING_GRADIENT if backward else CEILING_FORWARD
    # The ceilings are stated for values of order one. The rows of tiny RMS make dx some 300 times larger than that;
    # what is larger than one is held to the same number of digits.
    return under_ceiling(case, ceiling * max(1.0, report.exact_max), CEILING_NMSE)


def under_ceiling(case, largest, nmse=None):
    """Turn a pass into EXCESS_DRIFT where a documented ceiling does not hold.

    Parameters
    ----------
    case : Case
        What the three-party rule came to; it is changed in place and returned.
    largest : float
        Of the largest error.
    nmse : float, optional
        Of the normalised mean square error.
    """
    if not getattr(case.verdict, "ok", False):
        return case
    broken = [f"error {case.error:.3g} is above {largest:.3g}"] if not case.error <= largest else []
    if nmse is not None and not case.nmse <= nmse:
        broken.append(f"NMSE {case.nmse:.3g} is above {nmse:g}")
    if broken:
        case.verdict = Verdict.EXCESS_DRIFT
        case.note = "; ".join(broken) + ", the documented ceiling"
    return case
