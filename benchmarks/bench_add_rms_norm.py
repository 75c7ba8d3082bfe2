"""add_rms_norm: bound by memory.  Forward reads two and writes two; backward reads three and writes one.

PyTorch has no such op: the peer is the sum and F.rms_norm.
"""
from harness import F, normal, pair, uniform

CASES = [(4096, 4096), (512, 576), (16384, 1000), (334, 50257), (65536, 64), (1, 576)]


def both(x, residual, w):
    """Eager."""
    h = residual + x
    return F.rms_norm(h, w.shape, w, 1e-6), h


def bench(R, C):
    """Beside two ops of PyTorch."""
    def draw(rng, dtype):
        return [normal(rng, (R, C), dtype), normal(rng, (R, C), dtype), uniform(rng, C, dtype)]
    pair("add_rms_norm", f"{R}x{C}", draw, both, moves=(4 * R * C, 4 * R * C))


for R, C in CASES:
    bench(R, C)
