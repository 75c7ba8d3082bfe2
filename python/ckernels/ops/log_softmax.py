"""The logarithm of softmax over the last axis."""
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.checks import check_context, gradients

__all__ = ["log_softmax", "log_softmax_forward", "log_softmax_backward"]


class Context(NamedTuple):
    """What backward needs: the result."""

    y: np.ndarray


class Gradients(NamedTuple):
    """Like the input."""

    x: np.ndarray | None = None


def log_softmax(x, *, out=None):
    """Logarithms of the softmax of each row: ``x - logsumexp(x)``.

    Parameters
    ----------
    x : float32, float16 or bfloat16 [..., C]
    out : like x, optional
        Where to write; may be ``x`` itself (in place).

    Returns
    -------
    like x [..., C]
        A row of which all is -inf gives NaN, as in PyTorch.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result; sums run in blocks of 2048
    in 16 lanes, block by block in double.  Never the logarithm of a probability.  Same bits for any number of threads
    and rows.
    Source: `torch.nn.functional.log_softmax`.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.log_softmax(np.float32([[0, 0], [0, 200]]))
    array([[  -0.6931472,   -0.6931472],
           [-200.       ,    0.       ]], dtype=float32)
    """
    return _ck.log_softmax_fwd(out, x)


def log_softmax_forward(x, *, out=None):
    """As :func:`log_softmax`; also returns what :func:`log_softmax_backward` needs.

    Returns
    -------
    y : like x [..., C]
    ctx : Context
        Refers to ``y``: do not overwrite it before backward.  ``x`` is not needed any more.
    """
    y = _ck.log_softmax_fwd(out, x)
    return y, Context(y)


def log_softmax_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradient of :func:`log_softmax`.

    Parameters
    ----------
    dy : like x [..., C]
    ctx : Context
    out : Gradients, optional
        The array to write into; it may be ``dy`` or ``ctx.y`` (in place; after the latter there is no second backward).
    accumulate : bool
        No effect: log_softmax has no parameters, and gradients of inputs are overwritten.

    Returns
    -------
    Gradients
        ``x`` like x.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, another op's ``ctx``, or overlapping ``out``.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> y, ctx = ck.log_softmax_forward(np.float32([[0, 0]]))
    >>> ck.log_softmax_backward(np.float32([[1, 0]]), ctx).x
    array([[ 0.5, -0.5]], dtype=float32)
    """
    check_context("log_softmax_backward", Context, ctx)
    out = gradients("log_softmax_backward", Gradients, out)
    return Gradients(_ck.log_softmax_bwd(out.x, dy, ctx.y))
