"""Between the rows of tokens that projections read and write, and the rows of heads that attention does."""
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.checks import check_context, gradients, several

__all__ = ["heads_to_tokens", "heads_to_tokens_backward", "heads_to_tokens_forward",
           "split_qkv", "split_qkv_backward", "split_qkv_forward",
           "tokens_to_heads", "tokens_to_heads_backward", "tokens_to_heads_forward"]


class SplitContext(NamedTuple):
    """What backward of :func:`split_qkv` needs: heads, kv heads and head size."""

    H: int
    G: int
    D: int


class SplitGradients(NamedTuple):
    """Like the input."""

    qkv: np.ndarray | None = None


class HeadsContext(NamedTuple):
    """What backward of :func:`heads_to_tokens` needs: nothing."""


class TokensContext(NamedTuple):
    """What backward of :func:`tokens_to_heads` needs: nothing."""


class Gradients(NamedTuple):
    """Like the input."""

    x: np.ndarray | None = None


_QKV = ("q", "k", "v")


def split_qkv(qkv, H, G, D, *, out=None):
    """Queries, keys and values of a fused projection, head by head as attention takes them.

    Parameters
    ----------
    qkv : float32, float16 or bfloat16 [..., T, (H + 2 G) D]
        A token's row holds its H heads of q, then its G heads of k, then those of v, each of D elements: what a
        projection with the rows of three weights stacked in this order returns.  (Models that interleave q, k and v
        head by head need them reordered first, once, in the weight.)  Any distance between rows.
    H, G, D : int
        Heads, kv heads, head size.
    out : tuple of three arrays, optional
        Where to write q, k and v; None for one makes it.  They overlap nothing and may have any strides: a view
        ``y.transpose(0, 2, 1, 3)`` of y [B, T, H, D] keeps the tokens' order in memory.

    Returns
    -------
    q : like qkv [..., H, T, D]
    k, v : like qkv [..., G, T, D]

    Raises
    ------
    ValueError
        The rows are not (H + 2 G) D long; a size is negative; nothing is written.
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``.

    Notes
    -----
    Error: none, the results are copies bit for bit, NaN and what they carry included.  Where a copy is not wanted,
    ``qkv[..., :H * D].reshape(B, T, H, D).transpose(0, 2, 1, 3)`` is a view that attention takes as well; rows of a
    head that lie end to end are read faster.  Source: the order of rows is that of Phi-3's ``qkv_proj``.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> q, k, v = ck.split_qkv(np.arange(8, dtype="f4").reshape(1, 2, 4), H=2, G=1, D=1)
    >>> q.shape, q[0, :, 1], k[0, 0, :, 0]
    ((1, 2, 2, 1), array([[4.],
           [5.]], dtype=float32), array([2., 6.], dtype=float32))
    """
    q, k, v = several("split_qkv", "out", out, _QKV)
    return _ck.split_qkv_fwd(q, k, v, qkv, H, G, D)


def split_qkv_forward(qkv, H, G, D, *, out=None):
    """As :func:`split_qkv`; also returns what :func:`split_qkv_backward` needs.

    Returns
    -------
    (q, k, v) : tuple of arrays [..., H or G, T, D]
    ctx : SplitContext
        Three numbers: no array is kept.
    """
    return split_qkv(qkv, H, G, D, out=out), SplitContext(H, G, D)


def split_qkv_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradient of :func:`split_qkv`: joins those of q, k and v.

    Parameters
    ----------
    dy : tuple of three arrays
        Of q [..., H, T, D], of k and of v [..., G, T, D].
    ctx : SplitContext
    out : SplitGradients, optional
        The array to write into; None makes a new one.
    accumulate : bool
        Has no effect: there are no parameters.

    Returns
    -------
    SplitGradients
        ``qkv`` [..., T, (H + 2 G) D], bit for bit.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape or layout, another op's ``ctx``, overlapping ``out``.

    Notes
    -----
    Error: none, the result is a copy bit for bit.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> qkv = np.arange(8, dtype="f4").reshape(2, 4)
    >>> parts, ctx = ck.split_qkv_forward(qkv, H=2, G=1, D=1)
    >>> ck.split_qkv_backward(parts, ctx).qkv
    array([[0., 1., 2., 3.],
           [4., 5., 6., 7.]], dtype=float32)
    """
    check_context("split_qkv_backward", SplitContext, ctx)
    if dy is None:
        raise TypeError("split_qkv_backward(): 'dy' must be a tuple of three arrays, for q, k and v, not None")
    dq, dk, dv = several("split_qkv_backward", "dy", dy, _QKV)
    dqkv = gradients("split_qkv_backward", SplitGradients, out).qkv
    H, G, D = ctx
    return SplitGradients(_ck.split_qkv_bwd(dqkv, (H + 2 * G) * D, H, G, D, dq, dk, dv))


def heads_to_tokens(x, *, out=None):
    """Move a token's heads together: what attention returns, as the next projection reads it.

    Parameters
    ----------
    x : float32, float16 or bfloat16 [..., H, T, D]
        Any strides but the last.
    out : like x [..., T, H, D], optional
        Where to write; overlaps nothing, any strides but the last.

    Returns
    -------
    like x [..., T, H, D]
        C-contiguous, so ``y.reshape(*y.shape[:-2], -1)`` is a view of [..., T, H D].

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``.

    Notes
    -----
    Error: none, the result is a copy bit for bit, NaN and what they carry included.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.heads_to_tokens(np.arange(6, dtype="f4").reshape(2, 3, 1))[..., 0]
    array([[0., 3.],
           [1., 4.],
           [2., 5.]], dtype=float32)
    """
    return _ck.heads_to_tokens_fwd(out, x)


def heads_to_tokens_forward(x, *, out=None):
    """As :func:`heads_to_tokens`; also returns what :func:`heads_to_tokens_backward` needs.

    Returns
    -------
    y : like x [..., T, H, D]
    ctx : HeadsContext
        Empty: no array is kept.
    """
    return _ck.heads_to_tokens_fwd(out, x), HeadsContext()


def heads_to_tokens_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradient of :func:`heads_to_tokens`: moves it back.

    Parameters
    ----------
    dy : like y [..., T, H, D]
    ctx : HeadsContext
    out : Gradients, optional
        The array to write into; None makes a new one.
    accumulate : bool
        Has no effect: there are no parameters.

    Returns
    -------
    Gradients
        ``x`` [..., H, T, D], bit for bit.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape or layout, another op's ``ctx``, overlapping ``out``.

    Notes
    -----
    Error: none, the result is a copy bit for bit.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> y, ctx = ck.heads_to_tokens_forward(np.arange(6, dtype="f4").reshape(2, 3, 1))
    >>> ck.heads_to_tokens_backward(y, ctx).x[..., 0]
    array([[0., 1., 2.],
           [3., 4., 5.]], dtype=float32)
    """
    check_context("heads_to_tokens_backward", HeadsContext, ctx)
    return Gradients(_ck.heads_to_tokens_bwd(gradients("heads_to_tokens_backward", Gradients, out).x, dy))


def tokens_to_heads(x, *, out=None):
    """Move a head's tokens together: what a projection returns, as attention reads it.

    Parameters
    ----------
    x : float32, float16 or bfloat16 [..., T, H, D]
        Any strides but the last: ``y.reshape(B, T, H, D)`` of y [B, T, H D].
    out : like x [..., H, T, D], optional
        Where to write; overlaps nothing, any strides but the last.

    Returns
    -------
    like x [..., H, T, D]
        C-contiguous.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``.

    Notes
    -----
    Error: none, the result is a copy bit for bit, NaN and what they carry included.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.tokens_to_heads(np.arange(6, dtype="f4").reshape(3, 2, 1))[..., 0]
    array([[0., 2., 4.],
           [1., 3., 5.]], dtype=float32)
    """
    return _ck.tokens_to_heads_fwd(out, x)


def tokens_to_heads_forward(x, *, out=None):
    """As :func:`tokens_to_heads`; also returns what :func:`tokens_to_heads_backward` needs.

    Returns
    -------
    y : like x [..., H, T, D]
    ctx : TokensContext
        Empty: no array is kept.
    """
    return _ck.tokens_to_heads_fwd(out, x), TokensContext()


def tokens_to_heads_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradient of :func:`tokens_to_heads`: moves it back.

    Parameters
    ----------
    dy : like x [..., H, T, D]
    ctx : TokensContext
    out : Gradients, optional
        The array to write into; None makes a new one.
    accumulate : bool
        Has no effect: there are no parameters.

    Returns
    -------
    Gradients
        ``x`` [..., T, H, D], bit for bit.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape or layout, another op's ``ctx``, overlapping ``out``.

    Notes
    -----
    Error: none, the result is a copy bit for bit.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> y, ctx = ck.tokens_to_heads_forward(np.arange(6, dtype="f4").reshape(3, 2, 1))
    >>> ck.tokens_to_heads_backward(y, ctx).x[..., 0]
    array([[0., 1.],
           [2., 3.],
           [4., 5.]], dtype=float32)
    """
    check_context("tokens_to_heads_backward", TokensContext, ctx)
    return Gradients(_ck.tokens_to_heads_bwd(gradients("tokens_to_heads_backward", Gradients, out).x, dy))
