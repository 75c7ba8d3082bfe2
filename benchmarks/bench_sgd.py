"""SGD: bound by memory, and in place.  Reads parameter, gradient and buffer; writes parameter and buffer.

PyTorch's peers are its fused kernel, which is at the limit too, and what a user gets without asking (foreach).
"""
from types import SimpleNamespace

import numpy as np
import torch

import ckernels as ck
from harness import run

CASES = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov, decay": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
}
SHAPES = [(576, 576), (1536, 576), (576, 1536), (2048, 2048), (576,)] * 2


def make(options, fused):
    """A small model's parameters, stepped once so that the buffers are there."""
    def make_one(rng):
        params = [rng.standard_normal(shape, np.float32) for shape in SHAPES]
        s = SimpleNamespace(grads=[rng.standard_normal(shape, np.float32) for shape in SHAPES])
        s.opt = ck.optim.SGD(params, lr=1e-3, **options)
        tensors = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in params]
        for t, g in zip(tensors, s.grads, strict=True):
            t.grad = torch.from_numpy(g)
        s.topt = torch.optim.SGD(tensors, lr=1e-3, fused=fused, **options)
        s.opt.step(s.grads)
        s.topt.step()
        return s
    return make_one


n = sum(int(np.prod(shape)) for shape in SHAPES)
for case, options in CASES.items():
    nbytes = 4 * n * (5 if options else 3)
    for fused in True, None:
        run("sgd" if fused else "sgd (foreach)", case, make(options, fused), lambda s: s.opt.step(s.grads),
            lambda s: s.topt.step(), nbytes=nbytes)
