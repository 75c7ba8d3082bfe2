"""The residual connection."""
from typing import NamedTuple

import numpy as np

from ckernels import _ck

__all__ = ["add"]


def add(x, y, alpha=1.0, *, out=None):
    """x + alpha*y."""
    return _ck.add_fwd(out, x, y, alpha)
