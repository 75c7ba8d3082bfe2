"""A row times a weight: y = activation(x W^T + bias) + residual."""

from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.checks import check_context, flag, gradients
from ckernels.ops.pack import PackedWeight, dtype_name, split

__all__ = ["linear", "linear_forward", "linear_backward"]

# Their numbers are ck_activation's; ck.gelu's approximate="none", "tanh" and "sigmoid" have a name each.
_ACTIVATIONS = (None, "relu", "silu", "gelu", "gelu_tanh", "gelu_sigmoid", "sigmoid", "tanh")


class Context(NamedTuple):
    """What backward needs; ``pre`` [..., N] is the value before the activation, None without one."""

    x: np.ndarray
    weight: np.ndarray | PackedWeight
    pre: np.ndarray | None
    activation: str | None
    bias: bool
    residual: bool


class Gradients(NamedTuple):
    """Like the inputs; ``bias`` and ``residual`` are None where there were none."""

    x: np.ndarray | None = None
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    residual: np.ndarray | None = None


def _number(activation):
    if activation is not None and not isinstance(activation, str):
        raise TypeError(f"linear(): 'activation' must be None or a name, not {activation!r}")
    if activation not in _ACTIVATIONS:
        names = ", ".join(map(repr, _ACTIVATIONS[1:]))
        raise ValueError(f"linear(): 'activation' must be None or one of {names}, not {activation!r}")
    return _ACTIVATIONS.index(activation)


def _zeros(shape, like):
    array = _ck.empty(tuple(shape), dtype_name(like))
    array.fill(0)
    return array


def linear(x, weight, bias=None, *, activation=None, residual=None, out=None):
    """Multiply each row by a weight: ``activation(x @ weight.T + bias) + residual``.

    Parameters
    ----------
    x : float32, float16 or bfloat16 [..., K]
        Sums are float32 whatever the dtype, and rounded once.
    weight : like ``x`` [N, K], or PackedWeight
        ``ck.pack(weight)`` makes repeated calls faster; the bits are the same.
    bias : like ``x`` [N], optional
    activation : {None, "relu", "silu", "gelu", "gelu_tanh", "gelu_sigmoid", "sigmoid", "tanh"}
        Applied after the bias.  The three forms of gelu are those of ``ck.gelu``: "none" (by erf), "tanh", "sigmoid".
    residual : like ``x`` [..., N], optional
        Added last.
    out : like ``x`` [..., N], optional
        Where to write; may be ``residual`` itself (in place).

    Returns
    -------
    like ``x`` [..., N]

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, an unknown activation, or overlapping ``out``.

    Notes
    -----
    Each element is a sum over k in blocks of 64: inside a block one ascending chain of fused multiply-adds, then
    the blocks in order.  So a row has the same bits alone, in any batch, at any place in it, for any number of threads,
    packed or not, on avx2 and avx512 alike.  Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the
    largest result.  With ``ck.set_matmul_backend("openblas")`` the order is OpenBLAS's, without these promises.  On
    ``amx`` bfloat16 has that of its instruction: equal in every batch too, but not to avx512.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> x, w = np.array([[1, 2]], "f4"), np.array([[1, 0], [0, 1], [1, -1]], "f4")
    >>> ck.linear(x, w, np.array([0, 0, 0.5], "f4"), activation="relu")
    array([[1., 2., 0.]], dtype=float32)
    """
    weight, packed = split(weight)
    return _ck.linear_fwd(out, None, x, weight, packed, bias, residual, _number(activation))[0]


def linear_forward(x, weight, bias=None, *, activation=None, residual=None, out=None):
    """As :func:`linear`; also returns what :func:`linear_backward` needs.

    Returns
    -------
    y : like ``x`` [..., N]
    ctx : Context
        Refers to ``x`` and ``weight``: do not overwrite them before backward.  With an activation it also holds the
        value before it, an array like ``y``.
    """
    plain, packed = split(weight)
    number = _number(activation)
    y, pre = _ck.linear_fwd(out, True if number else None, x, plain, packed, bias, residual, number)
    return y, Context(x, weight, pre, activation, bias is not None, residual is not None)


def linear_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradients of :func:`linear`.

    Parameters
    ----------
    dy : like ``x`` [..., N]
    ctx : Context
    out : Gradients, optional
        Arrays to write into; a field that is None gets a new one.
    accumulate : bool
        Add the gradients of weight and bias to ``out.weight`` and ``out.bias`` instead of overwriting them.

    Returns
    -------
    Gradients
        ``x`` [..., K], ``weight`` [N, K] plain even for a packed weight, ``bias`` [N] or None, ``residual`` a copy of
        ``dy`` or None.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape or layout, another op's ``ctx``, overlapping ``out``.

    Notes
    -----
    The gradient of x sums over n, that of weight over the rows, both in the order of :func:`linear`; that of bias over
    the rows in double.  A packed weight's own array is read for the gradient of x.  Error: at most
    3 times PyTorch's own against float64, plus 2 ulp of the largest result.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> y, ctx = ck.linear_forward(np.float32([[1, 2]]), np.float32([[3, 4]]), np.float32([5]))
    >>> ck.linear_backward(np.float32([[1]]), ctx).weight
    array([[1., 2.]], dtype=float32)
    """
    check_context("linear_backward", Context, ctx)
    accumulate = flag("linear_backward", "accumulate", accumulate)
    absent = [name for name in ("bias", "residual") if not getattr(ctx, name)]
    dx, dweight, dbias, dresidual = gradients("linear_backward", Gradients, out, absent)
    weight, _ = split(ctx.weight)
    number = _number(ctx.activation)
    if accumulate and dweight is None:  # what is not given starts at zero
        dweight = _zeros(weight.shape, weight)
    if accumulate and ctx.bias and dbias is None:
        dbias = _zeros(weight.shape[:1], weight)
    return Gradients(
        *_ck.linear_bwd(
            True if dx is None else dx,
            True if dweight is None else dweight,
            (True if dbias is None else dbias) if ctx.bias else None,
            (True if dresidual is None else dresidual) if ctx.residual else None,
            dy,
            ctx.x,
            weight,
            ctx.pre,
            number,
            accumulate,
        )
    )
