"""What the benches of the optimizers share: lists of shapes, and one step of each side on them."""
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import torch

import ckernels as ck
from harness import run

ONE = [(4096, 4096)]
# 30 layers of 144 channels, 48 of keys and values, 384 in the middle: a quarter of SmolLM2-135M along each side.
DECODER = [(12288, 144), *[(144, 144), (48, 144), (48, 144), (144, 144), (384, 144), (384, 144), (144, 384), (144,),
                           (144,)] * 30, (144,)]


def _make(kind, shapes, peer, options, dtype):
    def make_one(rng):
        arrays, grads = ([rng.standard_normal(shape, np.float32) for shape in shapes] for _ in range(2))
        if dtype == "bfloat16":
            arrays, grads = ([a.astype(ml_dtypes.bfloat16) for a in some] for some in (arrays, grads))
        s = SimpleNamespace(grads=grads, opt=getattr(ck.optim, kind)(arrays, lr=1e-3, **options))
        s.tensors = [torch.nn.Parameter(_tensor(a.copy())) for a in arrays]
        for tensor, grad in zip(s.tensors, grads, strict=True):
            tensor.grad = _tensor(grad)
        s.topt = getattr(torch.optim, kind)(s.tensors, lr=1e-3, **{peer: True}, **options)
        s.opt.step(s.grads)  # so that the state is there
        s.topt.step()
        return s
    return make_one


def _tensor(array):
    if array.dtype == np.float32:
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)


def run_optimizer(kind, case, shapes, peer, options, *, nbytes, max_norm=None, dtype="float32"):
    """Bench steps of ``ck.optim.<kind>`` and ``torch.optim.<kind>``; ``peer`` is "fused" or "foreach"."""
    def theirs(s):
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(s.tensors, max_norm)
        s.topt.step()

    n = sum(int(np.prod(shape)) for shape in shapes)
    run(f"{kind.lower()} ({peer})", case, _make(kind, shapes, peer, options, dtype),
        lambda s: s.opt.step(s.grads, max_norm=max_norm), theirs, nbytes=nbytes * n)
