"""mse_loss: bound by memory.  Forward reads two arrays; backward reads them and writes a third."""
from harness import F, normal, pair

CASES = [(4096, 4096), (16384, 1000), (65536, 64), (1, 576)]


def bench(R, C):
    """Beside F.mse_loss."""
    def draw(rng, dtype):
        return [normal(rng, (R, C), dtype), normal(rng, (R, C), dtype)]
    pair("mse_loss", f"{R}x{C}", draw, F and F.mse_loss, moves=(2 * R * C, 3 * R * C), limits=("read", "copy"))


for R, C in CASES:
    bench(R, C)
