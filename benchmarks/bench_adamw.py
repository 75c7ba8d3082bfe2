"""AdamW: bound by memory, and in place.  Reads parameter, gradient and both averages; writes all but the gradient.

PyTorch's peers are its fused kernel, which is at the limit too, and what a user gets without asking (foreach).  The
list of many tensors has the shapes of a 135M model of 30 layers, each side a quarter as long.
"""
from optimizers import DECODER, ONE, run_optimizer

for peer in "fused", "foreach":
    for case, shapes in {"one of 16 M": ONE, "272 of a decoder": DECODER}.items():
        run_optimizer("AdamW", case, shapes, peer, {}, nbytes=28)
run_optimizer("AdamW", "amsgrad, clipped", DECODER, "fused", {"amsgrad": True}, nbytes=40, max_norm=1.0)
run_optimizer("AdamW", "bfloat16", ONE, "fused", {}, nbytes=22, dtype="bfloat16")
