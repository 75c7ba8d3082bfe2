"""AdamW: bound by memory, and in place.  Reads parameter, gradient and both averages; writes all but the gradient.

PyTorch's peers are its fused kernel, which is at the limit too, and what a user gets without asking (foreach).  The
list of many tensors has the shapes of a 135M model of 30 layers, each side a quarter as long.
"""
from optimizers import DECODER, ONE, run_optimizer

run_optimizer("AdamW", "one of 16 M", ONE, {}, state=2)
run_optimizer("AdamW", "272 of a decoder", DECODER, {}, state=2)
run_optimizer("AdamW", "amsgrad, clipped", DECODER, {"amsgrad": True}, state=3, max_norm=1.0)
