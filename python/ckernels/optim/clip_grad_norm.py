"""The norm of all gradients, and clipping by it."""
import math

import numpy as np

from ckernels import _ck
from ckernels.optim.lists import batches, call, dtype_of, is_array, number, rows

__all__ = ["clip_grad_norm"]


def norm_of(where, keys, grads):
    """Return the norm of all ``grads`` but None; squares are added in double, in a fixed order."""
    total = np.zeros(1)
    for _, some in batches((i for i, grad in enumerate(grads) if grad is not None), [dtype_of(grad) for grad in grads]):
        call(where, [keys[i] for i in some], {}, _ck.sum_of_squares, total, [grads[i] for i in some], True)
    return math.sqrt(total[0])


def clip_factor(norm, max_norm):
    """Return what gradients are multiplied by: ``max_norm / (norm + 1e-6)``, at most 1; a NaN stays."""
    factor = float(max_norm) / (norm + 1e-6)
    return 1.0 if factor > 1 else factor


def clip_grad_norm(grads, max_norm, *, error_if_nonfinite=False):
    """Scale gradients in place so that their norm, all of them taken as one vector, is at most ``max_norm``.

    ``torch.nn.utils.clip_grad_norm_``: they are multiplied by ``max_norm / (norm + 1e-6)`` if that is less than 1. An
    optimizer's ``step(grads, max_norm=...)`` does the same without the pass that writes them.

    Parameters
    ----------
    grads : dict or sequence of arrays
        Of any shapes; float32, float16 or bfloat16; writeable, without memory in common. None stands for a missing one.
    max_norm : float
        At least 0.
    error_if_nonfinite : bool
        Raise if the norm is NaN or infinite. Otherwise a NaN norm makes NaN of every gradient; an infinite one makes 0
        of what is finite.

    Returns
    -------
    float
        The norm before clipping. Squares are added in double, in an order that follows from the shapes: it is within
        1e-14 of the exact one, for any number of threads the same bits.

    Raises
    ------
    TypeError, ValueError
        An array of the wrong kind, dtype or layout, read-only, or sharing memory. Nothing has been scaled.
    RuntimeError
        The norm is not finite, with ``error_if_nonfinite``. Nothing has been scaled.

    Notes
    -----
    Source: `torch.nn.utils.clip_grad_norm_`, version 2.13.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> grads = {"w": np.float32([3, 0]), "b": np.float32([4])}
    >>> ck.optim.clip_grad_norm(grads, 1.0)
    5.0
    >>> grads["b"]
    array([0.79999983], dtype=float32)
    """
    where = "clip_grad_norm()"
    number(where, "max_norm", max_norm, 0)
    if not hasattr(grads, "keys") and not isinstance(grads, (list, tuple)):
        raise TypeError(f"{where}: 'grads' must be a dict or a list of arrays, not {type(grads).__name__}")
    keyed = [(key, grad) for key, grad in (grads.items() if hasattr(grads, "keys") else enumerate(grads))
             if grad is not None]
    for key, grad in keyed:
        if not is_array(grad):
            raise TypeError(f"{where}: 'grads'[{key!r}] must be an array, not {type(grad).__name__}")
    keys, arrays = [key for key, _ in keyed], [rows(grad) for _, grad in keyed]
    split = [some for _, some in batches(range(len(keys)), [dtype_of(array) for array in arrays])]

    def scale_all(factor):
        for some in split:
            call(where, [keys[i] for i in some], {}, _ck.grad_scale, [arrays[i] for i in some], factor)

    scale_all(1.0)  # multiplies nothing: refuses what must not be written
    norm = norm_of(where, keys, arrays)
    if error_if_nonfinite and not math.isfinite(norm):
        raise RuntimeError(f"{where}: the norm of 'grads' is {norm}")
    scale_all(clip_factor(norm, max_norm))
    return norm
