"""Normalisation by mean and variance over the last axis."""
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.checks import check_context, flag, gradients

__all__ = ["layer_norm", "layer_norm_backward", "layer_norm_forward"]


class Context(NamedTuple):
    """What backward needs; ``mean`` and ``rstd`` are float32 [...], one a row."""

    x: np.ndarray
    weight: np.ndarray | None
    bias: np.ndarray | None
    mean: np.ndarray
    rstd: np.ndarray


class Gradients(NamedTuple):
    """Like the inputs; ``weight`` and ``bias`` are None where there was none."""

    x: np.ndarray | None = None
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None


def layer_norm(x, weight=None, bias=None, eps=1e-5, *, out=None):
    """Take the mean off each row, divide by its standard deviation, then scale and shift.

    Parameters
    ----------
    x : float32, float16 or bfloat16 [..., C]
    weight, bias : like x or float32 [C], optional
        Each may be there without the other.
    eps : float
        Added to the variance, inside the root.
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
    in float32 and rounded once.  The variance takes two passes, and the mean is kept in double: rows with an offset ten
    thousand times their spread are as exact as others.  Same bits for any number of threads and rows.  Source: Ba,
    Kiros and Hinton 2016, arXiv:1607.06450.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.layer_norm(np.array([[3, 5, 7]], "f4"), eps=0.0)
    array([[-1.2247449,  0.       ,  1.2247449]], dtype=float32)
    """
    return _ck.layer_norm_fwd(out, None, None, x, weight, bias, eps)[0]


def layer_norm_forward(x, weight=None, bias=None, eps=1e-5, *, out=None):
    """As :func:`layer_norm`; also returns what :func:`layer_norm_backward` needs.

    Returns
    -------
    y : like x [..., C]
    ctx : Context
        Refers to ``x`` and ``weight``: do not overwrite them before backward.
    """
    y, mean, rstd = _ck.layer_norm_fwd(out, True, True, x, weight, bias, eps)
    return y, Context(x, weight, bias, mean, rstd)


def layer_norm_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradients of :func:`layer_norm`.

    Parameters
    ----------
    dy : like x [..., C]
    ctx : Context
    out : Gradients, optional
        Arrays to write into; a field that is None gets a new one.  ``out.x`` may be ``dy`` (in place).
    accumulate : bool
        Add the gradients of weight and bias to ``out.weight`` and ``out.bias`` instead of overwriting them.

    Returns
    -------
    Gradients
        ``x`` like x, ``weight`` and ``bias`` [C] in the dtype of theirs, or None.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape or layout, another op's ``ctx``, overlapping ``out``.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result.  The gradients of weight
    and bias are summed over fixed blocks of rows, then block by block in double.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> y, ctx = ck.layer_norm_forward(np.float32([[3, 5, 7]]), np.float32([1, 1, 1]), np.float32([0, 0, 0]), eps=0.0)
    >>> ck.layer_norm_backward(np.float32([[1, 0, 2]]), ctx).weight
    array([-1.2247449,  0.       ,  2.4494898], dtype=float32)
    """
    check_context("layer_norm_backward", Context, ctx)
    has = {"weight": ctx.weight is not None, "bias": ctx.bias is not None}
    dx, dweight, dbias = gradients("layer_norm_backward", Gradients, out, [name for name in has if not has[name]])
    accumulate = flag("layer_norm_backward", "accumulate", accumulate)
    add_weight, add_bias = (accumulate and given is not None for given in (dweight, dbias))
    return Gradients(*_ck.layer_norm_bwd(
        dx, True if dweight is None and has["weight"] else dweight, True if dbias is None and has["bias"] else dbias,
        dy, ctx.x, ctx.weight, ctx.bias, ctx.mean, ctx.rstd, add_weight, add_bias))
