"""swiglu: bound by memory.  Forward reads gate and up and writes y; backward reads three and writes two.

gate and up are halves of one array, as one projection leaves them.
"""
from harness import F, normal, pair

CASES = [(4096, 4096), (512, 1536), (2048, 5632), (16384, 1000), (65536, 64), (1, 1536)]


def bench(R, C):
    """Beside silu and a product."""
    def draw(rng, dtype):
        both = normal(rng, (R, 2 * C), dtype)
        return [both[:, :C], both[:, C:]]
    pair("swiglu", f"{R}x{C}", draw, lambda gate, up: F.silu(gate) * up, moves=(3 * R * C, 5 * R * C),
         aims=((8, 0.8), (8, 0.8)))


for R, C in CASES:
    bench(R, C)
