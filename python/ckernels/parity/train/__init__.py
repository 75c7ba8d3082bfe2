"""Level 5: training steps from the same weights, beside float64 and beside PyTorch.

Trainings see the same batches: ours (``Model.loss_and_grads`` and an optimizer of ``ck.optim``), transformers with that
of ``torch.optim`` in float32, the same again from weights moved by one ulp (the *twins*), and the float64 model of
`exact` with the update written out. At the first step every gradient, and with SGD every weight, obeys the three-party
rule. After that two correct programs drift apart, so the twins are the measure: at every step loss, every gradient,
every weight and every array of the optimizer's state must stay within three times the distance that PyTorch has from
its twins and from float64 (`envelope`). Whatever leaves, or jumps, is named with its step, and the training is followed
no further. With SGD the documented ceilings hold beside it, for 1, 5 and 20 steps.

AdamW divides a gradient by its own size. Where a gradient is near its own rounding error, its update is noise for
everyone, unless eps is larger: with eps 1e-5 weights are compared element by element, with 1e-8 by the 99th percentile
of the differences in each tensor.
"""

from __future__ import annotations

import contextlib
import time

import numpy as np

from .. import peer, probes
from ..compare import compare
from ..layer import condense, under_ceiling
from ..levels import OptionError, case_of, error_case, not_measured, unmeasured
from .following import CEILINGS, Following
from .micro_batches import micro_batch_cases
from .parties import Exact, Ours, Torch, nudged
from .recipes import OPTIMIZERS, plans

LEVEL = "train"
#: How many there are; and when something has left their envelope, before it is said: few twins are a small sample.
TWINS, MORE_TWINS = 3, 9

CEILING_GRADIENT, CEILING_EMBEDDING = 1e-5, 1e-2
_TABLE = "model.embed_tokens.weight"


def run(options, *, model=None, sgd=None, adamw=None):
    """Train small models several times and compare step by step.

    Parameters
    ----------
    options : Options
        ``config`` names a preset, ``steps`` (5), ``lr`` (0.05; 0.005 with momentum; 0.01 and 0.001 with AdamW),
        ``optimizer`` ("sgd"; "momentum", which is SGD with momentum 0.9 and gradients clipped to a norm of 1; or
        "adamw", with an eps of 1e-5 and of 1e-8). Without a choice `recipes.plans` decides by ``quick``, ``full`` and
        ``stress``.
    model, sgd, adamw : callable, optional
        What is under test: ``model(config, params)``, ``sgd(params, lr=..., momentum=...)`` and ``adamw(params, lr=...,
        betas=..., eps=..., weight_decay=...)``; ``ck.models.Model`` and those of ``ck.optim`` unless given.

    Yields
    ------
    Case
        Gradients and weights of step 1, condensed to the worst unless ``full``; micro-batches; then loss, gradients,
        optimizer state and weights of the steps.
    """
    import ckernels as ck
    from ckernels.models import configs

    if options.optimizer not in (None, *OPTIMIZERS):
        raise OptionError(f"no optimizer {options.optimizer!r}; there are {', '.join(OPTIMIZERS)}")
    if options.config is not None and options.config not in configs:
        raise OptionError(f"no preset {options.config!r}; there are {', '.join(configs)}")
    if options.steps is not None and options.steps < 1:
        raise OptionError(f"steps={options.steps} must be at least 1")
    if options.isa is not None and options.isa not in ck.isas():
        yield not_measured(LEVEL, "training steps", "this CPU or build does not have it", isa=options.isa)
        return
    reason = peer.missing()
    if reason:
        yield not_measured(LEVEL, "training steps", reason)
        return
    if model is None:
        from ckernels.models import Model as model
    with _one_thread():
        yield from _plans(options, configs, model, {"SGD": sgd or ck.optim.SGD, "AdamW": adamw or ck.optim.AdamW})


@contextlib.contextmanager
def _one_thread():
    """All on one thread, which changes no bit of ours: these models are so small that others would be waited for."""
    import torch

    import ckernels as ck

    before = torch.get_num_threads(), ck.get_num_threads()
    torch.set_num_threads(1)
    ck.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        ck.set_num_threads(before[1])


def _plans(options, configs, model, optimizers):
    """All trainings of a run, and micro-batches once for each preset."""
    import ckernels as ck

    seen = set()
    for plan in plans(options, configs):
        label = f"{plan.config}, {plan.recipe.label}, lr {plan.lr:g}, {plan.steps} step{'s' * (plan.steps > 1)}"
        options.tell(f"train {label}")
        try:
            with ck.use(options.isa or ck.isa()):
                yield from _training(label, configs[plan.config], plan, options, model, optimizers[plan.recipe.kind])
                if plan.config not in seen:
                    cases = micro_batch_cases(plan.config, configs[plan.config], options, model, optimizers["SGD"])
                    yield from condense(cases, f"{plan.config}, micro-batches") if seen else cases
                    seen.add(plan.config)
        except Exception as error:
            yield error_case(LEVEL, label, error)


def _training(label, config, plan, options, model, optimizer):
    """All steps of one plan; where something leaves the envelope of a few twins, once more with that of many."""
    cases, left = _followed(label, config, plan, options, model, optimizer, TWINS)
    if left:
        cases, _ = _followed(label, config, plan, options, model, optimizer, MORE_TWINS)
    return cases


def _followed(label, config, plan, options, model, optimizer, twins):
    """The cases of all steps of one plan until something leaves the envelope, and whether it did."""
    recipe, seed = plan.recipe, options.seed
    params = probes.parameters(config, seed)
    right = Exact(config, params, plan.lr, recipe)
    beside, *twins = (
        Torch(config, start, plan.lr, recipe)
        for start in (params, *(nudged(params, seed + 1000 * index) for index in range(twins)))
    )
    ours = Ours(config, params, plan.lr, recipe, model, optimizer)
    following, cases = Following(label, recipe, plan.steps, plan.listed), []
    batches = probes.training_batches(config.vocab_size, plan.steps, seed)
    for step, (ids, targets) in enumerate(batches, start=1):
        options.tell(f"train {label}: step {step}")
        start = time.perf_counter()
        parties = (ours, right, beside, *twins)
        results = [party.step(ids, targets) for party in parties]
        if step == 1:
            found = [gradients for _, gradients in results[:3]]
            first = _first_step(label, recipe, found, ours.weights, right.weights, beside.weights)
            cases += first if options.full else condense(first, label)
        cases += following.step(step, results, parties, time.perf_counter() - start)
        if following.left:
            break
    return cases, following.left


def _first_step(label, recipe, gradients, ours, right, beside):
    """Gradients and weights of step 1 by the three-party rule; not AdamW's weights, which magnify gradients' errors."""
    for what, found, wide, other in (("gradient", *gradients), ("weight", ours, right, beside)):
        if what == "weight" and not recipe.has_ceilings:
            continue
        for name, value in wide.items():
            if name not in found:
                yield unmeasured(LEVEL, f"{label}: {name}", f"there is no such {what}", f"step 1 {what}")
                continue
            report = compare(np.asarray(found[name]), value, other[name], name=name)
            case = case_of(LEVEL, f"{label}: {name}", f"step 1 {what}", report)
            if what == "gradient":
                under_ceiling(case, CEILING_EMBEDDING if name == _TABLE else CEILING_GRADIENT)
            elif report.peer_max <= CEILINGS[0][1]:  # it speaks where PyTorch's own float32 keeps to it
                under_ceiling(case, CEILINGS[0][1])
            yield case
