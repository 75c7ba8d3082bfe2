"""Specs of the optimizers and of gradient clipping."""

import math

import numpy as np

from .spec import OpSpec, Probe, as_array, as_tensor, call_dtype, normal

_STEPS = 3


def _inputs(rng, **options):
    grads = [normal(rng, 7, 33, scale=0.5) for _ in range(_STEPS)]
    return {"p0": normal(rng, 7, 33), "grads": grads, "options": options}


def _probe(label, quick=False, **options):
    return Probe(label, lambda r: _inputs(r, **options), quick)


def _run(kind, state):
    """Return what steps the optimizer under test; the parameter and what is there of its state come out."""

    def run(ck, inputs):
        params = {"weight": inputs["p0"].copy()}
        options = dict(inputs["options"])
        max_norm = options.pop("max_norm", None)
        optimizer = getattr(ck.optim, kind)(params, **options)
        for grad in inputs["grads"]:
            optimizer.step({"weight": grad.copy()}, max_norm=max_norm)
        entry = optimizer.state.get(0, {})
        return {"weight": params["weight"], **{name: entry[name] for name in state if name in entry}}

    return run


def _peer(kind, state):
    """Return PyTorch's optimizer in float32, its parameter rounded to 16 bits after every step where ours has 16.

    PyTorch itself keeps the state of 16-bit parameters in 16 bits, where squares of gradients underflow.
    """

    def run(inputs):
        import torch

        dtype = getattr(torch, call_dtype(inputs))
        parameter = torch.nn.Parameter(as_tensor(inputs["p0"], "float32"))
        options = dict(inputs["options"])
        max_norm = options.pop("max_norm", None)
        optimizer = getattr(torch.optim, kind)([parameter], foreach=False, **options)
        for grad in inputs["grads"]:
            parameter.grad = as_tensor(grad, "float32")
            if max_norm is not None:
                torch.nn.utils.clip_grad_norm_([parameter], max_norm, foreach=False)
            optimizer.step()
            parameter.data = parameter.data.to(dtype).float()
        entry = optimizer.state_dict()["state"].get(0, {})
        found = {name: as_array(entry[name]) for name in state if entry.get(name) is not None}
        return {"weight": as_array(parameter, call_dtype(inputs)), **found}

    return run


def _clipped(grad, max_norm):
    """The gradient in float64, scaled as clip_grad_norm_ does."""
    g = grad.astype(np.float64)
    return g if max_norm is None else g * min(1.0, max_norm / (math.sqrt((g * g).sum()) + 1e-6))


def _sgd_exact(inputs):
    """torch.optim.SGD, as its documentation writes it, in float64."""
    options = {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, "max_norm": None}
    options |= inputs["options"]
    p, buffer = inputs["p0"].astype(np.float64), None
    for grad in inputs["grads"]:
        g = _clipped(grad, options["max_norm"]) + options["weight_decay"] * p
        if options["momentum"]:
            buffer = g if buffer is None else options["momentum"] * buffer + (1 - options["dampening"]) * g
            g = g + options["momentum"] * buffer if options["nesterov"] else buffer
        p = p - options["lr"] * g
    return {"weight": p} if buffer is None else {"weight": p, "momentum_buffer": buffer}


def _adamw_exact(inputs):
    """torch.optim.AdamW, as its documentation writes it, in float64."""
    options = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, "amsgrad": False} | inputs["options"]
    (beta1, beta2), lr = options["betas"], options["lr"]
    p = inputs["p0"].astype(np.float64)
    m, v, peak = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for t, grad in enumerate(inputs["grads"], start=1):
        g = grad.astype(np.float64) * (-1 if options.get("maximize") else 1)
        p = p - lr * options["weight_decay"] * p
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        peak = np.maximum(peak, v) if options["amsgrad"] else v
        p = p - lr * (m / (1 - beta1**t)) / (np.sqrt(peak / (1 - beta2**t)) + options["eps"])
    return {"weight": p, "exp_avg": m, "exp_avg_sq": v} | ({"max_exp_avg_sq": peak} if options["amsgrad"] else {})


def _optimizer(kind, exact, state, *probes):
    return [OpSpec(kind, f"{_STEPS} steps", (f"optim.{kind}",), probes, _run(kind, state), exact, _peer(kind, state),
                   statistics=state)]  # fmt: skip


SGD = _optimizer(
    "SGD",
    _sgd_exact,
    ("momentum_buffer",),
    _probe("plain", lr=0.1, quick=True),
    _probe("momentum", lr=0.03, momentum=0.9),
    _probe("nesterov, decay", lr=0.03, momentum=0.9, weight_decay=0.1, nesterov=True, quick=True),
    _probe("dampening, decay", lr=0.2, momentum=0.7, dampening=0.3, weight_decay=0.05),
    _probe("clipped to a third", lr=0.1, momentum=0.9, max_norm=2.5),
)

ADAMW = _optimizer(
    "AdamW",
    _adamw_exact,
    ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    _probe("torch's own options", lr=0.03, quick=True),
    # A denominator of order eps: inputs of order one hide it.
    _probe("eps of the gradients' size, decay", lr=0.1, betas=(0.8, 0.95), eps=0.3, weight_decay=0.3, quick=True),
    _probe("amsgrad", lr=0.05, betas=(0.9, 0.3), eps=1e-5, amsgrad=True),
    _probe("maximize, no decay", lr=0.05, eps=1e-5, weight_decay=0.0, maximize=True),
)


def _clip_inputs(rng, max_norm):
    return {"a": normal(rng, 7, 33), "b": normal(rng, 5), "max_norm": max_norm}


def _clip_run(ck, inputs):
    grads = {name: inputs[name].copy() for name in "ab"}
    norm = ck.optim.clip_grad_norm(grads, inputs["max_norm"])
    return {"norm": np.array(norm, np.float32), **grads}


def _clip_exact(inputs):
    a, b = (inputs[name].astype(np.float64) for name in "ab")
    norm = math.sqrt((a * a).sum() + (b * b).sum())
    scale = min(1.0, inputs["max_norm"] / (norm + 1e-6))
    return {"norm": np.array(norm), "a": scale * a, "b": scale * b}


def _clip_peer(inputs):
    """PyTorch in float32, rounded to the gradients' dtype: in 16 bits it also keeps the norm in 16 bits."""
    import torch

    params = [torch.nn.Parameter(as_tensor(inputs[name], "float32")) for name in "ab"]
    for p in params:
        p.grad = p.detach().clone()
    norm = torch.nn.utils.clip_grad_norm_(params, inputs["max_norm"], foreach=False)
    a, b = (as_array(p.grad, call_dtype(inputs)) for p in params)
    return {"norm": as_array(norm), "a": a, "b": b}


CLIP_GRAD_NORM = [
    OpSpec(
        "clip_grad_norm",
        "in place",
        ("optim.clip_grad_norm",),
        (
            Probe("a third", lambda r: _clip_inputs(r, 5.0), quick=True),
            Probe("nearly all", lambda r: _clip_inputs(r, 0.01)),
        ),
        _clip_run,
        _clip_exact,
        _clip_peer,
        statistics=("norm",),
    )
]
