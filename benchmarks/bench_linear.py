"""linear on the shapes of real models, plain and packed weight, forward and backward."""
import numpy as np
import torch

import ckernels as ck
from products import run

FORWARD = [(512, 576, 1536), (512, 576, 49152), (512, 2048, 2048), (2048, 2048, 2048), (128, 576, 1536),
           (64, 4096, 4096), (16, 4096, 4096), (1, 4096, 4096), (1, 576, 1536), (33, 3072, 768), (700, 1111, 901)]
BACKWARD = [(512, 576, 1536), (512, 2048, 2048)]


def bench_forward(R, K, N):
    """Our call with a plain and with a packed weight."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape, dtype="f4") for shape in ((R, K), (N, K)))
    packed, tx, tw = ck.pack(w), torch.from_numpy(x), torch.from_numpy(w)
    run(f"fwd {R}x{K}x{N}", 2 * R * K * N,
        {"": lambda: ck.linear(x, w), "packed": lambda: ck.linear(x, packed)},
        lambda: torch.nn.functional.linear(tx, tw))


def bench_backward(R, K, N):
    """Gradients of x, weight and bias."""
    rng = np.random.default_rng(0)
    x, w, b, dy = (rng.standard_normal(shape, dtype="f4") for shape in ((R, K), (N, K), (N,), (R, N)))
    ctx = ck.linear_forward(x, w, b)[1]
    leaves = [torch.from_numpy(a).requires_grad_() for a in (x, w, b)]
    y, tdy = torch.nn.functional.linear(*leaves), torch.from_numpy(dy)
    run(f"bwd {R}x{K}x{N}", 4 * R * K * N, {"": lambda: ck.linear_backward(dy, ctx)},
        lambda: torch.autograd.grad(y, leaves, tdy, retain_graph=True))


for size in FORWARD:
    bench_forward(*size)
for size in BACKWARD:
    bench_backward(*size)
