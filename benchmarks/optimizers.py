"""What the benches of the optimizers share: lists of shapes, and one step of each side on them."""
from math import prod
from types import SimpleNamespace

import ckernels as ck
from harness import normal, run, tensor, torch

ONE = [(4096, 4096)]
# 30 layers of 144 channels, 48 of keys and values, 384 in the middle: a quarter of SmolLM2-135M along each side.
DECODER = [(12288, 144), *[(144, 144), (48, 144), (48, 144), (144, 144), (384, 144), (384, 144), (144, 384), (144,),
                           (144,)] * 30, (144,)]


def _peer(kind, arrays, grads, options, how):
    """PyTorch's, on copies of the parameters, stepped once."""
    tensors = [torch.nn.Parameter(tensor(a.copy())) for a in arrays]
    for each, grad in zip(tensors, grads, strict=True):
        each.grad = tensor(grad)
    found = getattr(torch.optim, kind)(tensors, lr=1e-3, **{how: True}, **options)
    found.step()
    return tensors, found


def _make(kind, shapes, options):
    def make_one(rng, dtype):
        arrays, grads = ([normal(rng, shape, dtype) for shape in shapes] for _ in range(2))
        s = SimpleNamespace(grads=grads, opt=getattr(ck.optim, kind)(arrays, lr=1e-3, **options))
        s.opt.step(grads)  # so that the state is there
        if torch:
            s.tensors, s.fused = _peer(kind, arrays, grads, options, "fused")
            s.others, s.foreach = _peer(kind, arrays, grads, options, "foreach")
        return s
    return make_one


def run_optimizer(kind, case, shapes, options, *, state, max_norm=None, aim=(1, 0.8)):
    """Bench steps of ``ck.optim.<kind>`` beside torch's fused one, and its foreach.

    ``state`` arrays are read and written.  Parameter and gradient are of the call's dtype, the state here is float32,
    there of the parameter's dtype.
    """
    def clipped(tensors, optimizer):
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(tensors, max_norm)
        optimizer.step()

    n = sum(prod(shape) for shape in shapes)
    run(kind.lower(), case, _make(kind, shapes, options), lambda s: s.opt.step(s.grads, max_norm=max_norm),
        lambda s: clipped(s.tensors, s.fused), limit="update", aim=aim,
        nbytes=lambda size: n * (size * (3 if max_norm is None else 4) + 8 * state),
        beside={"foreach": lambda s: clipped(s.others, s.foreach)} if torch else None)
