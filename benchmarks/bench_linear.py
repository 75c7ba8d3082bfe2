"""linear on the shapes of real models, plain and packed weight, forward and backward, beside OpenBLAS too."""
from types import SimpleNamespace

import ckernels as ck
from harness import F, normal, run, tensor, torch
from openblas import through

FORWARD = [(2048, 2048, 2048), (512, 576, 1536), (512, 576, 49152), (512, 2048, 2048), (128, 576, 1536),
           (64, 4096, 4096), (16, 4096, 4096), (1, 4096, 4096), (1, 576, 1536), (33, 3072, 768), (700, 1111, 901)]
BACKWARD = [(512, 2048, 2048), (512, 576, 1536)]


def make(R, K, N):
    """Our call with a plain and with a packed weight."""
    def make_one(rng):
        s = SimpleNamespace(x=normal(rng, (R, K)), w=normal(rng, (N, K)))
        s.packed, s.tx, s.tw = ck.pack(s.w), tensor(s.x), tensor(s.w)
        return s
    return make_one


def make_backward(R, K, N):
    """Gradients of x, weight and bias."""
    def make_one(rng):
        arrays = [normal(rng, shape) for shape in ((R, K), (N, K), (N,))]
        s = SimpleNamespace(dy=normal(rng, (R, N)), ctx=ck.linear_forward(*arrays)[1])
        if torch:
            s.leaves = [tensor(a, grad=True) for a in arrays]
            s.ty, s.tdy = F.linear(*s.leaves), tensor(s.dy)
        return s
    return make_one


def ours(s):
    """A plain weight."""
    return ck.linear(s.x, s.w)


def backward(s):
    """All three gradients."""
    return ck.linear_backward(s.dy, s.ctx)


def torch_backward(s):
    """Eager, over the recorded graph."""
    return torch.autograd.grad(s.ty, s.leaves, s.tdy, retain_graph=True)


for R, K, N in FORWARD:
    run("linear", f"{R}x{K}x{N}", make(R, K, N), {"": ours, "packed": lambda s: ck.linear(s.x, s.packed)},
        lambda s: F.linear(s.tx, s.tw), flops=2 * R * K * N, beside=through(ours))
for R, K, N in BACKWARD:
    run("linear_backward", f"{R}x{K}x{N}", make_backward(R, K, N), backward, torch_backward, flops=4 * R * K * N,
        beside=through(backward))
