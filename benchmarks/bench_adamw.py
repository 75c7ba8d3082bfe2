"""AdamW: bound by memory, and in place.  Reads parameter, gradient and both averages; writes all but the gradient.

PyTorch's peers are its fused kernel, which is at the limit too, and what a user gets without asking (foreach).
"""
from steps import DECODER, ONE, bench

bench("AdamW", "one of 16 M", ONE, {}, state=16)
bench("AdamW", "272 of a decoder", DECODER, {}, state=16)
bench("AdamW", "amsgrad, clipped", DECODER, {"amsgrad": True}, state=24, max_norm=1.0)
