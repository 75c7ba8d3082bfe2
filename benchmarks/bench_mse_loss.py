"""mse_loss: forward reads input and target; backward reads them and writes the gradient of the input."""
from harness import F, normal, pair

CASES = [(4096, 4096), (512, 1536), (16384, 1000), (1, 576)]


def bench(R, C):
    """Beside F.mse_loss, whose target takes no gradient."""
    def draw(rng, dtype):
        return [normal(rng, (R, C), dtype), normal(rng, (R, C), dtype)]
    pair("mse_loss", f"{R}x{C}", draw, lambda x, t: F.mse_loss(x, t.detach()), moves=(2 * R * C, 3 * R * C),
         limits=("read", "copy"), aims=((None, 0.8), (None, 0.8)), wanted=1)


for R, C in CASES:
    bench(R, C)
