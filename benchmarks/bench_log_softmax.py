"""log_softmax: bound by memory.  Forward reads x and writes y; backward reads dy and y and writes dx."""
from harness import normal, pair, torch

CASES = [(4096, 4096), (16384, 1000), (334, 50257), (1, 576)]


def bench(R, C):
    """Beside torch.log_softmax."""
    pair("log_softmax", f"{R}x{C}", lambda rng, dtype: [normal(rng, (R, C), dtype)],
         lambda x: torch.log_softmax(x, -1), moves=(2 * R * C, 3 * R * C), aims=((None, 0.8), (None, 0.8)))


for R, C in CASES:
    bench(R, C)
