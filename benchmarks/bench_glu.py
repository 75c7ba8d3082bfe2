"""swiglu: bound by memory.  Forward reads gate and up and writes y; backward reads three and writes two.

PyTorch's backward runs over a graph recorded beforehand.
"""
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F

import ckernels as ck
from harness import run

CASES = {"512x1536": (512, 1536), "2048x5632": (2048, 5632)}


def make(R, C):
    """Inputs for both sides, on the same memory: halves of one array, as one projection leaves them."""
    def make_one(rng):
        s = SimpleNamespace(both=rng.standard_normal((R, 2 * C), np.float32))
        s.dy = rng.standard_normal((R, C), np.float32)
        s.gate, s.up = s.both[:, :C], s.both[:, C:]
        s.ctx = ck.swiglu_forward(s.gate, s.up)[1]
        s.tdy = torch.from_numpy(s.dy)
        s.tgate, s.tup = (torch.from_numpy(a).requires_grad_() for a in (s.gate, s.up))
        s.ty = F.silu(s.tgate) * s.tup
        return s
    return make_one


def torch_forward(s):
    """Eager, without recording."""
    with torch.no_grad():
        return F.silu(s.tgate) * s.tup


def torch_backward(s):
    """Eager, over the recorded graph."""
    return torch.autograd.grad(s.ty, (s.tgate, s.tup), s.tdy, retain_graph=True)


for case, (R, C) in CASES.items():
    run("swiglu", case, make(R, C), lambda s: ck.swiglu(s.gate, s.up), torch_forward, nbytes=12 * R * C)
    run("swiglu_backward", case, make(R, C), lambda s: ck.swiglu_backward(s.dy, s.ctx), torch_backward,
        nbytes=20 * R * C)
