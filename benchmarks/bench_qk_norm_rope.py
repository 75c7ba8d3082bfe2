"""qk_norm_rope: bound by memory.  Forward reads x and writes y; backward reads x and dy and writes dx.

PyTorch has no such op: the peer is F.rms_norm and then what transformers runs in eager mode,
x * cos + rotate_half(x) * sin.
"""
from math import prod

import numpy as np

import ckernels as ck
from harness import F, normal, run, tensor, torch, uniform

# B, H, T, D
CASES = {"qwen3 4096": (1, 32, 4096, 128), "qwen3 keys 1024": (1, 8, 1024, 128), "32 decode": (32, 32, 1, 128),
         "1 token": (1, 16, 1, 128)}


class Inputs:
    """Arrays, tensors over the same memory, and what backward needs."""

    def __init__(self, rng, dtype, B, H, T, D):
        self.x, self.dy = (normal(rng, (B, H, T, D), dtype) for _ in range(2))
        self.w = uniform(rng, D, dtype)
        self.tables = ck.rope_table(np.arange(100, 100 + T), D)
        self.ctx = ck.qk_norm_rope_forward(self.x, self.w, *self.tables)[1]
        if torch:
            self.leaves = [tensor(a, grad=True) for a in (self.x, self.w)]
            self.tcos, self.tsin = (torch.cat([t, t], -1).to(self.leaves[0].dtype) for t in map(tensor, self.tables))
            self.tdy, self.ty = tensor(self.dy), self.peer()

    def peer(self):
        """Eager."""
        x, w = self.leaves
        y = F.rms_norm(x, w.shape, w, 1e-6)
        lo, hi = y.chunk(2, -1)
        return y * self.tcos + torch.cat([-hi, lo], -1) * self.tsin


def forward(s):
    """Ours."""
    return ck.qk_norm_rope(s.x, s.w, *s.tables)


def backward(s):
    """Ours."""
    return ck.qk_norm_rope_backward(s.dy, s.ctx)


def theirs(s):
    """Eager, without recording."""
    with torch.no_grad():
        return s.peer()


def theirs_backward(s):
    """Over the recorded graph."""
    return torch.autograd.grad(s.ty, s.leaves, s.tdy, retain_graph=True)


def bench(case, *shape):
    """Both directions."""
    def make(rng, dtype):
        return Inputs(rng, dtype, *shape)
    run("qk_norm_rope", case, make, forward, theirs, nbytes=lambda size: 2 * size * prod(shape), aim=(15, 0.8))
    run("qk_norm_rope_backward", case, make, backward, theirs_backward, nbytes=lambda size: 3 * size * prod(shape),
        aim=(15, 0.8))


for case, shape in CASES.items():
    bench(case, *shape)
