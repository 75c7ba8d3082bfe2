"""Gated units: one half of a projection decides how much of the other passes."""
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.checks import check_context, gradients
from ckernels.runtime import empty

__all__ = ["swiglu", "swiglu_backward", "swiglu_forward"]


class Context(NamedTuple):
    """What backward needs; ``up`` is None where ``gate`` holds both."""

    gate: np.ndarray
    up: np.ndarray | None


class Gradients(NamedTuple):
    """Like the inputs; ``up`` is None where ``gate`` held both."""

    gate: np.ndarray | None = None
    up: np.ndarray | None = None


def _halves(called, name, packed):
    """Return the two halves of the last axis, as views."""
    if not isinstance(packed, np.ndarray):
        if not hasattr(packed, "__dlpack__"):
            raise TypeError(f"{called}(): '{name}' must be a NumPy array or lend its memory by __dlpack__, "
                            f"not {type(packed)!r}")
        try:
            packed = np.from_dlpack(packed)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise TypeError(f"{called}(): '{name}' does not lend its memory: {error}") from None
    if packed.ndim == 0 or packed.shape[-1] % 2:
        raise ValueError(f"{called}(): '{name}' of shape {packed.shape} does not fit [..., 2F], [gate | up]: "
                         "its last axis must be even, or 'up' be given")
    F = packed.shape[-1] // 2
    return packed[..., :F], packed[..., F:]


def _pair(called, gate, up):
    return (gate, up) if up is not None else _halves(called, "gate", gate)


def swiglu(gate, up=None, *, out=None):
    """Multiply ``up`` by ``silu(gate)``.

    Parameters
    ----------
    gate : float32 [..., F]
        Without ``up``: [..., 2F], gate in the first half of the last axis, up in the second.
    up : float32 [..., F], optional
    out : float32 [..., F], optional
        Where to write; may be ``gate`` or ``up`` itself (in place), when both are given.

    Returns
    -------
    float32 [..., F]

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``; without ``up`` an odd last axis.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result.
    Source: Shazeer 2020, arXiv:2002.05202.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.swiglu(np.float32([1, -1]), np.float32([2, 4]))
    array([ 1.4621172, -1.0757657], dtype=float32)
    >>> ck.swiglu(np.float32([1, -1, 2, 4]))
    array([ 1.4621172, -1.0757657], dtype=float32)
    """
    return _ck.swiglu_fwd(out, *_pair("swiglu", gate, up))


def swiglu_forward(gate, up=None, *, out=None):
    """As :func:`swiglu`; also returns what :func:`swiglu_backward` needs.

    Returns
    -------
    y : float32 [..., F]
    ctx : Context
        Refers to ``gate`` and ``up``: do not overwrite them before backward, not by ``out`` either.
    """
    return swiglu(gate, up, out=out), Context(gate, up)


def swiglu_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradients of :func:`swiglu`.

    Parameters
    ----------
    dy : float32 [..., F]
    ctx : Context
    out : Gradients, optional
        Arrays to write into; may be ``dy``, ``gate`` and ``up`` themselves (in place).
    accumulate : bool
        There is no parameter whose gradient could be added to: makes no difference.

    Returns
    -------
    Gradients
        ``gate`` and ``up`` [..., F]; where forward had no ``up``, ``gate`` [..., 2F] holds both and ``up`` is None.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape or layout, another op's ``ctx``, overlapping ``out``.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> y, ctx = ck.swiglu_forward(np.float32([0, 0]), np.float32([2, 4]))
    >>> ck.swiglu_backward(np.float32([1, 1]), ctx).gate
    array([1., 2.], dtype=float32)
    """
    check_context("swiglu_backward", Context, ctx)
    dgate, dup = gradients("swiglu_backward", Gradients, out)
    pair = _pair("swiglu_backward", *ctx)
    if ctx.up is not None:
        return Gradients(*_ck.swiglu_bwd(dgate, dup, dy, *pair))
    if dup is not None:
        raise ValueError("swiglu_backward(): 'out.up' must be None, as forward had no 'up': 'out.gate' holds both")
    both = dgate if dgate is not None else empty((*pair[0].shape[:-1], 2 * pair[0].shape[-1]))
    _ck.swiglu_bwd(*_halves("swiglu_backward", "out.gate", both), dy, *pair)
    return Gradients(both)
