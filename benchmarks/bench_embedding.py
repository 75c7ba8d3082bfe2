"""embedding: bound by memory.  Forward reads a row and writes it; backward writes the whole dense gradient."""
from harness import F, ids, normal, pair

CASES = [(8192, 49152, 2048), (512, 49152, 576), (8192, 50257, 1000), (1, 49152, 576)]  # R, V, C


def bench(R, V, C):
    """Beside F.embedding.  Backward writes V x C; the limit of writing alone is near that of the update."""
    pair("embedding", f"{R} of {V}x{C}", lambda rng, dtype: [ids(rng, R, V), normal(rng, (V, C), dtype)],
         lambda i, w: F.embedding(i, w), moves=(2 * R * C, R * C + V * C), aims=((5, 0.8), (None, None)))


for R, V, C in CASES:
    bench(R, V, C)
