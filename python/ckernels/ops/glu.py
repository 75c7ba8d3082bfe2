"""Gated units: one half of a projection decides how much of the other passes."""
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.checks import check_context, gradients
from ckernels.ops.gelu import form
from ckernels.runtime import empty

__all__ = [
    "geglu", "geglu_backward", "geglu_forward",
    "reglu", "reglu_backward", "reglu_forward",
    "swiglu", "swiglu_backward", "swiglu_forward",
]


class Gradients(NamedTuple):
    """Like the inputs; ``up`` is None where ``gate`` held both."""

    gate: np.ndarray | None = None
    up: np.ndarray | None = None


class SwigluContext(NamedTuple):
    """What :func:`swiglu_backward` needs; ``up`` is None where ``gate`` holds both."""

    gate: np.ndarray
    up: np.ndarray | None


class GegluContext(NamedTuple):
    """What :func:`geglu_backward` needs; ``up`` is None where ``gate`` holds both."""

    gate: np.ndarray
    up: np.ndarray | None
    approximate: str


class RegluContext(NamedTuple):
    """What :func:`reglu_backward` needs; ``up`` is None where ``gate`` holds both."""

    gate: np.ndarray
    up: np.ndarray | None


def _halves(called, name, packed):
    """Return the two halves of the last axis, as views: of an array, or of a tensor by its own slices."""
    if not hasattr(packed, "__dlpack__") or not hasattr(packed, "shape"):
        raise TypeError(f"{called}(): '{name}' must be a NumPy array or lend its memory by __dlpack__, "
                        f"not {type(packed)!r}")
    shape = tuple(packed.shape)
    if not shape or shape[-1] % 2:
        raise ValueError(f"{called}(): '{name}' of shape {shape} does not fit [..., 2F], [gate | up]: "
                         "its last axis must be even, or 'up' be given")
    F = shape[-1] // 2
    return packed[..., :F], packed[..., F:]


def _pair(called, gate, up):
    return (gate, up) if up is not None else _halves(called, "gate", gate)


def _backward(called, kernel, dy, ctx, out):
    """Gradients of any unit: as two arrays, or as one where forward was given one."""
    dgate, dup = gradients(called, Gradients, out)
    pair = _pair(called, ctx.gate, ctx.up)
    if ctx.up is not None:
        return Gradients(*kernel(dgate, dup, dy, *pair))
    if dup is not None:
        raise ValueError(f"{called}(): 'out.up' must be None, as forward had no 'up': 'out.gate' holds both")
    kind = str(pair[0].dtype).removeprefix("torch.")
    both = dgate if dgate is not None else empty((*pair[0].shape[:-1], 2 * pair[0].shape[-1]), kind)
    kernel(*_halves(called, "out.gate", both), dy, *pair)
    return Gradients(both)


_GEGLU = {"none": _ck.geglu_fwd, "tanh": _ck.geglu_tanh_fwd, "sigmoid": _ck.geglu_sigmoid_fwd}
_GEGLU_BACKWARD = {"none": _ck.geglu_bwd, "tanh": _ck.geglu_tanh_bwd, "sigmoid": _ck.geglu_sigmoid_bwd}


def swiglu(gate, up=None, *, out=None):
    """Multiply ``up`` by ``silu(gate)``.

    Parameters
    ----------
    gate : float32, float16 or bfloat16 [..., F]
        Without ``up``: [..., 2F], gate in the first half of the last axis, up in the second.
    up : like gate [..., F], optional
    out : like gate [..., F], optional
        Where to write; may be ``gate`` or ``up`` itself (in place), when both are given.

    Returns
    -------
    like gate [..., F]

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``; without ``up`` an odd last
        axis.

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
    y : like gate [..., F]
    ctx : SwigluContext
        Refers to ``gate`` and ``up``: do not overwrite them before backward, not by ``out`` either.
    """
    return swiglu(gate, up, out=out), SwigluContext(gate, up)


def swiglu_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradients of :func:`swiglu`.

    Parameters
    ----------
    dy : like gate [..., F]
    ctx : SwigluContext
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
    check_context("swiglu_backward", SwigluContext, ctx)
    return _backward("swiglu_backward", _ck.swiglu_bwd, dy, ctx, out)


def geglu(gate, up=None, approximate="none", *, out=None):
    """Multiply ``up`` by ``gelu(gate)``.

    Parameters
    ----------
    gate : float32, float16 or bfloat16 [..., F]
        Without ``up``: [..., 2F], gate in the first half of the last axis, up in the second.
    up : like gate [..., F], optional
    approximate : str
        The form of :func:`gelu`: "none", "tanh" or "sigmoid".
    out : like gate [..., F], optional
        Where to write; may be ``gate`` or ``up`` itself (in place), when both are given.

    Returns
    -------
    like gate [..., F]

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``; without ``up`` an odd last
        axis; another ``approximate``.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result.
    Source: Shazeer 2020, arXiv:2002.05202.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.geglu(np.float32([1, 20]), np.float32([2, 1]))
    array([ 1.6826894, 20.       ], dtype=float32)
    >>> ck.geglu(np.float32([1, 20, 2, 1]))
    array([ 1.6826894, 20.       ], dtype=float32)
    """
    return form("geglu", _GEGLU, approximate)(out, *_pair("geglu", gate, up))


def geglu_forward(gate, up=None, approximate="none", *, out=None):
    """As :func:`geglu`; also returns what :func:`geglu_backward` needs.

    Returns
    -------
    y : like gate [..., F]
    ctx : GegluContext
        Refers to ``gate`` and ``up``: do not overwrite them before backward, not by ``out`` either.
    """
    return geglu(gate, up, approximate, out=out), GegluContext(gate, up, approximate)


def geglu_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradients of :func:`geglu`.

    Parameters
    ----------
    dy : like gate [..., F]
    ctx : GegluContext
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
    >>> y, ctx = ck.geglu_forward(np.float32([0, 0]), np.float32([2, 4]))
    >>> ck.geglu_backward(np.float32([1, 1]), ctx).gate
    array([1., 2.], dtype=float32)
    """
    check_context("geglu_backward", GegluContext, ctx)
    return _backward("geglu_backward", form("geglu_backward", _GEGLU_BACKWARD, ctx.approximate), dy, ctx, out)


def reglu(gate, up=None, *, out=None):
    """Multiply ``up`` by ``relu(gate)``.

    Parameters
    ----------
    gate : float32, float16 or bfloat16 [..., F]
        Without ``up``: [..., 2F], gate in the first half of the last axis, up in the second.
    up : like gate [..., F], optional
    out : like gate [..., F], optional
        Where to write; may be ``gate`` or ``up`` itself (in place), when both are given.

    Returns
    -------
    like gate [..., F]

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``; without ``up`` an odd last
        axis.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result.
    Source: Shazeer 2020, arXiv:2002.05202.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.reglu(np.float32([1, -1]), np.float32([2, 4]))
    array([2., 0.], dtype=float32)
    >>> ck.reglu(np.float32([1, -1, 2, 4]))
    array([2., 0.], dtype=float32)
    """
    return _ck.reglu_fwd(out, *_pair("reglu", gate, up))


def reglu_forward(gate, up=None, *, out=None):
    """As :func:`reglu`; also returns what :func:`reglu_backward` needs.

    Returns
    -------
    y : like gate [..., F]
    ctx : RegluContext
        Refers to ``gate`` and ``up``: do not overwrite them before backward, not by ``out`` either.
    """
    return reglu(gate, up, out=out), RegluContext(gate, up)


def reglu_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradients of :func:`reglu`.

    Parameters
    ----------
    dy : like gate [..., F]
    ctx : RegluContext
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
    >>> y, ctx = ck.reglu_forward(np.float32([1, -1]), np.float32([2, 4]))
    >>> ck.reglu_backward(np.float32([1, 1]), ctx).gate
    array([2., 0.], dtype=float32)
    """
    check_context("reglu_backward", RegluContext, ctx)
    return _backward("reglu_backward", _ck.reglu_bwd, dy, ctx, out)
