"""Optimizers: the arguments, the order of operations and the state of ``torch.optim``, on NumPy arrays."""
from ckernels.optim.adamw import AdamW
from ckernels.optim.clip_grad_norm import clip_grad_norm
from ckernels.optim.sgd import SGD

__all__ = ["AdamW", "SGD", "clip_grad_norm"]
