"""softmax: bound by memory.  Forward reads x and writes y; backward reads dy and y and writes dx."""
from types import SimpleNamespace

import numpy as np
import torch

import ckernels as ck
from harness import run

CASES = {"4096x4096": (4096, 4096), "16x512x512": (16, 512, 512), "64x49152": (64, 49152)}


def make(shape):
    """Inputs for both sides, on the same memory."""
    def make_one(rng):
        s = SimpleNamespace(x=rng.standard_normal(shape, np.float32), dy=rng.standard_normal(shape, np.float32))
        s.ctx = ck.softmax_forward(s.x)[1]
        s.tx, s.tdy = torch.from_numpy(s.x).requires_grad_(), torch.from_numpy(s.dy)
        s.ty = torch.softmax(s.tx, -1)
        s.y, s.out = np.empty_like(s.x), torch.empty(shape)
        s.bare = s.tx.detach()
        return s
    return make_one


def torch_backward(s):
    """Eager, over the recorded graph."""
    return torch.autograd.grad(s.ty, s.tx, s.tdy, retain_graph=True)


for case, shape in CASES.items():
    nbytes = 4 * int(np.prod(shape))
    run("softmax", case, make(shape), lambda s: ck.softmax(s.x), lambda s: torch.softmax(s.bare, -1), nbytes=2 * nbytes,
        ours_out=lambda s: ck.softmax(s.x, out=s.y), theirs_out=lambda s: torch.softmax(s.bare, -1, out=s.out))
    run("softmax_backward", case, make(shape), lambda s: ck.softmax_backward(s.dy, s.ctx), torch_backward,
        nbytes=3 * nbytes)
