"""Matrix products, one or a batch."""
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.checks import check_context, gradients

__all__ = ["matmul", "matmul_forward", "matmul_backward"]


class Context(NamedTuple):
    """What backward needs: the operands."""

    a: np.ndarray
    b: np.ndarray
    transpose_a: bool
    transpose_b: bool


class Gradients(NamedTuple):
    """Like the operands."""

    a: np.ndarray | None = None
    b: np.ndarray | None = None


def _way(transpose_a, transpose_b, direction):
    return getattr(_ck, f"matmul_{'nt'[bool(transpose_a)]}{'nt'[bool(transpose_b)]}_{direction}")


def _refuse_batch(a, b, op):
    """Leading axes agree, or b has none; all else the op itself refuses."""
    shape, other = (tuple(getattr(x, "shape", ())) for x in (a, b))
    batch, other = shape[:-2], other[:-2]
    if other and other != batch and len(shape) >= 2:
        raise ValueError(f"{op}(): 'b' has leading axes {other}, 'a' has {batch}: they must be equal, or 'b' has none")


def matmul(a, b, *, transpose_a=False, transpose_b=False, out=None):
    """Multiply matrices, or a batch of them item by item.

    Parameters
    ----------
    a : float32 [..., M, K], or [..., K, M] with ``transpose_a``
    b : float32 [..., K, N], or [..., N, K] with ``transpose_b``
        With the leading axes of ``a``, or two axes alone: then every item is multiplied by the same ``b``.
    transpose_a, transpose_b : bool
        How the operand lies in memory; nothing is copied.
    out : float32 [..., M, N], optional

    Returns
    -------
    float32 [..., M, N]

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``.

    Notes
    -----
    The order of additions and the promises of :func:`ckernels.linear`: k in blocks of 64, one ascending chain of fused
    multiply-adds in each, then the blocks in order, whichever way the operands lie.  The last axis of an operand must
    be contiguous: ``matmul(a, b.swapaxes(-1, -2))`` is spelled ``matmul(a, b, transpose_b=True)``.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.matmul(np.array([[1, 2]], "f4"), np.array([[3], [4]], "f4"))
    array([[11.]], dtype=float32)
    """
    _refuse_batch(a, b, "matmul")
    return _way(transpose_a, transpose_b, "fwd")(out, a, b)


def matmul_forward(a, b, *, transpose_a=False, transpose_b=False, out=None):
    """As :func:`matmul`; also returns what :func:`matmul_backward` needs.

    Returns
    -------
    y : float32 [..., M, N]
    ctx : Context
        Refers to ``a`` and ``b``: do not overwrite them before backward.
    """
    y = matmul(a, b, transpose_a=transpose_a, transpose_b=transpose_b, out=out)
    return y, Context(a, b, bool(transpose_a), bool(transpose_b))


def matmul_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradients of :func:`matmul`.

    Parameters
    ----------
    dy : float32 [..., M, N]
    ctx : Context
    out : Gradients, optional
        Arrays to write into; a field that is None gets a new one.
    accumulate : bool
        Makes no difference: both operands are inputs, whose gradients are always overwritten.

    Returns
    -------
    Gradients
        ``a`` and ``b`` like the operands; that of a ``b`` which all items share is summed over them.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape or layout, another op's ``ctx``, overlapping ``out``.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result.  The order of additions is
    that of :func:`matmul`.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> y, ctx = ck.matmul_forward(np.float32([[1, 2]]), np.float32([[3], [4]]))
    >>> ck.matmul_backward(np.float32([[1]]), ctx).a
    array([[3., 4.]], dtype=float32)
    """
    check_context("matmul_backward", Context, ctx)
    da, db = gradients("matmul_backward", Gradients, out)
    _refuse_batch(ctx.a, ctx.b, "matmul_backward")
    run = _way(ctx.transpose_a, ctx.transpose_b, "bwd")
    return Gradients(*run(True if da is None else da, True if db is None else db, dy, ctx.a, ctx.b))
