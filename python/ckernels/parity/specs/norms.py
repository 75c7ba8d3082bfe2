"""Specs of the norms."""

import numpy as np

from .rotary import _rope_formula, _rope_inputs
from .spec import Probe, family, normal


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
        Probe("3 rows in pieces", lambda r: _norm_inputs(r, 3, 100003)),
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


def _layer_norm_inputs(rng, *shape, scale=1.0, offset=0.0, weight=True, bias=True, **options):
    inputs = {"x": normal(rng, *shape, scale=scale) + np.float32(offset)}
    if weight:
        inputs["weight"] = normal(rng, shape[-1], scale=0.5) + np.float32(0.7)
    if bias:
        inputs["bias"] = normal(rng, shape[-1])
    return inputs | options


def _layer_norm_formula(torch, x, weight=None, bias=None, eps=1e-5):
    distance = x - x.mean(-1, keepdim=True)
    y = distance * torch.rsqrt(distance.pow(2).mean(-1, keepdim=True) + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _layer_norm_eager(torch, x, weight=None, bias=None, eps=1e-5):
    if x.dtype not in (torch.float32, torch.float64):
        # PyTorch keeps the mean of 16-bit rows in 16 bits, so that its gradient of the weight is off by an eighth where
        # the mean is a hundred times the spread, and measures nothing: in float32, rounded once.
        parameters = (None if p is None else p.float() for p in (weight, bias))
        return torch.nn.functional.layer_norm(x.float(), (x.shape[-1],), *parameters, eps).to(x.dtype)
    return torch.nn.functional.layer_norm(x, (x.shape[-1],), weight, bias, eps)


LAYER_NORM = family(
    "layer_norm",
    [
        Probe("7 rows of 576", lambda r: _layer_norm_inputs(r, 7, 576), quick=True),
        Probe("tiny spread, eps decides", lambda r: _layer_norm_inputs(r, 5, 97, scale=1e-3, eps=1e-6), quick=True),
        Probe("an offset of 100", lambda r: _layer_norm_inputs(r, 11, 96, offset=100.0), quick=True),
        Probe("no bias", lambda r: _layer_norm_inputs(r, 3, 5, 64, bias=False)),
        Probe("no weight", lambda r: _layer_norm_inputs(r, 2, 7, 33, weight=False)),
        Probe("neither", lambda r: _layer_norm_inputs(r, 2, 3, 33, weight=False, bias=False, eps=1e-2)),
        Probe("one row of 4097", lambda r: _layer_norm_inputs(r, 1, 4097)),
        Probe("300 rows of 31", lambda r: _layer_norm_inputs(r, 300, 31)),
    ],
    _layer_norm_formula,
    eager=_layer_norm_eager,
    wrt=("x", "weight", "bias"),
    weights=("weight", "bias"),
)


def _l2_norm_formula(torch, x, eps=1e-6):
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + eps)


def _lengths(rng, *shape, scale=1.0, **options):
    return {"x": normal(rng, *shape, scale=scale)} | options


L2_NORM = family(
    "l2_norm",
    [
        Probe("heads of 128", lambda r: _lengths(r, 2, 3, 7, 128), quick=True),
        Probe("tiny rows, eps decides", lambda r: _lengths(r, 5, 97, scale=1e-4), quick=True),
        Probe("rows of 17", lambda r: _lengths(r, 31, 17, eps=1e-3)),
        Probe("one row of 4097", lambda r: _lengths(r, 1, 4097)),
    ],
    _l2_norm_formula,
)


def _qk_norm_rope_formula(torch, x, weight, cos, sin, eps=1e-6, positions=None, interleaved=False):
    return _rope_formula(torch, _rms_norm_formula(torch, x, weight, eps), cos, sin, positions, interleaved)


def _qk_norm_rope_eager(torch, x, weight, cos, sin, eps=1e-6, positions=None, interleaved=False):
    return _rope_formula(torch, _rms_norm_eager(torch, x, weight, eps), cos, sin, positions, interleaved)


def _qk_inputs(rng, B, H, T, D, *, scale=1.0, eps=1e-6, **options):
    inputs = _rope_inputs(rng, B, H, T, D, **options)
    inputs["x"] *= np.float32(scale)
    return inputs | {"weight": normal(rng, D, scale=0.5) + np.float32(0.7), "eps": eps}


QK_NORM_ROPE = family(
    "qk_norm_rope",
    [
        Probe("queries, D 128", lambda r: _qk_inputs(r, 2, 3, 17, 128), quick=True),
        Probe("interleaved, D 80", lambda r: _qk_inputs(r, 2, 3, 5, 80, interleaved=True), quick=True),
        Probe("tiny rms, eps decides", lambda r: _qk_inputs(r, 1, 5, 7, 64, scale=1e-3)),
        Probe("partial width 32 of 80", lambda r: _qk_inputs(r, 2, 3, 7, 80, width=32)),
        Probe("partial, interleaved", lambda r: _qk_inputs(r, 2, 5, 7, 96, width=24, interleaved=True)),
        Probe("positions [T], offset 4095", lambda r: _qk_inputs(r, 2, 3, 5, 32, positions=[9, 4, 4095, 7, 31])),
        Probe(
            "positions [B,T], D 34",
            lambda r: _qk_inputs(r, 2, 3, 5, 34, positions=[[1, 2, 3, 4, 5], [70, 71, 8, 9, 1000]]),
        ),
    ],
    _qk_norm_rope_formula,
    eager=_qk_norm_rope_eager,
    wrt=("x", "weight"),
    weights=("weight",),
    floats=("cos", "sin"),
)
