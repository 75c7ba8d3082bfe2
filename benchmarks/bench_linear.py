"""linear on the shapes of real models, plain and packed weight, forward and backward, beside OpenBLAS too."""
from types import SimpleNamespace

import ckernels as ck
from harness import F, normal, run, tensor, torch
from openblas import through

FORWARD = [(2048, 2048, 2048), (512, 576, 1536), (512, 576, 49152), (512, 2048, 2048), (128, 576, 1536),
           (64, 4096, 4096), (16, 4096, 4096), (4, 4096, 4096), (1, 4096, 4096), (1, 576, 1536), (33, 3072, 768),
           (700, 1111, 901)]
SHORT = [(512, 2048, 2048), (64, 4096, 4096), (16, 4096, 4096), (1, 4096, 4096)]  # in 16 bits too
AIMS = {(2048, 2048, 2048): (1, 0.9), (128, 576, 1536): (1.15, 0.8), (64, 4096, 4096): (1.15, 0.8),
        (16, 4096, 4096): (1.5, None), (4, 4096, 4096): (1.5, None), (1, 4096, 4096): (1.25, None),
        (1, 576, 1536): (1, None)}
ENDS = ["relu", "silu", "gelu", "gelu_tanh", "gelu_sigmoid", "sigmoid", "tanh"]
BACKWARD = [(512, 2048, 2048), (512, 576, 1536)]


def make(R, K, N):
    """Our call with a plain and with a packed weight."""
    def make_one(rng, dtype="float32"):
        s = SimpleNamespace(x=normal(rng, (R, K), dtype), w=normal(rng, (N, K), dtype))
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


def end_of(name):
    """PyTorch's function of that name."""
    return {"relu": F.relu, "silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
            "gelu_sigmoid": lambda z: z * torch.sigmoid(1.702 * z), "sigmoid": torch.sigmoid, "tanh": torch.tanh}[name]


def backward(s):
    """All three gradients."""
    return ck.linear_backward(s.dy, s.ctx)


def torch_backward(s):
    """Eager, over the recorded graph."""
    return torch.autograd.grad(s.ty, s.leaves, s.tdy, retain_graph=True)


for R, K, N in FORWARD:
    run("linear", f"{R}x{K}x{N}", make(R, K, N), {"": ours, "packed": lambda s: ck.linear(s.x, s.packed)},
        lambda s: F.linear(s.tx, s.tw), flops=2 * R * K * N, beside=through(ours), dtypes=("float32",),
        aim=AIMS.get((R, K, N), (1, 0.8)))
for R, K, N in SHORT:
    run("linear", f"{R}x{K}x{N}", make(R, K, N), {"": ours, "packed": lambda s: ck.linear(s.x, s.packed)},
        lambda s: F.linear(s.tx, s.tw), flops=2 * R * K * N, dtypes=("float16", "bfloat16"))
for end in ENDS:
    run(f"linear {end}", "512x576x1536", make(512, 576, 1536),
        {"packed": lambda s, end=end: ck.linear(s.x, s.packed, activation=end)},
        lambda s, end=end: end_of(end)(F.linear(s.tx, s.tw)), flops=2 * 512 * 576 * 1536, dtypes=("float32",))
for R, K, N in BACKWARD:
    run("linear_backward", f"{R}x{K}x{N}", make_backward(R, K, N), backward, torch_backward, flops=4 * R * K * N,
        beside=through(backward))
