"""layer_norm: bound by memory.  Forward reads x and writes y; backward reads x and dy and writes dx."""
from harness import F, normal, pair, uniform

CASES = [(4096, 4096), (512, 576), (16384, 1000), (334, 50257), (3, 4000000), (65536, 64), (1, 576)]


def bench(R, C):
    """Beside F.layer_norm with a weight and a bias."""
    def draw(rng, dtype):
        return [normal(rng, (R, C), dtype), uniform(rng, C, dtype), normal(rng, C, dtype)]
    pair("layer_norm", f"{R}x{C}", draw, lambda x, w, b: F.layer_norm(x, w.shape, w, b, 1e-5),
         moves=(2 * R * C, 3 * R * C), aims=((5, 0.8), (4, 0.8)))


for R, C in CASES:
    bench(R, C)
