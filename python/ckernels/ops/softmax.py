"""Softmax over the last axis, scaled and masked as attention does."""
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.checks import check_context, flag, gradients

__all__ = ["softmax", "softmax_forward", "softmax_backward"]


class Context(NamedTuple):
    """What backward needs: the result, and the scale of the scores."""

    y: np.ndarray
    scale: float


class Gradients(NamedTuple):
    """Like the inputs; a mask has none."""

    x: np.ndarray | None = None


def softmax(x, *, scale=1.0, mask=None, causal=False, out=None):
    """Exponentials of each row of ``scale * x + mask``, scaled to sum to one.

    Parameters
    ----------
    x : float32 [..., C]
        Scores of C keys; with ``causal``, [..., T, C] of T queries.
    scale : float
        Times ``x``, before the mask.
    mask : bool or float32, broadcastable to x, optional
        True: takes part. A float is added to the score; -inf takes no part. Any strides.
    causal : bool
        Query t stands at position t and sees keys 0 to t, as ``is_causal`` of attention, whatever C is.
    out : like x, optional
        Where to write; may be ``x`` itself (in place).

    Returns
    -------
    like x [..., C]
        Keys that take no part are 0, whatever ``x`` holds there; so are rows in which no key takes part.  A row of
        -inf that is not masked gives NaN, as in PyTorch.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``; ``causal`` for a single row.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result; sums run in blocks of 2048
    in 16 lanes, block by block in double.  Same bits for any number of threads and rows.
    Source: `torch.nn.functional.softmax`; masks as in its ``scaled_dot_product_attention``.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.softmax(np.zeros((2, 2), "f4"), causal=True)
    array([[1. , 0. ],
           [0.5, 0.5]], dtype=float32)
    """
    causal = flag("softmax", "causal", causal)
    queries = x.shape[-2] if causal and len(getattr(x, "shape", ())) > 1 else 0
    return _ck.softmax_fwd(out, x, mask, scale, causal, queries)


def softmax_forward(x, *, scale=1.0, mask=None, causal=False, out=None):
    """As :func:`softmax`; also returns what :func:`softmax_backward` needs.

    Returns
    -------
    y : like x [..., C]
    ctx : Context
        Refers to ``y``: do not overwrite it before backward.  ``x`` and ``mask`` are not needed any more.
    """
    y = softmax(x, scale=scale, mask=mask, causal=causal, out=out)
    return y, Context(y, scale)


def softmax_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradient of :func:`softmax`.

    Parameters
    ----------
    dy : like x [..., C]
    ctx : Context
    out : Gradients, optional
        The array to write into; it may be ``dy`` or ``ctx.y`` (in place; after the latter there is no second backward).
    accumulate : bool
        No effect: softmax has no parameters, and gradients of inputs are overwritten.

    Returns
    -------
    Gradients
        ``x`` like x: 0 where a key took no part, as long as ``dy`` is finite.

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
    >>> y, ctx = ck.softmax_forward(np.float32([[0, 0]]))
    >>> ck.softmax_backward(np.float32([[1, 0]]), ctx).x
    array([[ 0.25, -0.25]], dtype=float32)
    """
    check_context("softmax_backward", Context, ctx)
    out = gradients("softmax_backward", Gradients, out)
    return Gradients(_ck.softmax_bwd(out.x, dy, ctx.y, ctx.scale))
