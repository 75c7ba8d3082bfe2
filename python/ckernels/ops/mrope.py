"""Multimodal rotary position embedding: a token has several positions, and each pair of channels goes by one."""
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.checks import check_context, gradients
from ckernels.ops.rope import Gradients

__all__ = ["mrope", "mrope_backward", "mrope_forward"]


class Context(NamedTuple):
    """What backward needs: the rotation alone."""

    cos: np.ndarray
    sin: np.ndarray
    positions: np.ndarray
    sections: tuple
    interleaved: bool
    interleaved_sections: bool


@lru_cache(maxsize=64)
def _axes(sections, interleaved):
    """Return the axis of each pair, int64 [K]: one section after another, or 0 1 2 0 1 2 ... and 0 at the end."""
    if not interleaved:
        axes = [axis for axis, pairs in enumerate(sections) for _ in range(pairs)]
    else:
        axes = [0] * sum(sections)
        for axis, pairs in enumerate(sections):
            if axis:
                axes[axis:axis + len(sections) * pairs:len(sections)] = [axis] * pairs
    axes = np.array(axes, np.int64)
    axes.flags.writeable = False
    return axes


def _axes_of(called, sections, interleaved, pairs):
    """Check the sections; return the axis of each pair."""
    try:
        sections = tuple(sections)
    except TypeError:
        raise TypeError(f"{called}(): 'sections' must be a sequence of integers, "
                        f"not {type(sections).__name__}") from None
    for count in sections:
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)):
            raise TypeError(f"{called}(): 'sections' must hold integers, not {type(count).__name__}")
    if any(count < 0 for count in sections) or sum(sections) != pairs:
        raise ValueError(f"{called}(): 'sections' {sections} do not share out the K={pairs} pairs of 'cos'")
    n = len(sections)
    for axis, count in enumerate(sections):
        last = axis + n * (count - 1)
        if interleaved and axis and count and last >= pairs:
            raise ValueError(f"{called}(): 'sections' {sections} cannot take turns: axis {axis} would have pair {last} "
                             f"of K={pairs}")
    return _axes(sections, bool(interleaved))


def _check_positions(called, name, x, positions, sections):
    """Refuse positions that are neither [A, T] nor [A, B, T]; what is no array, and T, the extension checks."""
    given, whole = (tuple(getattr(array, "shape", ())) for array in (positions, x))
    if not hasattr(positions, "shape"):
        return
    fits = len(given) == 2 or (len(given) == 3 and len(whole) > 2 and given[1] == whole[0])
    if not fits or given[0] != len(sections):
        raise ValueError(f"{called}(): 'positions' of shape {given} does not fit [A, T] or [A, B, T], where "
                         f"A={len(sections)} 'sections' and '{name}' of shape {whole} is [B, ..., T, D]")


def _arguments(called, name, x, cos, sin, positions, sections, interleaved, interleaved_sections):
    """Return what the extension takes, checked as far as it does not itself."""
    shape = tuple(getattr(cos, "shape", ()))
    if not shape:
        return x, cos, sin, None, positions, interleaved  # refused there
    axes = _axes_of(called, sections, interleaved_sections, shape[-1])
    _check_positions(called, name, x, positions, sections)
    return x, cos, sin, axes, positions, interleaved


def mrope(x, cos, sin, positions, sections, *, interleaved=False, interleaved_sections=False, out=None):
    """Turn each pair of channels by the angle of one of the token's positions: of time, of height or of width.

    Parameters
    ----------
    x : float32, float16 or bfloat16 [..., T, D]
        Queries or keys.  The first 2K channels are rotated, the others pass through, bit for bit.
    cos, sin : float32 [S, K]
        From :func:`rope_table` of ``np.arange(S)``.
    positions : int32 or int64 [A, T] or [A, B, T]
        Rows of the table, for each axis; the latter for ``x`` [B, ..., T, D].  ``position_ids`` of Qwen2-VL.
    sections : sequence of A int
        How many pairs go by each axis; together K.  ``mrope_section`` of a Hugging Face config.
    interleaved : bool
        Pairs are channels (2k, 2k+1); otherwise (k, k+K), as Qwen2-VL has them.
    interleaved_sections : bool
        Axes take turns from pair to pair, and what is left goes by axis 0, as in Qwen3-VL (``mrope_interleaved``);
        otherwise one section follows the other, as in Qwen2-VL.
    out : like x, optional
        Where to write; may be ``x`` itself (in place).

    Returns
    -------
    like x [..., T, D]

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``; sections that do not share out
        the pairs; 2K > D (named: 'cos').
    IndexError
        ``positions`` points outside the table; nothing is written.

    Notes
    -----
    Where all axes have the same position, as in text, the bits are those of :func:`rope`.
    Error: as :func:`rope`.  Source: Wang et al. 2024, arXiv:2409.12191.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> cos, sin = ck.rope_table(np.arange(9), 6)
    >>> x = np.ones((1, 6), "f4")
    >>> ck.mrope(x, cos, sin, np.array([[0], [8], [0]]), (1, 1, 1))  # only the second pair turns
    array([[1.        , 0.56899416, 1.        , 1.        , 1.2946991 ,
            1.        ]], dtype=float32)
    """
    return _ck.mrope_fwd(out, *_arguments("mrope", "x", x, cos, sin, positions, sections, interleaved,
                                          interleaved_sections))


def mrope_forward(x, cos, sin, positions, sections, *, interleaved=False, interleaved_sections=False, out=None):
    """As :func:`mrope`; also returns what :func:`mrope_backward` needs.

    Returns
    -------
    y : like x [..., T, D]
    ctx : Context
        Refers to ``cos``, ``sin`` and ``positions``: do not overwrite them before backward.  ``x`` is not kept.
    """
    y = mrope(x, cos, sin, positions, sections, interleaved=interleaved, interleaved_sections=interleaved_sections,
              out=out)
    return y, Context(cos, sin, positions, tuple(sections), interleaved, interleaved_sections)


def mrope_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradient of :func:`mrope`: the rotation by the opposite angles.

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
    Error: as :func:`rope_backward`.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> x = np.float32([[3, 4]])
    >>> y, ctx = ck.mrope_forward(x, np.float32([[1], [0]]), np.float32([[0], [1]]), np.array([[1]]), (1,))
    >>> y, ck.mrope_backward(y, ctx).x
    (array([[-4.,  3.]], dtype=float32), array([[3., 4.]], dtype=float32))
    """
    check_context("mrope_backward", Context, ctx)
    out = gradients("mrope_backward", Gradients, out)
    return Gradients(_ck.mrope_bwd(out.x, *_arguments("mrope_backward", "dy", dy, *ctx)))
