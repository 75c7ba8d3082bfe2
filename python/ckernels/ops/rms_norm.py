"""Root-mean-square normalisation over the last axis."""
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.checks import check_context, gradients

__all__ = ["rms_norm", "rms_norm_forward", "rms_norm_backward"]


class Context(NamedTuple):
    """What backward needs; ``rstd`` is float32 [...], one a row."""

    x: np.ndarray
    weight: np.ndarray | None
    rstd: np.ndarray
    offset: float


class Gradients(NamedTuple):
    """Like the inputs; ``weight`` is None where there was none."""

    x: np.ndarray | None = None
    weight: np.ndarray | None = None


def rms_norm(x, weight=None, eps=1e-6, *, offset=0.0, out=None):
    """Divide each row by its root mean square, then scale by ``offset + weight``.

    Parameters
    ----------
    x : float32, float16 or bfloat16 [..., C]
    weight : like x or float32 [C], optional
    eps : float
        Added to the mean square, inside the root.
    offset : float
        Added to the weight: 1 for Gemma.
    out : like x, optional
        Where to write; may be ``x`` itself (in place).

    Returns
    -------
    like x [..., C]

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result; 16-bit results are computed
    in float32 and rounded once.  Same bits for any number of threads and rows.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.rms_norm(np.array([[3, 4]], "f4"), eps=0.0)
    array([[0.84852815, 1.1313709 ]], dtype=float32)
    """
    return _ck.rms_norm_fwd(out, None, x, weight, eps, offset)[0]


def rms_norm_forward(x, weight=None, eps=1e-6, *, offset=0.0, out=None):
    """As :func:`rms_norm`; also returns what :func:`rms_norm_backward` needs.

    Returns
    -------
    y : like x [..., C]
    ctx : Context
        Refers to ``x`` and ``weight``: do not overwrite them before backward.
    """
    y, rstd = _ck.rms_norm_fwd(out, True, x, weight, eps, offset)
    return y, Context(x, weight, rstd, offset)


def rms_norm_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradients of :func:`rms_norm`.

    Parameters
    ----------
    dy : like x [..., C]
    ctx : Context
    out : Gradients, optional
        Arrays to write into; a field that is None gets a new one.  ``out.x`` may be ``dy`` (in place).
    accumulate : bool
        Add the weight's gradient to ``out.weight`` instead of overwriting it.

    Returns
    -------
    Gradients
        ``x`` like x, ``weight`` like weight [C] or None.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape or layout, another op's ``ctx``, overlapping ``out``.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result.  The weight's gradient is
    summed over fixed blocks of rows, then block by block in double.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> y, ctx = ck.rms_norm_forward(np.float32([[3, 4]]), np.float32([1, 1]), eps=0.0)
    >>> ck.rms_norm_backward(np.float32([[1, 0]]), ctx).weight
    array([0.84852815, 0.        ], dtype=float32)
    """
    check_context("rms_norm_backward", Context, ctx)
    dx, dweight = gradients("rms_norm_backward", Gradients, out, () if ctx.weight is not None else ("weight",))
    add = dweight is not None and accumulate
    if dweight is None and ctx.weight is not None:
        dweight = True
    return Gradients(*_ck.rms_norm_bwd(dx, dweight, dy, ctx.x, ctx.weight, ctx.rstd, ctx.offset, add))
