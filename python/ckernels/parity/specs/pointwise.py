"""Specs of the activations, the loss and the optimizer."""

import numpy as np

from .spec import OpSpec, Probe, as_array, as_tensor, family, normal


def _silu_formula(torch, x):
    return x * torch.sigmoid(x)


def _silu_eager(torch, x):
    return torch.nn.functional.silu(x)


SILU = family(
    "silu",
    [
        Probe("of order one", lambda r: {"x": normal(r, 5, 33, scale=3)}, quick=True),
        Probe("±200", lambda r: {"x": (200 * r.uniform(-1, 1, (7, 97))).astype(np.float32)}),
        Probe("-90 to -2", lambda r: {"x": r.uniform(-90, -2, (3, 1031)).astype(np.float32)}),
    ],
    _silu_formula,
    eager=_silu_eager,
)


def _swiglu_formula(torch, gate, up=None):
    if up is None:
        gate, up = gate.chunk(2, -1)
    return gate * torch.sigmoid(gate) * up


def _swiglu_eager(torch, gate, up=None):
    if up is None:
        gate, up = gate.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


SWIGLU = family(
    "swiglu",
    [
        Probe("gate and up", lambda r: {"gate": normal(r, 5, 33, scale=3), "up": normal(r, 5, 33)}, quick=True),
        Probe("packed", lambda r: {"gate": normal(r, 3, 7, 2 * 97, scale=2)}, quick=True),
        Probe("gate of ±200", lambda r: {"gate": normal(r, 7, 577, scale=80), "up": normal(r, 7, 577, scale=5)}),
    ],
    _swiglu_formula,
    eager=_swiglu_eager,
    wrt=("gate", "up"),
)


def _loss_inputs(rng, R, V, *, scale=3.0, ignored=0, **options):
    target = rng.integers(0, V, R)
    target[rng.choice(R, ignored, replace=False)] = options.get("ignore_index", -100)
    return {"logits": normal(rng, R, V, scale=scale), "target": target, **options}


def _cross_entropy_formula(torch, logits, target, ignore_index=-100, reduction="mean"):
    counted = target != ignore_index
    chosen = logits.gather(-1, target.masked_fill(~counted, 0)[:, None])[:, 0]
    losses = (torch.logsumexp(logits, -1) - chosen).masked_fill(~counted, 0.0)
    if reduction == "none":
        return losses
    return losses.sum() / counted.sum() if reduction == "mean" else losses.sum()


def _cross_entropy_eager(torch, logits, target, ignore_index=-100, reduction="mean"):
    return torch.nn.functional.cross_entropy(logits, target, ignore_index=ignore_index, reduction=reduction)


CROSS_ENTROPY = family(
    "cross_entropy",
    [
        Probe("mean, three ignored", lambda r: _loss_inputs(r, 13, 49, ignored=3), quick=True),
        Probe("none", lambda r: _loss_inputs(r, 7, 97, ignored=2, reduction="none"), quick=True),
        Probe("sum, ignore_index 5", lambda r: _loss_inputs(r, 11, 33, ignored=4, ignore_index=5, reduction="sum")),
        Probe("logits of ±200", lambda r: _loss_inputs(r, 9, 65, scale=100.0, reduction="none")),
        Probe("4097 classes", lambda r: _loss_inputs(r, 5, 4097)),
        Probe("rows of 17", lambda r: _loss_inputs(r, 31, 17, reduction="sum")),
    ],
    _cross_entropy_formula,
    eager=_cross_entropy_eager,
    wrt=("logits",),
    outputs=("loss",),
    statistics=("loss",),
)


def _sgd_inputs(rng, **options):
    return {"p0": normal(rng, 7, 33), "grads": [normal(rng, 7, 33, scale=0.5) for _ in range(3)], "options": options}


def _sgd_run(ck, inputs):
    params = {"weight": inputs["p0"].copy()}
    optimizer = ck.optim.SGD(params, **inputs["options"])
    for grad in inputs["grads"]:
        optimizer.step({"weight": grad.copy()})
    return {"weight": params["weight"]}


def _sgd_exact(inputs):
    """torch.optim.SGD, as its documentation writes it, in float64."""
    options = {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False} | inputs["options"]
    p, buffer = inputs["p0"].astype(np.float64), None
    for grad in inputs["grads"]:
        g = grad.astype(np.float64) + options["weight_decay"] * p
        if options["momentum"]:
            buffer = g if buffer is None else options["momentum"] * buffer + (1 - options["dampening"]) * g
            g = g + options["momentum"] * buffer if options["nesterov"] else buffer
        p = p - options["lr"] * g
    return {"weight": p}


def _sgd_peer(inputs):
    import torch

    parameter = torch.nn.Parameter(as_tensor(inputs["p0"]))
    optimizer = torch.optim.SGD([parameter], foreach=False, **inputs["options"])
    for grad in inputs["grads"]:
        parameter.grad = as_tensor(grad)
        optimizer.step()
    return {"weight": as_array(parameter)}


def _sgd_probe(label, quick=False, **options):
    return Probe(label, lambda r: _sgd_inputs(r, **options), quick)


SGD = [
    OpSpec(
        "SGD",
        "3 steps",
        ("optim.SGD",),
        (
            _sgd_probe("plain", lr=0.1, quick=True),
            _sgd_probe("momentum", lr=0.03, momentum=0.9),
            _sgd_probe("nesterov, decay", lr=0.03, momentum=0.9, weight_decay=0.1, nesterov=True, quick=True),
            _sgd_probe("dampening, decay", lr=0.2, momentum=0.7, dampening=0.3, weight_decay=0.05),
        ),
        _sgd_run,
        _sgd_exact,
        _sgd_peer,
    )
]
