"""embedding: bound by memory.  Forward reads a row and writes it; backward writes the whole dense gradient."""
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F

import ckernels as ck
from harness import run

CASES = {"512 of 49152x576": (512, 49152, 576), "8192 of 49152x2048": (8192, 49152, 2048)}  # R, V, C


def make(R, V, C):
    """Inputs for both sides, on the same memory."""
    table = np.random.default_rng(0).standard_normal((V, C), np.float32)
    weight = torch.from_numpy(table).requires_grad_()

    def make_one(rng):
        s = SimpleNamespace(ids=rng.integers(0, V, R), dy=rng.standard_normal((R, C), np.float32), w=table, tw=weight)
        s.ctx = ck.embedding_forward(s.ids, s.w)[1]
        s.tids, s.tdy = torch.from_numpy(s.ids), torch.from_numpy(s.dy)
        s.ty = F.embedding(s.tids, weight)
        return s
    return make_one


def torch_forward(s):
    """Eager, without recording."""
    with torch.no_grad():
        return F.embedding(s.tids, s.tw)


def torch_backward(s):
    """Eager, over the recorded graph."""
    return torch.autograd.grad(s.ty, s.tw, s.tdy, retain_graph=True)


for case, (R, V, C) in CASES.items():
    run("embedding", case, make(R, V, C), lambda s: ck.embedding(s.ids, s.w), torch_forward, nbytes=8 * R * C)
    run("embedding_backward", case, make(R, V, C), lambda s: ck.embedding_backward(s.dy, s.ctx), torch_backward,
        nbytes=4 * (R * C + V * C))
