"""log_softmax: bound by memory.  Forward reads x and writes y; backward reads dy and y and writes dx."""
from math import prod

from harness import normal, pair, torch

CASES = [(4096, 4096), (64, 49152), (16384, 1000), (334, 50257), (3, 4000000), (65536, 64), (1, 576)]


def bench(*shape):
    """Beside torch.log_softmax."""
    n = prod(shape)
    pair("log_softmax", "x".join(map(str, shape)), lambda rng, dtype: [normal(rng, shape, dtype)],
         lambda x: torch.log_softmax(x, -1), moves=(2 * n, 3 * n),
         peer_out=lambda out, x: torch.log_softmax(x, -1, out=out), aims=((None, 0.8), (None, 0.8)))


for shape in CASES:
    bench(*shape)
