"""kl_div: bound by memory.  Forward reads two arrays; backward reads the target and writes the gradient."""
from harness import F, normal, pair

CASES = [(4096, 4096), (16384, 1000), (65536, 64), (1, 576)]


def bench(R, C):
    """Beside F.kl_div."""
    def draw(rng, dtype):
        return [normal(rng, (R, C), dtype), abs(normal(rng, (R, C), dtype))]
    pair("kl_div", f"{R}x{C}", draw, F and F.kl_div, moves=(2 * R * C, 2 * R * C), limits=("read", "copy"))


for R, C in CASES:
    bench(R, C)
