"""SGD: bound by memory, and in place.  Reads parameter, gradient and buffer; writes parameter and buffer.

PyTorch's peers are its fused kernel, which is at the limit too, and what a user gets without asking (foreach).
"""
from optimizers import DECODER, ONE, run_optimizer

MOMENTUM = {"momentum": 0.9}
run_optimizer("SGD", "momentum, one of 16 M", ONE, MOMENTUM, state=1)
run_optimizer("SGD", "momentum", DECODER, MOMENTUM, state=1)
run_optimizer("SGD", "plain", DECODER, {}, state=0)
run_optimizer("SGD", "nesterov, decay", DECODER, {**MOMENTUM, "nesterov": True, "weight_decay": 0.01}, state=1)
run_optimizer("SGD", "momentum, clipped", DECODER, MOMENTUM, state=1, max_norm=1.0)
