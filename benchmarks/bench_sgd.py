"""SGD: bound by memory, and in place.  Reads parameter, gradient and buffer; writes parameter and buffer.

PyTorch's peers are its fused kernel, which is at the limit too, and what a user gets without asking (foreach).
"""
from steps import DECODER, ONE, bench

MOMENTUM = {"momentum": 0.9}
bench("SGD", "momentum, one of 16 M", ONE, MOMENTUM, state=8)
bench("SGD", "momentum, 272", DECODER, MOMENTUM, state=8)
bench("SGD", "plain", DECODER, {}, state=0)
bench("SGD", "nesterov, decay", DECODER, MOMENTUM | {"nesterov": True, "weight_decay": 0.01}, state=8)
bench("SGD", "momentum, clipped", DECODER, MOMENTUM, state=8, max_norm=1.0)
