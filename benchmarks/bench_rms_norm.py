"""rms_norm: bound by memory.  Forward reads x and writes y; backward reads x and dy and writes dx.

PyTorch's backward runs over a graph recorded beforehand.
"""
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F

import ckernels as ck
from harness import run

CASES = {"512x576": (512, 576), "2048x2048": (2048, 2048), "4096x4096": (4096, 4096)}


def make(R, C):
    """Inputs for both sides, on the same memory."""
    def make_one(rng):
        s = SimpleNamespace(x=rng.standard_normal((R, C), np.float32), dy=rng.standard_normal((R, C), np.float32),
                            w=rng.uniform(0.5, 1.5, C).astype(np.float32))
        s.ctx = ck.rms_norm_forward(s.x, s.w)[1]
        s.tdy = torch.from_numpy(s.dy)
        s.tx, s.tw = (torch.from_numpy(a).requires_grad_() for a in (s.x, s.w))
        s.ty = F.rms_norm(s.tx, s.tw.shape, s.tw, 1e-6)
        return s
    return make_one


def torch_forward(s):
    """Eager, without recording."""
    with torch.no_grad():
        return F.rms_norm(s.tx, s.tw.shape, s.tw, 1e-6)


def torch_backward(s):
    """Eager, over the recorded graph."""
    return torch.autograd.grad(s.ty, (s.tx, s.tw), s.tdy, retain_graph=True)


for case, (R, C) in CASES.items():
    nbytes = 4 * R * C
    run("rms_norm", case, make(R, C), lambda s: ck.rms_norm(s.x, s.w), torch_forward, nbytes=2 * nbytes)
    run("rms_norm_backward", case, make(R, C), lambda s: ck.rms_norm_backward(s.dy, s.ctx), torch_backward,
        nbytes=3 * nbytes)
