"""SGD: bound by memory, and in place.  Reads parameter, gradient and buffer; writes parameter and buffer.

PyTorch's peers are its fused kernel, which is at the limit too, and what a user gets without asking (foreach).
"""
from math import prod
from types import SimpleNamespace

import ckernels as ck
from harness import normal, run, tensor, torch

CASES = {"momentum": {"momentum": 0.9}, "plain": {},
         "nesterov, decay": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}}
SHAPES = [(576, 576), (1536, 576), (576, 1536), (2048, 2048), (576,)] * 2


def make(options):
    """A small model's parameters, stepped once so that the buffers are there."""
    def make_one(rng, dtype):
        params = [normal(rng, shape, dtype) for shape in SHAPES]
        s = SimpleNamespace(grads=[normal(rng, shape, dtype) for shape in SHAPES])
        s.opt = ck.optim.SGD(params, lr=1e-3, **options)
        s.opt.step(s.grads)
        if torch:
            s.fused, s.each = (optimizer(params, s.grads, options, fused) for fused in (True, None))
        return s
    return make_one


def optimizer(params, grads, options, fused):
    """PyTorch's, on copies of the parameters, stepped once."""
    tensors = [torch.nn.Parameter(tensor(p.copy())) for p in params]
    for t, g in zip(tensors, grads, strict=True):
        t.grad = tensor(g)
    found = torch.optim.SGD(tensors, lr=1e-3, fused=fused, **options)
    found.step()
    return found


def bench(case, options):
    """Float32 parameters: a 16-bit parameter has a float32 buffer here and a 16-bit one there."""
    n = sum(prod(shape) for shape in SHAPES)
    run("sgd", case, make(options), lambda s: s.opt.step(s.grads), lambda s: s.fused.step(), limit="update",
        nbytes=lambda size: n * (size * 3 + (8 if options else 0)), dtypes=["float32"], aim=(1, 0.8),
        beside={"foreach": lambda s: s.each.step()} if torch else None)


for case, options in CASES.items():
    bench(case, options)
