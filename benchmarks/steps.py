"""What the benches of the optimizers share: lists of shapes, and one step of each side on them."""
from math import prod
from types import SimpleNamespace

import ckernels as ck
from harness import normal, run, tensor, torch

ONE = [(4096, 4096)]
# 30 layers of 144 channels, 48 of keys and values, 384 in the middle: a quarter of SmolLM2-135M along each side.
DECODER = [(12288, 144), *[(144, 144), (48, 144), (48, 144), (144, 144), (384, 144), (384, 144), (144, 384), (144,),
                           (144,)] * 30, (144,)]


def _make(kind, shapes, options):
    def make_one(rng, dtype):
        arrays = [normal(rng, shape, dtype) for shape in shapes]
        s = SimpleNamespace(grads=[normal(rng, shape, dtype) for shape in shapes])
        s.opt = getattr(ck.optim, kind)(arrays, lr=1e-3, **options)
        s.opt.step(s.grads)  # so that the state is there
        if torch:
            s.fused, s.foreach = (_theirs(kind, arrays, s.grads, options, way) for way in ("fused", "foreach"))
        return s
    return make_one


def _theirs(kind, arrays, grads, options, way):
    """PyTorch's, on copies of the parameters, stepped once."""
    tensors = [torch.nn.Parameter(tensor(a.copy())) for a in arrays]
    for t, g in zip(tensors, grads, strict=True):
        t.grad = tensor(g)
    found = getattr(torch.optim, kind)(tensors, lr=1e-3, **{way: True}, **options)
    found.step()
    return found


def _clipped(optimizer, max_norm):
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], max_norm)
    optimizer.step()


def bench(kind, case, shapes, options, *, state, max_norm=None, aim=(1, 0.8)):
    """Bench ``ck.optim.<kind>``, whose step reads and writes ``state`` bytes of float32 state an element.

    The state of 16-bit parameters has 16 bits in PyTorch, so that it moves less.
    """
    n = sum(map(prod, shapes))
    if max_norm is None:
        step, theirs, each = (lambda s: s.opt.step(s.grads)), (lambda s: s.fused.step()), (lambda s: s.foreach.step())
    else:  # the gradients are read once more; theirs are clipped once and for all, and multiplied all the same
        def step(s):
            return s.opt.step(s.grads, max_norm=max_norm)

        def theirs(s):
            _clipped(s.fused, max_norm)

        def each(s):
            _clipped(s.foreach, max_norm)

    run(kind.lower(), case, _make(kind, shapes, options), step, theirs, limit="update",
        nbytes=lambda size: n * (size * (3 + (max_norm is not None)) + state), aim=aim,
        beside={"foreach": each} if torch else None)
