"""l2_norm: bound by memory.  Forward reads x and writes y; backward reads x and dy and writes dx.

PyTorch has no such op (F.normalize takes the larger of length and eps): the peer is what linear attention writes.
"""
from harness import normal, pair, torch

CASES = [(4096, 4096), (16384, 1000), (65536, 64), (1, 128)]


def bench(R, C):
    """Beside x * rsqrt(sum of squares + eps)."""
    pair("l2_norm", f"{R}x{C}", lambda rng, dtype: [normal(rng, (R, C), dtype)],
         lambda x: x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6), moves=(2 * R * C, 3 * R * C))


for R, C in CASES:
    bench(R, C)
