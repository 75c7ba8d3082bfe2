"""add: bound by memory.  Forward reads x and y and writes their sum; backward reads dy and writes two gradients."""
from harness import normal, pair, torch

CASES = [(4096, 4096), (512, 576), (2048, 2048), (16384, 1000), (65536, 64), (1, 576)]


def bench(R, C):
    """Beside torch.add; the gradients of x + y / 2, which PyTorch would return as they are where alpha is 1."""
    def draw(rng, dtype):
        return [normal(rng, (R, C), dtype), normal(rng, (R, C), dtype)]
    pair("add", f"{R}x{C}", draw, lambda x, y: torch.add(x, y, alpha=0.5), moves=(3 * R * C, 3 * R * C),
         options={"alpha": 0.5}, peer_out=lambda out, x, y: torch.add(x, y, alpha=0.5, out=out),
         peer_backward=lambda dy, x, y: (dy.clone(), 0.5 * dy), aims=((4, 0.8), (None, 0.8)))


for R, C in CASES:
    bench(R, C)
