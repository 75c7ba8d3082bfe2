"""Rotary position embedding."""
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.checks import check_context, gradients
from ckernels.runtime import empty

__all__ = ["rope", "rope_backward", "rope_forward", "rope_table"]


class Context(NamedTuple):
    """What backward needs: the rotation alone."""

    cos: np.ndarray
    sin: np.ndarray
    positions: np.ndarray | None
    interleaved: bool


class Gradients(NamedTuple):
    """Like the inputs."""

    x: np.ndarray | None = None


def rope_table(positions, dim, base=10000.0, *, scaling=None):
    """Tabulate the cosine and sine of every position's angles.

    Pair ``k`` turns by ``positions[t] * base**(-2k / dim)``.

    Parameters
    ----------
    positions : int32 or int64 [T]
        Any integers, in any order.
    dim : int
        Channels to rotate, 2K: even.
    base : float
        Positive; ``rope_theta`` of a Hugging Face config.
    scaling : None
        No scaling rule is built yet: anything else is a ValueError.

    Returns
    -------
    cos, sin : float32 [T, K]

    Raises
    ------
    TypeError
        ``positions`` is no array of integers; ``dim`` or ``base`` no number.
    ValueError
        ``dim`` is odd or negative, ``base`` not positive, ``scaling`` unknown, ``positions`` not of one axis.
    MemoryError, OverflowError
        The tables are too large.

    Notes
    -----
    Error: angles are computed in double and each result is rounded once, so half an ulp, at every position up to 2^31.
    Source: Su et al. 2021, arXiv:2104.09864.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> cos, sin = ck.rope_table(np.arange(2), 4)
    >>> cos
    array([[1.       , 1.       ],
           [0.5403023, 0.99995  ]], dtype=float32)
    """
    if isinstance(dim, bool) or not isinstance(dim, (int, np.integer)):
        raise TypeError(f"rope_table(): 'dim' must be an integer, not {type(dim).__name__}")
    if dim < 0 or dim % 2:
        raise ValueError(f"rope_table(): 'dim' must be even and not negative, not {dim}")
    if scaling is not None:
        raise ValueError(f"rope_table(): 'scaling' must be None, the only rule there is, not {scaling!r}")
    shape = (*tuple(getattr(positions, "shape", ()))[:1], int(dim) // 2)
    try:
        tables = empty(shape), empty(shape)
    except (MemoryError, OverflowError) as error:
        raise type(error)(f"rope_table(): no memory for tables of shape {shape}") from None
    return _ck.rope_table(*tables, positions, base)


def _check_table(called, name, x, cos, sin, positions):
    """Refuse positions that are neither [T] nor [B, T], and without any a table whose rows are not the tokens'.

    The sizes within are checked with those of the others, and so is what is no array.
    """
    given, whole = (tuple(getattr(array, "shape", ())) for array in (positions, x))
    if len(given) > 1 and (len(whole) < 3 or given[:-1] != whole[:1]):
        raise ValueError(f"{called}(): 'positions' of shape {given} does not fit [T] or [B, T], "
                         f"where '{name}' of shape {whole} is [B, ..., T, D]")
    if positions is not None or len(whole) < 2 or not (hasattr(cos, "shape") and hasattr(sin, "shape")):
        return
    T, row = whole[-2], tuple(cos.shape)
    if len(row) != 2 or row[0] != T:
        raise ValueError(f"{called}(): 'cos' of shape {row} does not fit [T, K], where T={T}: "
                         "give 'positions', or a row a token")
    if tuple(sin.shape) != row:
        raise ValueError(f"{called}(): 'sin' of shape {tuple(sin.shape)} does not fit [T, K], where T={T}, K={row[1]}")


def rope(x, cos, sin, *, positions=None, interleaved=False, out=None):
    """Turn each pair of channels by the angle of its position.

    Parameters
    ----------
    x : float32 [..., T, D]
        Queries or keys.  The first 2K channels are rotated, the others pass through, bit for bit.
    cos, sin : float32 [S, K]
        From :func:`rope_table`.  Without ``positions``, row t belongs to token t and S = T.
    positions : int32 or int64 [T] or [B, T], optional
        Rows of the table; the latter for ``x`` [B, ..., T, D].
    interleaved : bool
        Pairs are channels (2k, 2k+1); otherwise (k, k+K), as in Hugging Face's Llama.
    out : like x, optional
        Where to write; may be ``x`` itself (in place).

    Returns
    -------
    like x [..., T, D]

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``; 2K > D (named: 'cos').
    IndexError
        ``positions`` points outside the table; nothing is written.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result.  Two products and one sum
    a result, of which one rounding is fused away.  Same bits for any number of threads, in place, and for a token
    alone.  Source: Su et al. 2021, arXiv:2104.09864.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> x = np.array([[3, 4]], "f4")
    >>> ck.rope(x, np.float32([[0]]), np.float32([[1]]))  # a quarter turn
    array([[-4.,  3.]], dtype=float32)
    """
    _check_table("rope", "x", x, cos, sin, positions)
    return _ck.rope_fwd(out, x, cos, sin, positions, interleaved)


def rope_forward(x, cos, sin, *, positions=None, interleaved=False, out=None):
    """As :func:`rope`; also returns what :func:`rope_backward` needs.

    Returns
    -------
    y : like x [..., T, D]
    ctx : Context
        Refers to ``cos``, ``sin`` and ``positions``: do not overwrite them before backward.  ``x`` is not kept.
    """
    y = rope(x, cos, sin, positions=positions, interleaved=interleaved, out=out)
    return y, Context(cos, sin, positions, interleaved)


def rope_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradient of :func:`rope`: the rotation by the opposite angle.

    Parameters
    ----------
    dy : like x [..., T, D]
    ctx : Context
    out : Gradients, optional
        An array to write into; ``out.x`` may be ``dy`` (in place).
    accumulate : bool
        There is no parameter whose gradient could be added to: makes no difference.

    Returns
    -------
    Gradients
        ``x`` like x.  The tables have no gradient.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape or layout, another op's ``ctx``, overlapping ``out``.
    IndexError
        ``ctx.positions`` points outside the table; nothing is written.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> y, ctx = ck.rope_forward(np.float32([[3, 4]]), np.float32([[0]]), np.float32([[1]]))
    >>> ck.rope_backward(y, ctx).x
    array([[3., 4.]], dtype=float32)
    """
    check_context("rope_backward", Context, ctx)
    out = gradients("rope_backward", Gradients, out)
    _check_table("rope_backward", "dy", dy, *ctx[:3])
    return Gradients(_ck.rope_bwd(out.x, dy, *ctx))
