"""rms_norm: bound by memory.  Forward reads x and writes y; backward reads x and dy and writes dx."""
from harness import F, normal, pair, uniform

CASES = [(4096, 4096), (512, 576), (16384, 1000), (334, 50257), (3, 4000000), (65536, 64), (1, 576)]


def bench(R, C):
    """Beside F.rms_norm with a weight."""
    pair("rms_norm", f"{R}x{C}", lambda rng, dtype: [normal(rng, (R, C), dtype), uniform(rng, C, dtype)],
         lambda x, w: F.rms_norm(x, w.shape, w, 1e-6), moves=(2 * R * C, 3 * R * C), aims=((15, 0.8), (25, 0.8)))


for R, C in CASES:
    bench(R, C)
