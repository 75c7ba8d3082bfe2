"""Specs of embedding, the residual and the norms."""

import numpy as np

from .spec import Probe, family, normal


def _embedding(rng, *, shape, V, C, same=False, kind=np.int64):
    ids = np.full(shape, V - 2, kind) if same else rng.integers(0, V, shape).astype(kind)
    return {"ids": ids, "weight": normal(rng, V, C)}


def _embedding_formula(torch, ids, weight):
    return torch.nn.functional.embedding(ids.long(), weight)


EMBEDDING = family(
    "embedding",
    [
        Probe("repeated ids, int64", lambda r: _embedding(r, shape=(3, 11), V=17, C=33), quick=True),
        Probe("int32, 576 channels", lambda r: _embedding(r, shape=(29,), V=97, C=576, kind=np.int32)),
        Probe("one id 1000 times", lambda r: _embedding(r, shape=(1000,), V=5, C=31, same=True)),
    ],
    _embedding_formula,
    eager=_embedding_formula,
    wrt=("weight",),
    bitwise=True,
)


def _add_formula(torch, x, y, alpha=1.0):
    return x + alpha * y


def _add_eager(torch, x, y, alpha=1.0):
    return torch.add(x, y, alpha=alpha)


ADD = family(
    "add",
    [
        Probe("alpha 1", lambda r: {"x": normal(r, 3, 5, 33), "y": normal(r, 3, 5, 33)}, quick=True),
        Probe("alpha -0.3", lambda r: {"x": normal(r, 7, 577), "y": normal(r, 7, 577, scale=9), "alpha": -0.3}),
    ],
    _add_formula,
    eager=_add_eager,
    wrt=("x", "y"),
)


def _norm_inputs(rng, *shape, scale=1.0, weight=True, **options):
    inputs = {"x": normal(rng, *shape, scale=scale)}
    if weight:
        # Away from one, and of both signs.
        inputs["weight"] = normal(rng, shape[-1], scale=0.5) + np.float32(0.7)
    return inputs | options


def _rms_norm_formula(torch, x, weight=None, eps=1e-6, offset=0.0):
    y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return y if weight is None else y * (offset + weight)


def _rms_norm_eager(torch, x, weight=None, eps=1e-6, offset=0.0):
    if weight is not None and offset:
        weight = offset + weight
    return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, eps)


def _rows_of_all_sizes(rng):
    inputs = _norm_inputs(rng, 13, 96, eps=1e-5)
    inputs["x"] *= (10.0 ** np.linspace(-5, 3, 13)).astype(np.float32)[:, None]
    return inputs


RMS_NORM = family(
    "rms_norm",
    [
        Probe("7 rows of 576", lambda r: _norm_inputs(r, 7, 576), quick=True),
        Probe("tiny rms, eps decides", lambda r: _norm_inputs(r, 5, 97, scale=1e-3, eps=1e-6), quick=True),
        Probe("rows from 1e-5 to 1e3", _rows_of_all_sizes),
        Probe("offset 1", lambda r: _norm_inputs(r, 3, 5, 64, offset=1.0, eps=1e-5)),
        Probe("no weight", lambda r: _norm_inputs(r, 2, 3, 33, weight=False, eps=1e-2)),
        Probe("rows of 17", lambda r: _norm_inputs(r, 5, 17)),
        Probe("one row of 4097", lambda r: _norm_inputs(r, 1, 4097)),
        Probe("300 rows of 31", lambda r: _norm_inputs(r, 300, 31)),
    ],
    _rms_norm_formula,
    eager=_rms_norm_eager,
    wrt=("x", "weight"),
    weights=("weight",),
)


def _add_rms_norm_formula(torch, x, residual, weight, eps):
    total = residual + x
    return _rms_norm_formula(torch, total, weight, eps), total


def _add_rms_norm_eager(torch, x, residual, weight, eps):
    total = residual + x  # in 16 bits it is rounded here, and what is normalised is the rounded sum, as in ours
    if weight.dtype != total.dtype:
        return _rms_norm_eager(torch, total.float(), weight, eps).to(total.dtype), total
    return _rms_norm_eager(torch, total, weight, eps), total


def _add_norm_inputs(rng, *shape, scale=1.0, eps=1e-6):
    inputs = _norm_inputs(rng, *shape, scale=scale, eps=eps)
    return {"x": inputs["x"], "residual": normal(rng, *shape, scale=2 * scale), **inputs}


ADD_RMS_NORM = family(
    "add_rms_norm",
    [
        Probe("7 rows of 576", lambda r: _add_norm_inputs(r, 7, 576), quick=True),
        Probe("tiny rms, eps decides", lambda r: _add_norm_inputs(r, 3, 5, 97, scale=5e-4)),
        Probe("rows of 17", lambda r: _add_norm_inputs(r, 5, 17, eps=1e-5)),
    ],
    _add_rms_norm_formula,
    eager=_add_rms_norm_eager,
    outputs=("y", "sum"),
    wrt=("x", "residual", "weight"),
    weights=("weight",),
    aside=("weight",),
)
