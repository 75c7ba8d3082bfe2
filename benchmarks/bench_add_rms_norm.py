"""add_rms_norm: bound by memory.  Forward reads two and writes two; backward reads three and writes one.

PyTorch has no such op: the peer is the sum and F.rms_norm.  Its backward runs over a graph recorded beforehand.
"""
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F

import ckernels as ck
from harness import run

CASES = {"512x576": (512, 576), "4096x4096": (4096, 4096)}


def make(R, C):
    """Inputs for both sides, on the same memory."""
    def make_one(rng):
        s = SimpleNamespace(**{name: rng.standard_normal((R, C), np.float32) for name in ("x", "residual", "dy", "dh")})
        s.w = rng.uniform(0.5, 1.5, C).astype(np.float32)
        s.ctx = ck.add_rms_norm_forward(s.x, s.residual, s.w)[1]
        s.dys = torch.from_numpy(s.dy), torch.from_numpy(s.dh)
        s.leaves = [torch.from_numpy(a).requires_grad_() for a in (s.x, s.residual, s.w)]
        s.outputs = both(s)
        return s
    return make_one


def both(s):
    """Eager."""
    x, residual, w = s.leaves
    h = residual + x
    return F.rms_norm(h, w.shape, w, 1e-6), h


def torch_forward(s):
    """Eager, without recording."""
    with torch.no_grad():
        return both(s)


def torch_backward(s):
    """Eager, over the recorded graph."""
    return torch.autograd.grad(s.outputs, s.leaves, s.dys, retain_graph=True)


for case, (R, C) in CASES.items():
    run("add_rms_norm", case, make(R, C), lambda s: ck.add_rms_norm(s.x, s.residual, s.w), torch_forward,
        nbytes=16 * R * C)
    run("add_rms_norm_backward", case, make(R, C), lambda s: ck.add_rms_norm_backward((s.dy, s.dh), s.ctx),
        torch_backward, nbytes=16 * R * C)
