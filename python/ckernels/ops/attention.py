"""Scaled dot-product attention, without ever holding the scores of all queries with all keys."""
import math
import operator
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.checks import check_context, flag, gradients

__all__ = [
    "attention", "attention_backward", "attention_forward",
    "scaled_dot_product_attention", "scaled_dot_product_attention_backward", "scaled_dot_product_attention_forward",
]  # fmt: skip

_NAME = "scaled_dot_product_attention"


class Context(NamedTuple):
    """What backward needs; ``max`` and ``sum`` are float32 [B, H, T]: the softmax's shift and denominator."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    y: np.ndarray
    max: np.ndarray
    sum: np.ndarray
    attn_mask: np.ndarray | None
    sinks: np.ndarray | None
    options: tuple
    return_lse: bool


class Gradients(NamedTuple):
    """Like the inputs; ``sinks`` is None where there were none."""

    q: np.ndarray | None = None
    k: np.ndarray | None = None
    v: np.ndarray | None = None
    sinks: np.ndarray | None = None


def _side(name, value):
    """Return one side of a window as the kernel takes it: -1 is open."""
    if value is None:
        return -1
    try:
        side = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}(): 'window' must hold integers or None, not {type(value).__name__}") from None
    if side < 0:
        raise ValueError(f"{name}(): 'window' must hold integers of at least 0, or None for an open side, not {side}")
    return min(side, 2**62)


def _positions(name, q_offset, batch):
    """Return (offset of all items, offsets [B] or None); ``batch`` is (B,), or () where q is no array."""
    if isinstance(q_offset, (list, tuple)):
        try:
            q_offset = np.asarray(q_offset, None if len(q_offset) else np.int64)
        except ValueError:
            raise ValueError(f"{name}(): 'q_offset' must be an integer or integers [B], not {q_offset!r}") from None
    if np.ndim(q_offset) == 0:
        try:
            return operator.index(q_offset), None
        except TypeError:
            raise TypeError(
                f"{name}(): 'q_offset' must be an integer or integers [B], not {type(q_offset).__name__}"
            ) from None
    offsets = np.asarray(q_offset)
    if offsets.dtype.kind not in "iu":
        raise TypeError(f"{name}(): 'q_offset' must be an integer or integers [B], not {offsets.dtype}")
    if batch and offsets.shape != batch:
        raise ValueError(f"{name}(): 'q_offset' of shape {offsets.shape} does not fit [B], where B={batch[0]}")
    if offsets.dtype == np.uint64 and offsets.size and offsets.max() > np.iinfo(np.int64).max:
        raise OverflowError(f"{name}(): 'q_offset' does not fit 64 bits")
    return 0, np.ascontiguousarray(offsets, np.int64)


def options_of(name, q, is_causal, scale, q_offset, window, softcap, lengths=None):
    """Return the kernel's arguments from ``offsets`` on."""
    if window is None:
        window = None, None
    elif not isinstance(window, (tuple, list)) or len(window) != 2:
        raise TypeError(f"{name}(): 'window' must be (left, right) or None, not {window!r}")
    shape = tuple(getattr(q, "shape", ()))
    if scale is None:
        scale = 1 / math.sqrt(shape[-1]) if shape and shape[-1] else 1.0
    if softcap is None:
        softcap = 0.0
    elif isinstance(softcap, (str, bytes)) or np.ndim(softcap):
        raise TypeError(f"{name}(): 'softcap' must be a number or None, not {softcap!r}")
    elif not softcap > 0:
        raise ValueError(f"{name}(): 'softcap' must be above 0, or None, not {softcap}")
    is_causal = flag(name, "is_causal", is_causal)
    offset, offsets = _positions(name, q_offset, shape[:1])
    return offsets, lengths, offset, _side(name, window[0]), _side(name, window[1]), is_causal, scale, softcap


def scaled_dot_product_attention(
    q, k, v, attn_mask=None, is_causal=False, scale=None, *, q_offset=0, window=None, softcap=None, sinks=None,
    return_lse=False, out=None,
):  # fmt: skip
    """softmax(scale * q @ k.T + mask) @ v for every head, as in ``torch.nn.functional``.

    Parameters
    ----------
    q : float32 [B, H, T, D]
        Any strides but the last axis', so ``x.transpose(0, 2, 1, 3)`` of [B, T, H, D] is taken as it is.
    k, v : float32 [B, G, S, D]
        H is a multiple of G; head h reads kv head ``h // (H // G)``.
    attn_mask : bool or float32, broadcastable to [B, H, T, S], optional
        False, or -inf, closes a key to a query; any other float is added to the score.
    is_causal : bool
        A query sees the keys up to its own position.
    scale : float, optional
        1 / sqrt(D) by default.
    q_offset : int or integers [B]
        Query t stands at position ``q_offset + t``, key s at s: 0 is PyTorch's ``is_causal``, ``S - T`` is decoding.
    window : (left, right), optional
        A query at p sees keys from ``p - left`` to ``p + right``; None leaves a side open.
    softcap : float, optional
        Scores become ``softcap * tanh(score / softcap)`` before masks.
    sinks : float32 [H], optional
        One more score per head in the softmax's denominator, with no value.
    return_lse : bool
        Return the logarithm of the denominator as well.
    out : float32 [B, H, T, D], optional
        Where to write; overlaps no input.  Strides as for q.

    Returns
    -------
    y : float32 [B, H, T, D]
    lse : float32 [B, H, T]
        With ``return_lse`` alone.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout or range, heads that do not divide, overlapping ``out``.

    Notes
    -----
    A key that is not seen contributes nothing, not even a NaN.  A query that sees no key gives 0, and lse -inf (with
    sinks, the sink).

    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result.  The bits of a query's
    result are the same for any number of threads, batch, strides, and whether it comes in a whole prefill, a chunk or
    alone; avx2 and avx512 agree.  Sources: Vaswani et al. 2017, arXiv:1706.03762; Dao 2023, arXiv:2307.08691.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> q = np.zeros((1, 1, 1, 2), "f4"); k = np.zeros((1, 1, 2, 2), "f4")
    >>> v = np.array([[[[1, 2], [3, 6]]]], "f4")
    >>> ck.scaled_dot_product_attention(q, k, v)
    array([[[[2., 4.]]]], dtype=float32)
    """
    return_lse = flag(_NAME, "return_lse", return_lse)
    options = options_of(_NAME, q, is_causal, scale, q_offset, window, softcap)
    y, _, _, lse = _ck.attention_fwd(out, None, None, True if return_lse else None, q, k, v, attn_mask, sinks, *options)
    return (y, lse) if return_lse else y


def scaled_dot_product_attention_forward(
    q, k, v, attn_mask=None, is_causal=False, scale=None, *, q_offset=0, window=None, softcap=None, sinks=None,
    return_lse=False, out=None,
):  # fmt: skip
    """As :func:`scaled_dot_product_attention`; also returns what its backward needs.

    Returns
    -------
    y : float32 [B, H, T, D]
        ``(y, lse)`` with ``return_lse``.
    ctx : Context
        Refers to the inputs and to ``y``: do not overwrite them before backward.
    """
    return_lse = flag(_NAME, "return_lse", return_lse)
    options = options_of(_NAME, q, is_causal, scale, q_offset, window, softcap)
    y, peak, total, lse = _ck.attention_fwd(
        out, True, True, True if return_lse else None, q, k, v, attn_mask, sinks, *options
    )
    ctx = Context(q, k, v, y, peak, total, attn_mask, sinks, options, return_lse)
    return ((y, lse) if return_lse else y), ctx


def scaled_dot_product_attention_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradients of :func:`scaled_dot_product_attention`.

    Parameters
    ----------
    dy : float32 [B, H, T, D]
        ``(dy, dlse)`` where forward returned ``(y, lse)``; ``dlse`` may be None, for zero.
    ctx : Context
        From :func:`scaled_dot_product_attention_forward`.
    out : Gradients, optional
        Arrays to write into; a field that is None gets a new one.
    accumulate : bool
        Add the sinks' gradient to ``out.sinks`` instead of overwriting it.

    Returns
    -------
    Gradients
        ``q``, ``k``, ``v`` like the inputs, ``sinks`` float32 [H] or None.  A float mask gets none.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape or layout, another op's ``ctx``, overlapping ``out``.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result.  Probabilities are computed
    again, block by block, from the row's maximum and sum: no array [T, S] of a whole head is made.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> q = np.zeros((1, 1, 1, 2), "f4"); k = np.zeros((1, 1, 2, 2), "f4")
    >>> y, ctx = ck.scaled_dot_product_attention_forward(q, k, k)
    >>> ck.scaled_dot_product_attention_backward(np.ones_like(y), ctx).v
    array([[[[0.5, 0.5],
             [0.5, 0.5]]]], dtype=float32)
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
    return Gradients(*_ck.attention_bwd(
        dq, dk, dv, dsinks, ctx.q, ctx.k, ctx.v, ctx.y, dy, dlse, ctx.max, ctx.sum, ctx.attn_mask, ctx.sinks,
        *ctx.options, add,
    ))  # fmt: skip


def attend_cache(q, keys, values, offsets, lengths, *, scale=None, window=None, softcap=None, sinks=None, out=None):
    """Causal attention of q [B,H,T,D] over storage [B,G,capacity,D] of which item b holds ``lengths[b]`` keys.

    Parameters
    ----------
    q : float32 [B, H, T, D]
        Query t of item b stands at ``offsets[b] + t``.
    keys, values : float32 [B, G, capacity, D]
        What lies at or past ``lengths[b]`` is never read.
    offsets : int64 [B]
        Position of query 0 of each item.
    lengths : int64 [B]
        Keys held by each item.
    scale, window, softcap, sinks, out
        As in :func:`scaled_dot_product_attention`.

    Returns
    -------
    float32 [B, H, T, D]
    """
    options = options_of(_NAME, q, True, scale, offsets, window, softcap, lengths)
    return _ck.attention_fwd(out, None, None, None, q, keys, values, None, sinks, *options)[0]


attention = scaled_dot_product_attention
attention_forward = scaled_dot_product_attention_forward
attention_backward = scaled_dot_product_attention_backward
