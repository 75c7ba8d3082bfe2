"""Activations: bound by memory.  Forward reads x and writes y; backward reads x (or y) and dy and writes dx.

PyTorch's gradients are its own kernels, called without a graph; softcap's is autograd over three ops.
"""
from harness import F, normal, pair, torch

CASES = [(4096, 4096), (512, 1536), (16384, 1000), (65536, 64), (1, 576)]
PEERS = {  # op, variant: (arguments, PyTorch's forward, its backward, aims)
    ("silu", ""): ({}, lambda x: F.silu(x), lambda dy, x: torch.ops.aten.silu_backward(dy, x), (None, None)),
    ("gelu", "tanh"): ({"approximate": "tanh"}, lambda x: F.gelu(x, approximate="tanh"),
                       lambda dy, x: torch.ops.aten.gelu_backward(dy, x, approximate="tanh"), (10, 8)),
    ("gelu", "erf"): ({}, lambda x: F.gelu(x), lambda dy, x: torch.ops.aten.gelu_backward(dy, x), (5, None)),
    ("gelu", "sigmoid"): ({"approximate": "sigmoid"}, lambda x: x * torch.sigmoid(1.702 * x), None, (None, None)),
    ("relu", ""): ({}, lambda x: F.relu(x), lambda dy, x: torch.ops.aten.threshold_backward(dy, x, 0),
                   (None, None)),
    ("sigmoid", ""): ({}, lambda x: torch.sigmoid(x), None, (None, None)),
    ("tanh", ""): ({}, lambda x: torch.tanh(x), None, (None, None)),
    ("softcap", ""): ({"cap": 30.0}, lambda x: 30 * torch.tanh(x / 30), None, (None, None)),
}


def bench(op, variant, R, C):
    """One op on one shape."""
    options, peer, backward, aims = PEERS[op, variant]
    pair(op, f"{R}x{C}", lambda rng, dtype: [normal(rng, (R, C), dtype)], peer, moves=(2 * R * C, 3 * R * C),
         options=options, peer_backward=backward, aims=tuple((aim, 0.8) for aim in aims), variant=variant)


for op, variant in PEERS:
    for R, C in CASES if op == "silu" else CASES[:1]:
        bench(op, variant, R, C)
