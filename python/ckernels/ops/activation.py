"""Functions of every element by itself."""
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.checks import check_context, gradients

__all__ = ["silu", "silu_backward", "silu_forward"]


class Context(NamedTuple):
    """What backward needs."""

    x: np.ndarray


class Gradients(NamedTuple):
    """Like the inputs."""

    x: np.ndarray | None = None


def silu(x, *, out=None):
    """Multiply each element by its sigmoid: ``x / (1 + exp(-x))``.

    Parameters
    ----------
    x : float32 [..., C]
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
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result; also where the result is
    small: PyTorch gives 0 from -89 down, this the true value to 3 ulp or |x| 2^-149.  ``silu(-inf)`` is NaN, as in
    PyTorch: the arithmetic is ``-inf * 0``.  Source: Elfwing et al. 2018, arXiv:1702.03118.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.silu(np.float32([-1, 0, 1]))
    array([-0.26894143,  0.        ,  0.7310586 ], dtype=float32)
    """
    return _ck.silu_fwd(out, x)


def silu_forward(x, *, out=None):
    """As :func:`silu`; also returns what :func:`silu_backward` needs.

    Returns
    -------
    y : like x [..., C]
    ctx : Context
        Refers to ``x``: do not overwrite it before backward, not by ``out`` either.
    """
    return _ck.silu_fwd(out, x), Context(x)


def silu_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradient of :func:`silu`.

    Parameters
    ----------
    dy : like x [..., C]
    ctx : Context
    out : Gradients, optional
        An array to write into; ``out.x`` may be ``dy`` (in place), or the ``x`` of forward.
    accumulate : bool
        There is no parameter whose gradient could be added to: makes no difference.

    Returns
    -------
    Gradients
        ``x`` like x.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape or layout, another op's ``ctx``, overlapping ``out``.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> y, ctx = ck.silu_forward(np.float32([0, 0]))
    >>> ck.silu_backward(np.float32([1, 2]), ctx).x
    array([0.5, 1. ], dtype=float32)
    """
    check_context("silu_backward", Context, ctx)
    out = gradients("silu_backward", Gradients, out)
    return Gradients(_ck.silu_bwd(out.x, dy, ctx.x))
