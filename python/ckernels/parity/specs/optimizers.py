"""Specs of the optimizers and of clipping."""

import math

import numpy as np

from .spec import OpSpec, Probe, as_array, as_tensor, normal


def _inputs(rng, scales=(0.5, 0.5, 0.5), **options):
    return {"p0": normal(rng, 7, 33), "grads": [normal(rng, 7, 33, scale=s) for s in scales], "options": options}


def _run(kind):
    def run(ck, inputs):
        params = {"weight": inputs["p0"].copy()}
        optimizer = getattr(ck.optim, kind)(params, **inputs["options"])
        for grad in inputs["grads"]:
            optimizer.step({"weight": grad.copy()})
        return {"weight": params["weight"]}

    return run


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


def _adamw_exact(inputs):
    """torch.optim.AdamW, as its documentation writes it, in float64."""
    options = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, "amsgrad": False, "maximize": False}
    options |= inputs["options"]
    lr, (beta1, beta2) = options["lr"], options["betas"]
    p = inputs["p0"].astype(np.float64)
    mean, square, largest = np.zeros(p.shape), np.zeros(p.shape), np.zeros(p.shape)
    for step, grad in enumerate(inputs["grads"], 1):
        g = -grad.astype(np.float64) if options["maximize"] else grad.astype(np.float64)
        p = p * (1 - lr * options["weight_decay"])
        mean, square = beta1 * mean + (1 - beta1) * g, beta2 * square + (1 - beta2) * g * g
        largest = np.maximum(largest, square)
        root = np.sqrt((largest if options["amsgrad"] else square) / (1 - beta2**step))
        p = p - lr * mean / (1 - beta1**step) / (root + options["eps"])
    return {"weight": p}


def _peer(kind):
    def peer(inputs):
        """torch.optim with its state in float32; parameters of 16 bits are rounded after each step.

        Squares of gradients underflow in PyTorch's own 16-bit state.
        """
        import torch

        dtype = inputs["p0"].dtype.name
        parameter = torch.nn.Parameter(as_tensor(inputs["p0"], "float32"))
        optimizer = getattr(torch.optim, kind)([parameter], foreach=False, **inputs["options"])
        for grad in inputs["grads"]:
            parameter.grad = as_tensor(grad, "float32")
            optimizer.step()
            parameter.data = as_tensor(as_array(parameter, dtype), "float32")
        return {"weight": as_array(parameter, dtype)}

    return peer


def _probe(label, quick=False, **options):
    return Probe(label, lambda r: _inputs(r, **options), quick)


# Steps are large, so that they are seen beside half an ulp of 16 bits.
SGD = [
    OpSpec(
        "SGD",
        "3 steps",
        ("optim.SGD",),
        (
            _probe("plain", lr=0.3, quick=True),
            _probe("momentum", lr=0.1, momentum=0.9),
            _probe("nesterov, decay", lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True, quick=True),
            _probe("dampening, decay", lr=0.3, momentum=0.7, dampening=0.3, weight_decay=0.05),
        ),
        _run("SGD"),
        _sgd_exact,
        _peer("SGD"),
    )
]

ADAMW = [
    OpSpec(
        "AdamW",
        "3 steps",
        ("optim.AdamW",),
        (
            _probe("plain", lr=0.1, quick=True),
            _probe("betas, eps, decay", lr=0.2, betas=(0.8, 0.95), eps=1e-5, weight_decay=0.3, quick=True),
            # Gradients that shrink, and an average that forgets: the largest so far is then another one.
            _probe("amsgrad", lr=0.3, betas=(0.5, 0.5), amsgrad=True, scales=(4.0, 0.5, 0.5)),
            _probe("maximize, large eps", lr=0.3, eps=0.1, maximize=True),
        ),
        _run("AdamW"),
        _adamw_exact,
        _peer("AdamW"),
    )
]


def _clip_run(ck, inputs):
    grads = {name: inputs[name].copy() for name in ("a", "b")}
    norm = ck.optim.clip_grad_norm(grads, inputs["max_norm"])
    return {"norm": np.float32(norm), **grads}


def _clip_exact(inputs):
    grads = {name: inputs[name].astype(np.float64) for name in ("a", "b")}
    norm = math.sqrt(sum(float(np.sum(g * g)) for g in grads.values()))
    factor = min(1.0, inputs["max_norm"] / (norm + 1e-6))
    return {"norm": np.float64(norm), **{name: g * factor for name, g in grads.items()}}


def _clip_peer(inputs):
    import torch

    dtype = inputs["a"].dtype.name
    found = {}
    for precision in ("float32", dtype):  # the norm, a float, of PyTorch in float32
        tensors = [torch.zeros(inputs[name].shape, dtype=getattr(torch, precision)) for name in ("a", "b")]
        for tensor, name in zip(tensors, ("a", "b"), strict=True):
            tensor.grad = as_tensor(inputs[name], precision)
        norm = torch.nn.utils.clip_grad_norm_(tensors, inputs["max_norm"], foreach=False)
        found.setdefault("norm", np.float32(norm.item()))
    return found | {name: as_array(t.grad, dtype) for name, t in zip(("a", "b"), tensors, strict=True)}


def _clip_probe(label, max_norm, quick=False, scale=1.0):
    def inputs(rng):
        return {"a": normal(rng, 7, 33, scale=scale), "b": normal(rng, 3, 1031, scale=scale), "max_norm": max_norm}

    return Probe(label, inputs, quick)


CLIP = [
    OpSpec(
        "clip_grad_norm",
        "",
        ("optim.clip_grad_norm",),
        (_clip_probe("to 1", 1.0, quick=True), _clip_probe("to 40", 40.0), _clip_probe("large", 0.7, scale=50.0)),
        _clip_run,
        _clip_exact,
        _clip_peer,
        statistics=("norm",),
    )
]
