"""Level 5: training steps from the same weights, beside float64 and beside PyTorch.

Three trainings see the same batches: ours (``Model.loss_and_grads`` and an optimizer of ``ck.optim``), transformers
with that of ``torch.optim`` in float32, and the float64 model of `exact` with the update written out here. At the first
step every gradient, and with SGD every weight, obeys the three-party rule. After that two correct programs drift apart,
so with SGD the documented ceilings hold: 1 step, 5 steps, 20 steps. Beyond 20 steps, and for AdamW's weights from the
first, the *twin* is the measure: PyTorch trained again from weights moved by one ulp.

AdamW divides a gradient by its own size. Where a gradient is near its own rounding error, its update is noise for
everyone, unless eps is larger: with eps 1e-5 weights are compared element by element, with 1e-8 by the 99th percentile
of the differences in each tensor.
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import numpy as np

from . import exact, peer, probes
from .compare import Verdict, compare
from .layer import condense, under_ceiling
from .levels import Case, OptionError, case_of, error_case, not_measured, unmeasured

LEVEL = "train"

#: Documented ceilings, of SGD: up to this step, largest difference of a weight, difference of the loss.
CEILINGS = ((1, 1e-5, 1e-5), (5, 1e-3, 1e-2), (20, 1e-2, 1e-1))
CEILING_GRADIENT, CEILING_EMBEDDING = 1e-5, 1e-2


class Recipe(NamedTuple):
    """An optimizer and how its weights are compared: by the largest difference, or by a percentile of them."""

    label: str
    kind: str
    options: dict
    lr: float
    share: float = 1.0

    @property
    def has_ceilings(self):
        """Whether the documented figures, which are of SGD, hold."""
        return self.kind == "SGD"


#: What --optimizer takes. Momentum multiplies the way of a step by 10; a training that diverges measures nothing.
OPTIMIZERS = {
    "sgd": (Recipe("sgd", "SGD", {"momentum": 0.0}, 0.05),),
    "momentum": (Recipe("momentum", "SGD", {"momentum": 0.9}, 0.005),),
    "adamw": (
        Recipe("adamw, eps 1e-5", "AdamW", {"betas": (0.9, 0.999), "eps": 1e-5, "weight_decay": 0.01}, 1e-3),
        Recipe("adamw, eps 1e-8", "AdamW", {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}, 1e-3, 0.99),
    ),
}


def run(options, *, model=None, sgd=None, adamw=None):
    """Train a small model three times and compare step by step.

    Parameters
    ----------
    options : Options
        ``config`` names a preset, ``steps`` (5), ``lr`` (0.05; 0.005 with momentum; 0.001 with AdamW), ``optimizer``
        ("sgd", "momentum", which is SGD with momentum 0.9, or "adamw", with an eps of 1e-5 and of 1e-8). Without a
        choice, tiny with plain SGD and, unless ``quick``, gqa with momentum and tiny with AdamW.
    model, sgd, adamw : callable, optional
        What is under test: ``model(config, params)``, ``sgd(params, lr=..., momentum=...)`` and ``adamw(params, lr=...,
        betas=..., eps=..., weight_decay=...)``; ``ck.models.Model`` and those of ``ck.optim`` unless given.

    Yields
    ------
    Case
        Gradients and weights of step 1, condensed to the worst unless ``full``, then loss and weights of every step.
    """
    import ckernels as ck
    from ckernels.models import configs

    if options.optimizer not in (None, *OPTIMIZERS):
        raise OptionError(f"no optimizer {options.optimizer!r}; there are {', '.join(OPTIMIZERS)}")
    if options.config is not None and options.config not in configs:
        raise OptionError(f"no preset {options.config!r}; there are {', '.join(configs)}")
    steps = 5 if options.steps is None else options.steps
    if steps < 1:
        raise OptionError(f"steps={steps} must be at least 1")
    if options.isa is not None and options.isa not in ck.isas():
        yield not_measured(LEVEL, "training steps", "this CPU or build does not have it", isa=options.isa)
        return
    reason = peer.missing()
    if reason:
        yield not_measured(LEVEL, "training steps", reason)
        return
    chosen = [(options.config or "tiny", options.optimizer or "sgd")]
    if options.config is None and options.optimizer is None and not options.quick:
        chosen += [("gqa", "momentum"), ("tiny", "adamw")]
    under_test = {"SGD": sgd or ck.optim.SGD, "AdamW": adamw or ck.optim.AdamW}
    for name, recipe in [(name, recipe) for name, optimizer in chosen for recipe in OPTIMIZERS[optimizer]]:
        options.tell(f"train {name}, {recipe.label}")
        try:
            with ck.use(options.isa or ck.isa()):
                yield from _cases(name, configs[name], recipe, steps, options, model, under_test[recipe.kind])
        except Exception as error:
            yield error_case(LEVEL, f"{name}, {recipe.label}", error)


class Exact:
    """The float64 training: our equations, and the update written out.

    SGD: ``b = g`` at the first step, then ``b = momentum·b + g``; ``w = w - lr·b``. AdamW: the averages m of g and v of
    g² from zero; ``w = w·(1 - lr·decay) - lr·(m/(1 - beta1^t)) / (sqrt(v/(1 - beta2^t)) + eps)``. Those of torch.optim.
    """

    def __init__(self, config, params, lr, recipe, dtype="float64"):
        self.config, self.lr, self.recipe, self.dtype = config, lr, recipe, dtype
        self.weights = {name: np.asarray(value, np.float64) for name, value in params.items()}
        self.state, self.steps = {}, 0

    def step(self, ids, targets):
        """One step; returns the loss and the gradients at the weights before it."""
        found = exact.model(self.config, self.weights, ids, targets, dtype=self.dtype)
        self.steps += 1
        update = self._adamw if self.recipe.kind == "AdamW" else self._sgd
        for name, gradient in found.grads.items():
            self.weights[name] = update(name, self.weights[name], gradient)
        return float(found.stages["loss"]), found.grads

    def _sgd(self, name, weight, gradient):
        before = self.state.get(name)
        self.state[name] = gradient if before is None else self.recipe.options["momentum"] * before + gradient
        return weight - self.lr * self.state[name]

    def _adamw(self, name, weight, gradient):
        (beta1, beta2), t = self.recipe.options["betas"], self.steps
        m, v = self.state.get(name, (0.0, 0.0))
        m, v = beta1 * m + (1 - beta1) * gradient, beta2 * v + (1 - beta2) * gradient * gradient
        self.state[name] = m, v
        size = np.sqrt(v / (1 - beta2**t)) + self.recipe.options["eps"]
        return weight * (1 - self.lr * self.recipe.options["weight_decay"]) - self.lr * m / (1 - beta1**t) / size


class Torch:
    """Transformers in float32 with an optimizer of ``torch.optim``."""

    def __init__(self, config, params, lr, recipe):
        import torch

        self.module = peer.llama(config, params)
        self.named = dict(self.module.named_parameters())
        self.optimizer = getattr(torch.optim, recipe.kind)(self.module.parameters(), lr=lr, **recipe.options)

    @property
    def weights(self):
        """The parameters, copied."""
        return {name: tensor.detach().numpy().copy() for name, tensor in self.named.items()}

    def step(self, ids, targets):
        """One step; returns the loss and the gradients at the weights before it."""
        import torch

        self.optimizer.zero_grad()
        logits = self.module(torch.from_numpy(ids), use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
        loss.backward()
        gradients = {name: tensor.grad.numpy().copy() for name, tensor in self.named.items()}
        self.optimizer.step()
        return float(loss.detach()), gradients


class Ours:
    """The training under test."""

    def __init__(self, config, params, lr, recipe, model, optimizer):
        # The optimizer works in place: the arrays must be this training's own.
        self.model = model(config, {name: value.copy() for name, value in params.items()})
        self.optimizer = optimizer(self.model.params, lr=lr, **recipe.options)

    @property
    def weights(self):
        """The parameters, which the next step changes in place."""
        return self.model.params

    def step(self, ids, targets):
        """One step; returns the loss and the gradients at the weights before it."""
        loss, gradients = self.model.loss_and_grads(ids, targets)
        gradients = {name: np.array(gradient) for name, gradient in gradients.items()}
        self.optimizer.step(gradients)
        return float(loss), gradients


def nudged(params, seed):
    """Every weight moved by one ulp up or down: where the twin starts."""
    rng = np.random.default_rng([seed, 53])
    ends = np.array([-np.inf, np.inf], np.float32)
    return {name: np.nextafter(value, ends[rng.integers(0, 2, value.shape)]) for name, value in params.items()}


def _cases(name, config, recipe, steps, options, model, optimizer):
    """All steps of one configuration with one optimizer."""
    if model is None:
        from ckernels.models import Model as model
    lr = recipe.lr if options.lr is None else options.lr
    params = probes.parameters(config, options.seed)
    right = Exact(config, params, lr, recipe)
    beside = Torch(config, params, lr, recipe)
    needs_twin = not recipe.has_ceilings or steps > CEILINGS[-1][0]
    twin = Torch(config, nudged(params, options.seed), lr, recipe) if needs_twin else None
    ours = Ours(config, params, lr, recipe, model, optimizer)
    label = f"{name}, {recipe.label}, lr {lr:g}"
    envelope = [0.0, 0.0]
    for step, (ids, targets) in enumerate(probes.training_batches(config.vocab_size, steps, options.seed), start=1):
        options.tell(f"train {label}: step {step} of {steps}")
        start = time.perf_counter()
        losses, gradients = zip(*(party.step(ids, targets) for party in (ours, right, beside)), strict=True)
        seconds = time.perf_counter() - start
        if twin is not None:
            loss = abs(twin.step(ids, targets)[0] - losses[2])
            apart = loss, max(_apart(twin.weights, beside.weights, recipe.share).values())
            envelope = [max(pair) for pair in zip(envelope, apart, strict=True)]
        if step == 1:
            cases = _first_step(label, recipe, gradients, ours.weights, right.weights, beside.weights)
            yield from cases if options.full else condense(cases, label)
            yield _micro_batch_case(label, config, params, ids, targets, gradients, model)
        yield _loss_case(label, recipe, step, losses, envelope, seconds)
        yield _weights_case(label, recipe, step, ours.weights, right.weights, beside.weights, envelope)


def _first_step(label, recipe, gradients, ours, right, beside):
    """Gradients and weights of step 1 by the three-party rule; not AdamW's weights, which magnify gradients' errors."""
    for what, found, wide, other in (("gradient", *gradients), ("weight", ours, right, beside)):
        if what == "weight" and not recipe.has_ceilings:
            continue
        for name, value in wide.items():
            if name not in found:
                yield unmeasured(LEVEL, f"{label}: {name}", f"there is no such {what}", f"step 1 {what}")
                continue
            report = compare(found[name], value, other[name], name=name)
            case = case_of(LEVEL, f"{label}: {name}", f"step 1 {what}", report)
            if what == "gradient":
                under_ceiling(case, CEILING_EMBEDDING if name == "model.embed_tokens.weight" else CEILING_GRADIENT)
            else:
                under_ceiling(case, CEILINGS[0][1])
            yield case


def _micro_batch_case(label, config, params, ids, targets, gradients, model):
    """One row at a time, accumulated, and divided by the number of counted targets: the gradient of the whole batch."""
    what = "step 1 micro-batches"
    under_test, total = model(config, {name: value.copy() for name, value in params.items()}), None
    for row in range(len(ids)):
        _, total = under_test.loss_and_grads(
            ids[row : row + 1], targets[row : row + 1], reduction="sum", accumulate_into=total
        )
    counted = np.float32((targets != -100).sum())
    _, right, beside = gradients
    if total.keys() != right.keys():
        return unmeasured(LEVEL, label, f"gradients missing or left over: {sorted(total.keys() ^ right.keys())}", what)
    cases = []
    for name, value in right.items():
        report = compare(np.asarray(total[name]) / counted, value, beside[name], name=name)
        cases.append(case_of(LEVEL, f"{label}: {name}", what, report))
        under_ceiling(cases[-1], CEILING_EMBEDDING if name == "model.embed_tokens.weight" else CEILING_GRADIENT)
    worst = max(cases, key=lambda case: (case.failed or not case.verdict.ok, case.margin or 0.0))
    worst.note = worst.note or f"the worst of {len(cases)} gradients"
    return worst


def _ceiling(recipe, step, which, envelope):
    """What may be apart at a step: the documented figure where there is one, or three times the twin's envelope.

    The loss of step 1 is that of the first weights, whatever the optimizer. It is one number, and two trainings may
    meet in it by chance: no envelope of the loss is below what is promised of it without any step.
    """
    for last, weight, loss in CEILINGS:
        if step <= last and (recipe.has_ceilings or (step == 1 and which == 1)):
            return (weight, loss)[which], f"the ceiling at {last} step{'s' * (last > 1)}"
    if which == 1 and 3 * envelope[0] < CEILINGS[0][2]:
        return CEILINGS[0][2], "the ceiling at 1 step, which is above three times the twin's envelope"
    return 3 * envelope[1 - which], "three times the twin's envelope"


def _loss_case(label, recipe, step, losses, envelope, seconds):
    """The loss of one step."""
    ours, right, beside = losses
    limit, source = _ceiling(recipe, step, 1, envelope)
    error, other = abs(ours - right), abs(beside - right)
    note = f"ours {ours:.7f}, PyTorch {beside:.7f}, float64 {right:.7f}"
    return _limited(label, f"step {step} loss", error, other, limit, source, note, seconds,
                    ours=ours, pytorch=beside, float64=right)  # fmt: skip


def _weights_case(label, recipe, step, ours, right, beside, envelope):
    """All weights after one step."""
    if ours.keys() != right.keys():
        odd = sorted(right.keys() ^ ours.keys())
        return unmeasured(LEVEL, label, f"weights missing or left over: {odd[:3]}", f"step {step} weights")
    limit, source = _ceiling(recipe, step, 0, envelope)
    each = _apart(ours, right, recipe.share)
    where = max(each, key=each.get)
    other = max(_apart(beside, right, recipe.share).values())
    note = f"the farthest of {len(each)} is {where}" + (f", {recipe.share:.0%} of it" if recipe.share < 1 else "")
    case = _limited(label, f"step {step} weights", each[where], other, limit, source, note, 0.0, **each)
    case.ratio = each[where] / other if other else None
    return case


def _apart(weights, right, share):
    """The difference of every weight, by name, that a share of its elements keeps to; NaN counts as infinite."""
    apart = {
        name: float(np.quantile(np.abs(np.asarray(weights[name], np.float64) - wide), share))
        for name, wide in right.items()
    }
    return {name: math.inf if math.isnan(value) else value for name, value in apart.items()}


def _limited(label, what, error, other, limit, source, note, seconds, **data):
    """The case of a figure with a ceiling."""
    fine = error <= limit  # False for NaN
    margin = error / limit if limit and math.isfinite(error) else (0.0 if error == 0 else math.inf)
    if not fine:
        note = f"{error:.3g} is above {limit:.3g}, {source}; {note}"
    return Case(
        LEVEL, label, what, "float32", verdict=Verdict.WITHIN_BUDGET if fine else Verdict.EXCESS_DRIFT,
        margin=margin, error=error, peer_error=other, note=note, seconds=seconds,
        data={**data, "limit": limit, "limit_is": source},
    )  # fmt: skip
