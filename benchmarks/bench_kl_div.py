"""kl_div: forward reads input and target; backward reads the target and writes the gradient of the input."""
import numpy as np

from harness import F, normal, pair, uniform

CASES = [(4096, 4096), (512, 1536), (16384, 1000), (1, 576)]


def bench(R, C):
    """Beside F.kl_div of log-probabilities and probabilities, summed."""
    def draw(rng, dtype):
        return [normal(rng, (R, C), dtype), (uniform(rng, (R, C)) / np.float32(C)).astype(dtype)]
    pair("kl_div", f"{R}x{C}", draw, lambda x, t: F.kl_div(x, t.detach(), reduction="sum"),
         moves=(2 * R * C, 2 * R * C), options={"reduction": "sum"}, limits=("read", "copy"),
         aims=((None, 0.8), (None, 0.8)), wanted=1)


for R, C in CASES:
    bench(R, C)
