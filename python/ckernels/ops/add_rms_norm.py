"""The residual connection and the norm that follows it, in one pass."""
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.checks import check_context, gradients, several

__all__ = ["add_rms_norm", "add_rms_norm_backward", "add_rms_norm_forward"]

_PAIR = ("the norm", "the sum")


class Context(NamedTuple):
    """What backward needs; ``h`` is the sum, ``rstd`` float32 [...], one a row."""

    h: np.ndarray
    weight: np.ndarray
    rstd: np.ndarray


class Gradients(NamedTuple):
    """Like the inputs; ``x`` and ``residual`` are one array, unless ``out`` held two."""

    x: np.ndarray | None = None
    residual: np.ndarray | None = None
    weight: np.ndarray | None = None


def add_rms_norm(x, residual, weight, eps=1e-6, *, out=None):
    """Add ``x`` to the residual stream and norm the sum.

    Parameters
    ----------
    x, residual : float32, float16 or bfloat16 [..., C]
    weight : like x or float32 [C]
    eps : float
        Added to the mean square, inside the root.
    out : tuple of two arrays like x, optional
        Where to write the norm and the sum; None for one makes it.  Each may be ``x`` or ``residual`` (in place).

    Returns
    -------
    y, h : like x [..., C]
        ``h = residual + x`` and ``y = rms_norm(h, weight, eps)``.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result.  Same bits as
    :func:`ckernels.add` and :func:`ckernels.rms_norm` one after the other, for any number of threads and rows.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> y, h = ck.add_rms_norm(np.float32([[1, 2]]), np.float32([[2, 2]]), np.float32([1, 2]), eps=0.0)
    >>> y, h
    (array([[0.84852815, 2.2627418 ]], dtype=float32), array([[3., 4.]], dtype=float32))
    """
    y, h = several("add_rms_norm", "out", out, _PAIR)
    y, h, _ = _ck.add_rms_norm_fwd(y, h, None, x, residual, weight, eps)
    return y, h


def add_rms_norm_forward(x, residual, weight, eps=1e-6, *, out=None):
    """As :func:`add_rms_norm`; also returns what :func:`add_rms_norm_backward` needs.

    Returns
    -------
    (y, h) : tuple of two arrays like x [..., C]
    ctx : Context
        Refers to ``h`` and ``weight``: do not overwrite them before backward.  ``x`` and ``residual`` are not kept.
    """
    y, h = several("add_rms_norm", "out", out, _PAIR)
    y, h, rstd = _ck.add_rms_norm_fwd(y, h, True, x, residual, weight, eps)
    return (y, h), Context(h, weight, rstd)


def add_rms_norm_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradients of :func:`add_rms_norm`.

    Parameters
    ----------
    dy : tuple of two arrays like x [..., C]
        Of the norm and of the sum.
    ctx : Context
    out : Gradients, optional
        Arrays to write into; a field that is None gets a new one.  ``out.x`` may be one of ``dy`` (in place).
    accumulate : bool
        Add the weight's gradient to ``out.weight`` instead of overwriting it.

    Returns
    -------
    Gradients
        ``x`` and ``residual`` have the same gradient, and are one array; where ``out`` holds two, both are written.
        ``weight`` like weight [C].

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
    >>> (y, h), ctx = ck.add_rms_norm_forward(np.float32([[1, 2]]), np.float32([[2, 2]]), np.float32([1, 1]), eps=0.0)
    >>> ck.add_rms_norm_backward((np.float32([[1, 0]]), np.float32([[0, 0]])), ctx).weight
    array([0.84852815, 0.        ], dtype=float32)
    """
    dy, dh = several("add_rms_norm_backward", "dy", dy, _PAIR)
    check_context("add_rms_norm_backward", Context, ctx)
    dx, dresidual, dweight = gradients("add_rms_norm_backward", Gradients, out)
    one = dx is None or dresidual is None or dx is dresidual
    add = dweight is not None and accumulate
    dx, second, dweight = _ck.add_rms_norm_bwd(
        (dresidual if dx is None else dx), (None if one else dresidual), (True if dweight is None else dweight),
        dy, dh, ctx.h, ctx.weight, ctx.rstd, add)
    return Gradients(dx, dx if one else second, dweight)
