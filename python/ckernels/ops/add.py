"""The residual connection."""
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.checks import check_context, gradients

__all__ = ["add", "add_backward", "add_forward"]


class Context(NamedTuple):
    """What backward needs: no array."""

    alpha: float


class Gradients(NamedTuple):
    """Like the inputs."""

    x: np.ndarray | None = None
    y: np.ndarray | None = None


def add(x, y, alpha=1.0, *, out=None):
    """Add ``alpha * y`` to ``x``.

    Parameters
    ----------
    x, y : float32, float16 or bfloat16 [..., C]
        Of one shape: nothing is broadcast.
    alpha : float
        Rounded to float32.
    out : like x, optional
        Where to write; may be ``x`` or ``y`` itself (in place).

    Returns
    -------
    like x [..., C]

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``.

    Notes
    -----
    Error: half an ulp, the one rounding of a fused multiply-add; on baseline also that of the product.
    Source: `torch.add`.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.add(np.float32([1, 2]), np.float32([10, 20]), alpha=0.5)
    array([ 6., 12.], dtype=float32)
    """
    return _ck.add_fwd(out, x, y, alpha)


def add_forward(x, y, alpha=1.0, *, out=None):
    """As :func:`add`; also returns what :func:`add_backward` needs.

    Returns
    -------
    out : like x [..., C]
    ctx : Context
        Refers to no array: ``x`` and ``y`` may be overwritten.
    """
    return _ck.add_fwd(out, x, y, alpha), Context(alpha)


def add_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradients of :func:`add`: ``dy`` for ``x``, ``alpha * dy`` for ``y``.

    Parameters
    ----------
    dy : like x [..., C]
        Gradient of the sum.
    ctx : Context
    out : Gradients, optional
        Arrays to write into; one of them may be ``dy`` (in place).
    accumulate : bool
        There is no parameter whose gradient could be added to: makes no difference.

    Returns
    -------
    Gradients
        ``x`` and ``y``, each an array of its own.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape or layout, another op's ``ctx``, overlapping ``out``.

    Notes
    -----
    Error: none for x, half an ulp for y.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> y, ctx = ck.add_forward(np.float32([1, 2]), np.float32([3, 4]), alpha=2.0)
    >>> ck.add_backward(np.float32([1, 1]), ctx).y
    array([2., 2.], dtype=float32)
    """
    check_context("add_backward", Context, ctx)
    return Gradients(*_ck.add_bwd(*gradients("add_backward", Gradients, out), dy, ctx.alpha))
