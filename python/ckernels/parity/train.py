"""Level 5: training steps from the same weights, beside float64 and beside PyTorch.

Three trainings see the same batches: ours (``Model.loss_and_grads`` and ``ck.optim.SGD``), transformers with
``torch.optim.SGD`` in float32, and the float64 model of `exact` with the update written out here. At the first step
every gradient and every weight obeys the three-party rule. After that two correct programs drift apart, so the
documented ceilings hold: 1 step, 5 steps, 20 steps. Beyond 20 steps the *twin* is the measure: PyTorch trained again
from weights moved by one ulp.
"""

from __future__ import annotations

import math
import time

import numpy as np

from . import exact, peer, probes
from .compare import Verdict, compare
from .layer import condense, under_ceiling
from .levels import Case, OptionError, case_of, error_case, not_measured, unmeasured

LEVEL = "train"

#: Documented ceilings: up to this step, largest difference of a weight, difference of the loss.
CEILINGS = ((1, 1e-5, 1e-5), (5, 1e-3, 1e-2), (20, 1e-2, 1e-1))
CEILING_GRADIENT, CEILING_EMBEDDING = 1e-5, 1e-2
OPTIMIZERS = {"sgd": {}, "momentum": {"momentum": 0.9}}


def run(options, *, model=None, sgd=None):
    """Train a small model three times and compare step by step.

    Parameters
    ----------
    options : Options
        ``config`` names a preset, ``steps`` (5), ``lr`` (0.05; 0.005 with momentum), ``optimizer`` ("sgd" or
        "momentum", which is SGD with momentum 0.9). Without a choice, tiny with plain SGD and, unless ``quick``, gqa
        with momentum.
    model, sgd : callable, optional
        What is under test: ``model(config, params)`` and ``sgd(params, lr=..., momentum=...)``; ``ck.models.Model`` and
        ``ck.optim.SGD`` unless given.

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
        chosen.append(("gqa", "momentum"))
    for name, optimizer in chosen:
        options.tell(f"train {name}, {optimizer}")
        try:
            with ck.use(options.isa or ck.isa()):
                yield from _cases(name, configs[name], optimizer, steps, options, model, sgd)
        except Exception as error:
            yield error_case(LEVEL, f"{name}, {optimizer}", error)


class Exact:
    """The float64 training: our equations, and the update written out.

    ``b = g`` at the first step, then ``b = momentum·b + g``; ``w = w - lr·b``: the semantics of ``torch.optim.SGD``.
    """

    def __init__(self, config, params, lr, momentum=0.0, dtype="float64"):
        self.config, self.lr, self.momentum, self.dtype = config, lr, momentum, dtype
        self.weights = {name: np.asarray(value, np.float64) for name, value in params.items()}
        self.buffers = {}

    def step(self, ids, targets):
        """One step; returns the loss and the gradients at the weights before it."""
        found = exact.model(self.config, self.weights, ids, targets, dtype=self.dtype)
        for name, gradient in found.grads.items():
            before = self.buffers.get(name)
            self.buffers[name] = gradient if before is None else self.momentum * before + gradient
            self.weights[name] = self.weights[name] - self.lr * self.buffers[name]
        return float(found.stages["loss"]), found.grads


class Torch:
    """Transformers in float32 with ``torch.optim.SGD``."""

    def __init__(self, config, params, lr, momentum=0.0):
        import torch

        self.module = peer.llama(config, params)
        self.named = dict(self.module.named_parameters())
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=lr, momentum=momentum)

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

    def __init__(self, config, params, lr, momentum, model, sgd):
        # The optimizer works in place: the arrays must be this training's own.
        self.model = model(config, {name: value.copy() for name, value in params.items()})
        self.optimizer = sgd(self.model.params, lr=lr, momentum=momentum)

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


def _cases(name, config, optimizer, steps, options, model, sgd):
    """All steps of one configuration with one optimizer."""
    if model is None:
        from ckernels.models import Model as model
    if sgd is None:
        from ckernels.optim import SGD as sgd
    momentum = OPTIMIZERS[optimizer].get("momentum", 0.0)
    # Momentum multiplies the way of a step by 1 / (1 - momentum); a training that diverges measures nothing.
    lr = round(0.05 * (1 - momentum), 6) if options.lr is None else options.lr
    params = probes.parameters(config, options.seed)
    right = Exact(config, params, lr, momentum)
    beside = Torch(config, params, lr, momentum)
    twin = Torch(config, nudged(params, options.seed), lr, momentum) if steps > CEILINGS[-1][0] else None
    ours = Ours(config, params, lr, momentum, model, sgd)
    label = f"{name}, {optimizer}, lr {lr:g}"
    envelope = [0.0, 0.0]
    for step, (ids, targets) in enumerate(probes.training_batches(config.vocab_size, steps, options.seed), start=1):
        options.tell(f"train {label}: step {step} of {steps}")
        start = time.perf_counter()
        losses, gradients = zip(*(party.step(ids, targets) for party in (ours, right, beside)), strict=True)
        seconds = time.perf_counter() - start
        if twin is not None:
            apart = abs(twin.step(ids, targets)[0] - losses[2]), max(_apart(twin.weights, beside.weights).values())
            envelope = [max(pair) for pair in zip(envelope, apart, strict=True)]
        if step == 1:
            cases = _first_step(label, gradients, ours.weights, right.weights, beside.weights)
            yield from cases if options.full else condense(cases, label)
            yield _micro_batch_case(label, config, params, ids, targets, gradients, model)
        yield _loss_case(label, step, losses, envelope, seconds)
        yield _weights_case(label, step, ours.weights, right.weights, beside.weights, envelope)


def _first_step(label, gradients, ours, right, beside):
    """Gradients and weights of step 1 by the three-party rule."""
    for what, found, wide, other in (("gradient", *gradients), ("weight", ours, right, beside)):
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


def _ceiling(step, which, envelope):
    """What may be apart at a step: the documented figure, or three times the twin's envelope beyond the last one."""
    for last, weight, loss in CEILINGS:
        if step <= last:
            return (weight, loss)[which], f"the ceiling at {last} step{'s' * (last > 1)}"
    return 3 * envelope[1 - which], "three times the twin's envelope"


def _loss_case(label, step, losses, envelope, seconds):
    """The loss of one step."""
    ours, right, beside = losses
    limit, source = _ceiling(step, 1, envelope)
    error, other = abs(ours - right), abs(beside - right)
    note = f"ours {ours:.7f}, PyTorch {beside:.7f}, float64 {right:.7f}"
    return _limited(label, f"step {step} loss", error, other, limit, source, note, seconds,
                    ours=ours, pytorch=beside, float64=right)  # fmt: skip


def _weights_case(label, step, ours, right, beside, envelope):
    """All weights after one step."""
    if ours.keys() != right.keys():
        odd = sorted(right.keys() ^ ours.keys())
        return unmeasured(LEVEL, label, f"weights missing or left over: {odd[:3]}", f"step {step} weights")
    limit, source = _ceiling(step, 0, envelope)
    each = _apart(ours, right)
    where = max(each, key=each.get)
    other = max(_apart(beside, right).values())
    note = f"the farthest of {len(each)} is {where}"
    case = _limited(label, f"step {step} weights", each[where], other, limit, source, note, 0.0, **each)
    case.ratio = each[where] / other if other else None
    return case


def _apart(weights, right):
    """The largest difference of every weight, by name; NaN counts as infinite."""
    apart = {name: float(np.abs(np.asarray(weights[name], np.float64) - wide).max()) for name, wide in right.items()}
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
