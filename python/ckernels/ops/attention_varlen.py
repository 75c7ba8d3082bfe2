"""Attention on sequences of any lengths, packed one behind the other: no padding, no copy."""

import operator
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.attention import options_of
from ckernels.ops.checks import check_context, flag, gradients

__all__ = ["attention_varlen", "attention_varlen_backward", "attention_varlen_forward"]

_NAME = "attention_varlen"


class Context(NamedTuple):
    """What backward needs; ``max`` and ``sum`` are float32 [H, N]: the softmax's shift and denominator."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    y: np.ndarray
    max: np.ndarray
    sum: np.ndarray
    cu_seqlens_q: np.ndarray
    cu_seqlens_k: np.ndarray
    sinks: np.ndarray | None
    options: tuple
    return_lse: bool


class Gradients(NamedTuple):
    """Like the inputs; ``sinks`` is None where there were none."""

    q: np.ndarray | None = None
    k: np.ndarray | None = None
    v: np.ndarray | None = None
    sinks: np.ndarray | None = None


def _offsets(q_offset, cu_seqlens_q):
    """Return positions of each sequence's first query, int64 [B], or None: the last stands with the last key."""
    if q_offset is None:
        return None
    if np.ndim(q_offset) == 0:
        try:
            q_offset = operator.index(q_offset)
        except TypeError:
            raise TypeError(
                f"{_NAME}(): 'q_offset' must be an integer, integers [B] or None, not {type(q_offset).__name__}"
            ) from None
        return np.full(max(len(cu_seqlens_q) - 1, 0) if np.ndim(cu_seqlens_q) == 1 else 0, q_offset, np.int64)
    offsets = np.asarray(q_offset)
    if offsets.dtype.kind not in "iu" or offsets.ndim != 1:
        raise TypeError(
            f"{_NAME}(): 'q_offset' must be an integer, integers [B] or None, "
            f"not {offsets.dtype} of shape {offsets.shape}"
        )
    return np.ascontiguousarray(offsets, np.int64)


def _options(q, cu_seqlens_q, is_causal, scale, q_offset, window, softcap):
    """Return the kernel's arguments from ``q_offset`` on."""
    _, _, _, *rest = options_of(_NAME, q, is_causal, scale, 0, window, softcap)
    return _offsets(q_offset, cu_seqlens_q), *rest


def attention_varlen(
    q, k, v, cu_seqlens_q, cu_seqlens_k, is_causal=False, scale=None, *, q_offset=None, window=None, softcap=None,
    sinks=None, return_lse=False, out=None,
):  # fmt: skip
    """Attention of each packed sequence with itself alone.

    Parameters
    ----------
    q : float32, float16 or bfloat16 [N, H, D]
        The queries of all sequences, one behind the other.  Any strides but the last axis'.
    k, v : like q [M, G, D]
        H is a multiple of G; head h reads kv head ``h // (H // G)``.
    cu_seqlens_q, cu_seqlens_k : int32 or int64 [B + 1]
        Sequence b has queries ``cu_seqlens_q[b]`` up to ``cu_seqlens_q[b + 1]``, and keys likewise: from 0, never
        falling, to N and M.  A sequence may be empty.
    is_causal : bool
        A query sees the keys up to its own position.
    scale : float, optional
        1 / sqrt(D) by default.
    q_offset : int or integers [B], optional
        Query t of a sequence stands at position ``q_offset + t``, key s at s.  By default at ``S - T + t``, of S keys
        and T queries: the last query with the last key, as in flash-attention since 2.1.
    window : (left, right), optional
        A query at p sees keys from ``p - left`` to ``p + right``; None leaves a side open.
    softcap : float, optional
        Scores become ``softcap * tanh(score / softcap)`` before masks.
    sinks : float32 [H], optional
        One more score per head in the softmax's denominator, with no value.
    return_lse : bool
        Return the logarithm of the denominator as well.
    out : like q [N, H, D], optional
        Where to write; overlaps no input.

    Returns
    -------
    y : like q [N, H, D]
    lse : float32 [H, N]
        With ``return_lse`` alone.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout or range, lengths that fall or do not end at N or M, heads
        that do not divide, overlapping ``out``.

    Notes
    -----
    A sequence's bits are those of :func:`scaled_dot_product_attention` on it alone, forward and backward, and so is the
    error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result.  A query that sees no key
    gives 0, and lse -inf (with sinks, the sink).  Sources: Dao 2023, arXiv:2307.08691 (``flash_attn_varlen_func``).

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> x = np.array([[[1, 2]], [[3, 4]], [[5, 6]]], "f4")
    >>> ck.attention_varlen(np.zeros_like(x), x, x, np.array([0, 1, 3]), np.array([0, 1, 3]))[:, 0]
    array([[1., 2.],
           [4., 5.],
           [4., 5.]], dtype=float32)
    """
    return_lse = flag(_NAME, "return_lse", return_lse)
    options = _options(q, cu_seqlens_q, is_causal, scale, q_offset, window, softcap)
    y, _, _, lse = _ck.attention_varlen_fwd(
        out, None, None, True if return_lse else None, q, k, v, cu_seqlens_q, cu_seqlens_k, sinks, *options
    )
    return (y, lse) if return_lse else y


def attention_varlen_forward(
    q, k, v, cu_seqlens_q, cu_seqlens_k, is_causal=False, scale=None, *, q_offset=None, window=None, softcap=None,
    sinks=None, return_lse=False, out=None,
):  # fmt: skip
    """As :func:`attention_varlen`; also returns what its backward needs.

    Returns
    -------
    y : like q [N, H, D]
        ``(y, lse)`` with ``return_lse``.
    ctx : Context
        Refers to the inputs and to ``y``: do not overwrite them before backward.
    """
    return_lse = flag(_NAME, "return_lse", return_lse)
    options = _options(q, cu_seqlens_q, is_causal, scale, q_offset, window, softcap)
    y, peak, total, lse = _ck.attention_varlen_fwd(
        out, True, True, True if return_lse else None, q, k, v, cu_seqlens_q, cu_seqlens_k, sinks, *options
    )
    ctx = Context(q, k, v, y, peak, total, cu_seqlens_q, cu_seqlens_k, sinks, options, return_lse)
    return ((y, lse) if return_lse else y), ctx


def attention_varlen_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradients of :func:`attention_varlen`.

    Parameters
    ----------
    dy : like y [N, H, D]
        ``(dy, dlse)`` where forward returned ``(y, lse)``; ``dlse`` may be None, for zero.
    ctx : Context
        From :func:`attention_varlen_forward`.
    out : Gradients, optional
        Arrays to write into; a field that is None gets a new one.
    accumulate : bool
        Add the sinks' gradient to ``out.sinks`` instead of overwriting it.

    Returns
    -------
    Gradients
        ``q``, ``k``, ``v`` like the inputs, ``sinks`` float32 [H] or None.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape or layout, another op's ``ctx``, overlapping ``out``.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> q = np.zeros((2, 1, 2), "f4")
    >>> y, ctx = ck.attention_varlen_forward(q, q, q, np.array([0, 1, 2]), np.array([0, 1, 2]))
    >>> ck.attention_varlen_backward(np.ones_like(y), ctx).v[:, 0]
    array([[1., 1.],
           [1., 1.]], dtype=float32)
    """
    check_context(f"{_NAME}_backward", Context, ctx)
    dlse = None
    if ctx.return_lse:
        if not isinstance(dy, (tuple, list)) or len(dy) != 2:
            raise TypeError(f"{_NAME}_backward(): 'dy' must be (dy, dlse), as forward returned (y, lse)")
        dy, dlse = dy
    absent = () if ctx.sinks is not None else ("sinks",)
    dq, dk, dv, dsinks = gradients(f"{_NAME}_backward", Gradients, out, absent)
    add = dsinks is not None and accumulate
    if dsinks is None and ctx.sinks is not None:
        dsinks = True
    return Gradients(*_ck.attention_varlen_bwd(
        dq, dk, dv, dsinks, ctx.q, ctx.k, ctx.v, ctx.y, dy, dlse, ctx.max, ctx.sum, ctx.cu_seqlens_q, ctx.cu_seqlens_k,
        ctx.sinks, *ctx.options, add,
    ))  # fmt: skip
