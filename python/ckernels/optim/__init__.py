"""Optimizers: the arguments, the order of operations and the state of ``torch.optim``, on NumPy arrays."""
from ckernels.optim.sgd import SGD

__all__ = ["SGD"]
