"""Specs of embedding and the residual."""

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
