"""Rotary position embedding."""
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.checks import check_context, gradients
from ckernels.ops.rope_scaling import rule_of
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


def rope_table(positions, dim, base=10000.0, *, scaling=None, length=None):
    """Tabulate the cosine and sine of every position's angles.

    Pair ``k`` turns by ``positions[t] * base**(-2k / dim)``, or by what ``scaling`` makes of it.

    Parameters
    ----------
    positions : int32 or int64 [T]
        Any integers, in any order.
    dim : int
        Channels to rotate, 2K: even.
    base : float
        Positive; ``rope_theta`` of a Hugging Face config.
    scaling : dict, optional
        ``rope_scaling`` or ``rope_parameters`` of a Hugging Face config: ``rope_type`` (or ``type``) and the fields of
        that type.  A field that is None counts as left out.

        ==========  =======================================================================================
        default     none
        linear      factor
        ntk         factor
        dynamic     factor, original_max_position_embeddings
        yarn        factor, original_max_position_embeddings; optional: beta_fast=32, beta_slow=1, truncate=True,
                    attention_factor, or mscale and mscale_all_dim
        llama3      factor, low_freq_factor, high_freq_factor, original_max_position_embeddings
        longrope    short_factor, long_factor (each K numbers), original_max_position_embeddings; factor, or
                    attention_factor
        ==========  =======================================================================================

        yarn and longrope also multiply cosine and sine by their attention factor.  The formulas are in
        ``csrc/ops/rope.h`` and docs/ops/rope.md.
    length : int, optional
        Tokens of the sequence that the table is for: what dynamic and longrope go by, the others do not.  By default
        the largest position plus one.

    Returns
    -------
    cos, sin : float32 [T, K]

    Raises
    ------
    TypeError
        ``positions`` is no array of integers; ``dim``, ``base``, ``length`` or a field of ``scaling`` is of the wrong
        kind.
    ValueError
        ``dim`` is odd or negative, ``base`` not positive, ``positions`` not of one axis; a field of ``scaling`` is
        missing, unknown, out of range, or has no effect.
    MemoryError, OverflowError
        The tables are too large.

    Notes
    -----
    Error: angles are computed in double and each result is rounded once: half an ulp, plus ``|position| * 2**-51``
    times the frequency for the angle, which stays below a hundredth of an ulp up to position 2^20.
    Source: Su et al. 2021, arXiv:2104.09864; ntk, dynamic, yarn: Peng et al. 2023, arXiv:2309.00071; linear: Chen et
    al. 2023, arXiv:2306.15595; longrope: Ding et al. 2024, arXiv:2402.13753.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> cos, sin = ck.rope_table(np.arange(2), 4)
    >>> cos
    array([[1.       , 1.       ],
           [0.5403023, 0.99995  ]], dtype=float32)
    >>> ck.rope_table(np.arange(2), 4, scaling={"rope_type": "linear", "factor": 2.0})[1]
    array([[0.        , 0.        ],
           [0.47942555, 0.00499998]], dtype=float32)
    """
    if isinstance(dim, bool) or not isinstance(dim, (int, np.integer)):
        raise TypeError(f"rope_table(): 'dim' must be an integer, not {type(dim).__name__}")
    if dim < 0 or dim % 2:
        raise ValueError(f"rope_table(): 'dim' must be even and not negative, not {dim}")
    if length is not None and (isinstance(length, bool) or not isinstance(length, (int, np.integer))):
        raise TypeError(f"rope_table(): 'length' must be an integer, not {type(length).__name__}")
    if length is not None and length < 1:
        raise ValueError(f"rope_table(): 'length' must be positive, not {length}")
    rule = rule_of("rope_table", scaling, dim, base)
    shape = (*tuple(getattr(positions, "shape", ()))[:1], int(dim) // 2)
    try:
        tables = empty(shape), empty(shape)
    except (MemoryError, OverflowError) as error:
        raise type(error)(f"rope_table(): no memory for tables of shape {shape}") from None
    return _ck.rope_table(*tables, positions, *rule[:3], length or 0, base, *rule[3:])


def _check_positions(called, name, x, positions):
    """Refuse positions that are neither [T] nor [B, T]; what is no array, and T, the extension checks."""
    given, whole = (tuple(getattr(array, "shape", ())) for array in (positions, x))
    if len(given) > 1 and (len(whole) < 3 or given[:-1] != whole[:1]):
        raise ValueError(f"{called}(): 'positions' of shape {given} does not fit [T] or [B, T], "
                         f"where '{name}' of shape {whole} is [B, ..., T, D]")


def _explain_table(called, x, cos, sin):
    """Say it in the user's letters where a call was refused because the table has not a row a token."""
    whole, row = tuple(x.shape), tuple(getattr(cos, "shape", ()))
    if len(whole) < 2 or not row:
        return
    if len(row) != 2 or row[0] != whole[-2]:
        raise ValueError(f"{called}(): 'cos' of shape {row} does not fit [T, K], where T={whole[-2]}: "
                         "give 'positions', or a row a token") from None
    if tuple(sin.shape) != row:
        raise ValueError(f"{called}(): 'sin' of shape {tuple(sin.shape)} does not fit [T, K], "
                         f"where T={row[0]}, K={row[1]}") from None


def rope(x, cos, sin, *, positions=None, interleaved=False, out=None):
    """Turn each pair of channels by the angle of its position.

    Parameters
    ----------
    x : float32, float16 or bfloat16 [..., T, D]
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
    a result, of which one rounding is fused away; in float32 whatever the dtype, and rounded once.  Same bits for any
    number of threads, in place, and for a token alone.  Source: Su et al. 2021, arXiv:2104.09864.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> x = np.array([[3, 4]], "f4")
    >>> ck.rope(x, np.float32([[0]]), np.float32([[1]]))  # a quarter turn
    array([[-4.,  3.]], dtype=float32)
    """
    if positions is not None:
        _check_positions("rope", "x", x, positions)
    try:
        return _ck.rope_fwd(out, x, cos, sin, positions, interleaved)
    except ValueError:
        if positions is None:
            _explain_table("rope", x, cos, sin)
        raise


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
    if ctx.positions is not None:
        _check_positions("rope_backward", "dy", dy, ctx.positions)
    try:
        return Gradients(_ck.rope_bwd(out.x, dy, *ctx))
    except ValueError:
        if ctx.positions is None:
            _explain_table("rope_backward", dy, ctx.cos, ctx.sin)
        raise
