"""SGD: bound by memory, and in place.  Reads parameter, gradient and buffer; writes parameter and buffer.

PyTorch's peers are its fused kernel, which is at the limit too, and what a user gets without asking (foreach).
"""
from optimizers import DECODER, ONE, run_optimizer

CASES = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov, decay": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
}
for peer in "fused", "foreach":
    for case, options in CASES.items():
        run_optimizer("SGD", case, DECODER, peer, options, nbytes=20 if options else 12)
    run_optimizer("SGD", "momentum, one of 16 M", ONE, peer, CASES["momentum"], nbytes=20)
run_optimizer("SGD", "momentum, clipped", DECODER, "fused", CASES["momentum"], nbytes=24, max_norm=1.0)
run_optimizer("SGD", "momentum, bfloat16", ONE, "fused", CASES["momentum"], nbytes=14, dtype="bfloat16")
