"""cross_entropy: forward reads the logits once, backward reads them and writes their gradient; a step does both."""
from types import SimpleNamespace

import ckernels as ck
from harness import F, ids, normal, pair, run, tensor, torch

CASES = [(512, 49152), (4096, 4096), (512, 50257), (65536, 64), (1, 576)]


def both(s):
    """As a training step does."""
    loss, ctx = ck.cross_entropy_forward(s.x, s.t)
    return loss, ck.cross_entropy_backward(1.0, ctx)


def torch_both(s):
    """Eager, as a training step does."""
    return torch.autograd.grad(F.cross_entropy(s.tx, s.tt), s.tx)


def bench(R, V):
    """Beside F.cross_entropy."""
    def draw(rng, dtype):
        return [normal(rng, (R, V), dtype), ids(rng, R, V)]

    def make(rng, dtype):
        x, t = draw(rng, dtype)
        return SimpleNamespace(x=x, t=t, tx=tensor(x, grad=True), tt=tensor(t))
    pair("cross_entropy", f"{R}x{V}", draw, F and F.cross_entropy, moves=(R * V, 2 * R * V), limits=("read", "copy"))
    run("cross_entropy fwd+bwd", f"{R}x{V}", make, both, torch_both, nbytes=lambda size: 3 * size * R * V,
        aim=(10, None))


for R, V in CASES:
    bench(R, V)
