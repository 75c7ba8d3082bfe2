"""linear_cross_entropy on the heads of real models: forward, and a training step, beside PyTorch's two ops.

Operations counted: 2 a weight and row forward, 6 in a step; ours computes
the logits a second time, which is not counted.
"""
from types import SimpleNamespace

import ckernels as ck
from ckernels.ops.cross_entropy import Gradients
from harness import F, ids, normal, run, tensor, torch

CASES = [  # rows, channels, classes, dtypes: the large one in float32 alone, since a call takes seconds
    (256, 576, 49152, ("float32", "float16", "bfloat16")),
    (512, 2048, 32000, ("float32",)),
]


def both(s):
    """As a training step does."""
    loss, ctx = ck.linear_cross_entropy_forward(s.x, s.w, s.t)
    return loss, ck.linear_cross_entropy_backward(1.0, ctx)


def unfused(s):
    """The same by our two ops, which hold the logits."""
    logits, inner = ck.linear_forward(s.x, s.w)
    loss, ctx = ck.cross_entropy_forward(logits, s.t)
    dlogits = ck.cross_entropy_backward(1.0, ctx, out=Gradients(logits))  # in place
    return loss, ck.linear_backward(dlogits.logits, inner)


def torch_both(s):
    """Eager, as a training step does."""
    return torch.autograd.grad(F.cross_entropy(F.linear(s.tx, s.tw), s.tt), (s.tx, s.tw))


def torch_forward(s):
    """The loss alone."""
    with torch.no_grad():
        return F.cross_entropy(F.linear(s.tx, s.tw), s.tt)


def make(R, C, V):
    """Hidden states, a weight of their scale, and targets."""
    def make_one(rng, dtype="float32"):
        w = (normal(rng, (V, C)) * C**-0.5).astype(dtype)
        s = SimpleNamespace(x=normal(rng, (R, C), dtype), w=w, t=ids(rng, R, V))
        s.tx, s.tw, s.tt = tensor(s.x, grad=True), tensor(s.w, grad=True), tensor(s.t)
        return s
    return make_one


for R, C, V, dtypes in CASES:
    run("linear_cross_entropy", f"{R}x{C}x{V}", make(R, C, V), lambda s: ck.linear_cross_entropy(s.x, s.w, s.t),
        torch_forward, flops=2 * R * C * V, dtypes=dtypes)
    run("linear_cross_entropy fwd+bwd", f"{R}x{C}x{V}", make(R, C, V), {"": both, "unfused": unfused}, torch_both,
        flops=6 * R * C * V, dtypes=dtypes)
    run("linear_cross_entropy_grads", f"{R}x{C}x{V}", make(R, C, V),
        lambda s: ck.linear_cross_entropy_grads(s.x, s.w, s.t), torch_both, flops=6 * R * C * V,
        dtypes=dtypes)
