"""add: bound by memory.  Forward reads x and y and writes their sum; backward reads dy and writes two gradients.

PyTorch's backward runs over a graph recorded beforehand; it copies no gradient where alpha is 1.
"""
from types import SimpleNamespace

import numpy as np
import torch

import ckernels as ck
from harness import run

CASES = {"512x576": (512, 576), "2048x2048": (2048, 2048), "4096x4096": (4096, 4096)}


def make(R, C):
    """Inputs for both sides, on the same memory."""
    def make_one(rng):
        s = SimpleNamespace(x=rng.standard_normal((R, C), np.float32), y=rng.standard_normal((R, C), np.float32))
        s.out = np.empty_like(s.x)
        s.tx, s.ty, s.tout = (torch.from_numpy(a) for a in (s.x, s.y, s.out))
        s.ctx = ck.add_forward(s.x, s.y, 0.5)[1]
        return s
    return make_one


for case, (R, C) in CASES.items():
    run("add", case, make(R, C), lambda s: ck.add(s.x, s.y), lambda s: torch.add(s.tx, s.ty), nbytes=12 * R * C,
        ours_out=lambda s: ck.add(s.x, s.y, out=s.out), theirs_out=lambda s: torch.add(s.tx, s.ty, out=s.tout))
    run("add_backward", case, make(R, C), lambda s: ck.add_backward(s.x, s.ctx), lambda s: (s.tx.clone(), 0.5 * s.tx),
        nbytes=12 * R * C)
