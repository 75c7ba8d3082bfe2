"""Queries or keys normed head by head and then turned, in one pass."""
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.checks import check_context, gradients
from ckernels.ops.rope import _check_positions, _explain_table

__all__ = ["qk_norm_rope", "qk_norm_rope_backward", "qk_norm_rope_forward"]


class Context(NamedTuple):
    """What backward needs; ``rstd`` is float32 [..., T], one a head and token."""

    x: np.ndarray
    weight: np.ndarray
    rstd: np.ndarray
    cos: np.ndarray
    sin: np.ndarray
    positions: np.ndarray | None
    interleaved: bool


class Gradients(NamedTuple):
    """Like the inputs."""

    x: np.ndarray | None = None
    weight: np.ndarray | None = None


def _forward(out, rstd, x, weight, cos, sin, positions, interleaved, eps):
    if positions is not None:
        _check_positions("qk_norm_rope", "x", x, positions)
    try:
        return _ck.qk_norm_rope_fwd(out, rstd, x, weight, cos, sin, positions, interleaved, eps)
    except ValueError:
        if positions is None:
            _explain_table("qk_norm_rope", x, cos, sin)
        raise


def qk_norm_rope(x, weight, cos, sin, eps=1e-6, *, positions=None, interleaved=False, out=None):
    """Norm each head of each token by its root mean square, then turn its pairs of channels.

    Call it once for the queries and once for the keys: each has a weight of its own.

    Parameters
    ----------
    x : float32, float16 or bfloat16 [..., T, D]
        Queries or keys.  The first 2K channels are turned, the others only normed.
    weight : like x or float32 [D]
        One for all heads.
    cos, sin : float32 [S, K]
        From :func:`rope_table`.  Without ``positions``, row t belongs to token t and S = T.
    eps : float
        Added to the mean square, inside the root.
    positions : int32 or int64 [T] or [B, T], optional
        Rows of the table; the latter for ``x`` [B, ..., T, D].
    interleaved : bool
        Pairs are channels (2k, 2k+1); otherwise (k, k+K).
    out : like x, optional
        Where to write; may be ``x`` itself (in place).

    Returns
    -------
    like x [..., T, D]
        ``rope(rms_norm(x, weight, eps), cos, sin)``, without rounding what lies between.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``; 2K > D (named: 'cos').
    IndexError
        ``positions`` points outside the table; nothing is written.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result.  In float32 the bits of
    :func:`rms_norm` and :func:`rope` one after the other.  Same bits for any number of threads, in place, and for a
    token alone.  Source: Qwen 3 technical report 2025, arXiv:2505.09388.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> x = np.array([[3, 4]], "f4")
    >>> ck.qk_norm_rope(x, np.float32([1, 2]), np.float32([[0]]), np.float32([[1]]), eps=0.0)  # a quarter turn
    array([[-2.2627418 ,  0.84852815]], dtype=float32)
    """
    return _forward(out, None, x, weight, cos, sin, positions, interleaved, eps)[0]


def qk_norm_rope_forward(x, weight, cos, sin, eps=1e-6, *, positions=None, interleaved=False, out=None):
    """As :func:`qk_norm_rope`; also returns what :func:`qk_norm_rope_backward` needs.

    Returns
    -------
    y : like x [..., T, D]
    ctx : Context
        Refers to ``x``, ``weight``, ``cos``, ``sin`` and ``positions``: do not overwrite them before backward.
    """
    y, rstd = _forward(out, True, x, weight, cos, sin, positions, interleaved, eps)
    return y, Context(x, weight, rstd, cos, sin, positions, interleaved)


def qk_norm_rope_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradients of :func:`qk_norm_rope`.

    Parameters
    ----------
    dy : like x [..., T, D]
    ctx : Context
    out : Gradients, optional
        Arrays to write into; a field that is None gets a new one.  ``out.x`` may be ``dy`` (in place).
    accumulate : bool
        Add the weight's gradient to ``out.weight`` instead of overwriting it.

    Returns
    -------
    Gradients
        ``x`` like x, ``weight`` like weight [D].  The tables have no gradient.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape or layout, another op's ``ctx``, overlapping ``out``.
    IndexError
        ``ctx.positions`` points outside the table; nothing is written.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result.  The weight's gradient is
    summed over fixed blocks of rows, then block by block in double.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> x, w, cos, sin = np.float32([[3, 4]]), np.float32([1, 1]), np.float32([[0]]), np.float32([[1]])
    >>> y, ctx = ck.qk_norm_rope_forward(x, w, cos, sin, eps=0.0)
    >>> ck.qk_norm_rope_backward(np.float32([[1, 0]]), ctx).weight
    array([ 0.       , -1.1313709], dtype=float32)
    """
    check_context("qk_norm_rope_backward", Context, ctx)
    dx, dweight = gradients("qk_norm_rope_backward", Gradients, out)
    if ctx.positions is not None:
        _check_positions("qk_norm_rope_backward", "dy", dy, ctx.positions)
    try:
        return Gradients(*_ck.qk_norm_rope_bwd(
            dx, True if dweight is None else dweight, dy, ctx.x, ctx.weight, ctx.rstd, ctx.cos, ctx.sin, ctx.positions,
            ctx.interleaved, dweight is not None and accumulate))
    except ValueError:
        if ctx.positions is None:
            _explain_table("qk_norm_rope_backward", dy, ctx.cos, ctx.sin)
        raise
