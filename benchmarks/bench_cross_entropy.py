"""cross_entropy: forward reads the logits once, backward reads them and writes their gradient (here: in place too)."""
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F

import ckernels as ck
from harness import run

CASES = {"512x49152": (512, 49152), "4096x4096": (4096, 4096)}


def make(R, V):
    """Inputs for both sides, on the same memory."""
    def make_one(rng):
        s = SimpleNamespace(x=rng.standard_normal((R, V), np.float32), t=rng.integers(0, V, R))
        s.ctx = ck.cross_entropy_forward(s.x, s.t)[1]
        s.tx, s.tt = torch.from_numpy(s.x).requires_grad_(), torch.from_numpy(s.t)
        s.ty = F.cross_entropy(s.tx, s.tt)
        return s
    return make_one


def torch_forward(s):
    """Eager, without recording."""
    with torch.no_grad():
        return F.cross_entropy(s.tx, s.tt)


def torch_backward(s):
    """Eager, over the recorded graph."""
    return torch.autograd.grad(s.ty, s.tx, retain_graph=True)


def torch_both(s):
    """Eager, as a training step does."""
    return torch.autograd.grad(F.cross_entropy(s.tx, s.tt), s.tx)


def our_both(s):
    """As a training step does."""
    loss, ctx = ck.cross_entropy_forward(s.x, s.t)
    return loss, ck.cross_entropy_backward(1.0, ctx)


for case, (R, V) in CASES.items():
    nbytes = 4 * R * V
    run("cross_entropy", case, make(R, V), lambda s: ck.cross_entropy(s.x, s.t), torch_forward, nbytes=nbytes)
    run("cross_entropy_backward", case, make(R, V), lambda s: ck.cross_entropy_backward(1.0, s.ctx), torch_backward,
        nbytes=2 * nbytes)
    run("cross_entropy fwd+bwd", case, make(R, V), our_both, torch_both, nbytes=3 * nbytes)
