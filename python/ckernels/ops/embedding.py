"""Rows of a table, picked by number."""
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.checks import check_context, gradients

__all__ = ["embedding", "embedding_forward", "embedding_backward"]


class Context(NamedTuple):
    """What backward needs: the ids, and the table for its shape alone."""

    ids: np.ndarray
    weight: np.ndarray


class Gradients(NamedTuple):
    """Like the inputs; ids have none."""

    weight: np.ndarray | None = None


def embedding(ids, weight, *, out=None):
    """Row ``ids[...]`` of ``weight``, for every id.

    Parameters
    ----------
    ids : int32 or int64 [...]
        Any strides.
    weight : float32, float16 or bfloat16 [V, C]
        Any distance between rows.
    out : like weight [..., C], optional
        Where to write; overlaps nothing.

    Returns
    -------
    like weight [..., C]

    Raises
    ------
    IndexError
        An id below 0 or above V-1; says which and at what position, counted in C order. Nothing is written.
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``.

    Notes
    -----
    Error: none, the result is a copy bit for bit.  Source: `torch.nn.functional.embedding`, without its negative ids
    (it refuses them too), ``padding_idx`` and ``max_norm``.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.embedding(np.array([2, 0]), np.array([[0, 1], [2, 3], [4, 5]], "f4"))
    array([[4., 5.],
           [0., 1.]], dtype=float32)
    """
    return _ck.embedding_fwd(out, ids, weight)


def embedding_forward(ids, weight, *, out=None):
    """As :func:`embedding`; also returns what :func:`embedding_backward` needs.

    Returns
    -------
    y : like weight [..., C]
    ctx : Context
        Refers to ``ids``: do not overwrite them before backward.  Of ``weight`` only the shape is used.
    """
    return _ck.embedding_fwd(out, ids, weight), Context(ids, weight)


def embedding_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradient of :func:`embedding`, dense.

    Parameters
    ----------
    dy : like weight [..., C]
    ctx : Context
    out : Gradients, optional
        The array to write into; None makes a new one.
    accumulate : bool
        Add to ``out.weight`` instead of overwriting it; rows that no id names are not touched.

    Returns
    -------
    Gradients
        ``weight`` [V, C]: for every row the sum of ``dy`` over the places that named it, 0 where none did.

    Raises
    ------
    IndexError
        An id outside the table; nothing is written.
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``.

    Notes
    -----
    Error: sums run over ascending places in double and are rounded at the end, so half an ulp of the result plus
    2^-53 of the sum of absolute values for each term. Same bits for any number of threads.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> y, ctx = ck.embedding_forward(np.array([1, 1, 0]), np.zeros((3, 1), "f4"))
    >>> ck.embedding_backward(np.array([[1], [2], [4]], "f4"), ctx).weight
    array([[4.],
           [3.],
           [0.]], dtype=float32)
    """
    check_context("embedding_backward", Context, ctx)
    dweight = gradients("embedding_backward", Gradients, out).weight
    return Gradients(_ck.embedding_bwd(dweight, dy, ctx.ids, ctx.weight, dweight is not None and accumulate))
