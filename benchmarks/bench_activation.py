"""silu: bound by memory.  Forward reads x and writes y; backward reads x and dy and writes dx."""
from harness import F, normal, pair, torch

CASES = [(4096, 4096), (512, 1536), (16384, 1000), (65536, 64), (1, 576)]


def bench(R, C):
    """Beside F.silu, and its own kernel for the gradient."""
    pair("silu", f"{R}x{C}", lambda rng, dtype: [normal(rng, (R, C), dtype)], F and F.silu,
         moves=(2 * R * C, 3 * R * C), peer_backward=lambda dy, x: torch.ops.aten.silu_backward(dy, x))


for R, C in CASES:
    bench(R, C)
