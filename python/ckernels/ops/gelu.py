"""The Gaussian error linear unit, in three forms; of the family of activation.py."""
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.activation import Gradients
from ckernels.ops.checks import check_context, gradients

__all__ = ["form", "gelu", "gelu_backward", "gelu_forward"]


class GeluContext(NamedTuple):
    """What :func:`gelu_backward` needs."""

    x: np.ndarray
    approximate: str


def form(called, forms, approximate):
    """Return the function for ``approximate``.

    Parameters
    ----------
    called : str
        The function the user called: "gelu".
    forms : dict
        From the names to the functions.
    approximate : str
        What the user gave.

    Raises
    ------
    TypeError
        It is no string.
    ValueError
        It is none of the names.
    """
    if not isinstance(approximate, str):
        raise TypeError(f"{called}(): 'approximate' must be a string, not {type(approximate)!r}")
    if approximate not in forms:
        raise ValueError(f"{called}(): 'approximate' must be one of {', '.join(map(repr, forms))}, not {approximate!r}")
    return forms[approximate]


_GELU = {"none": _ck.gelu_fwd, "tanh": _ck.gelu_tanh_fwd, "sigmoid": _ck.gelu_sigmoid_fwd}
_GELU_BACKWARD = {"none": _ck.gelu_bwd, "tanh": _ck.gelu_tanh_bwd, "sigmoid": _ck.gelu_sigmoid_bwd}


def gelu(x, approximate="none", *, out=None):
    """Multiply each element by the share of a normal distribution that lies below it.

    Parameters
    ----------
    x : float32, float16 or bfloat16 [..., C]
    approximate : str
        "none": ``x * (1 + erf(x / sqrt(2))) / 2``;
        "tanh": ``x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2``;
        "sigmoid": ``x / (1 + exp(-1.702 * x))``, also called quick GELU.
        The last two differ from the first by up to 5e-4 and 2e-2: they are functions of their own.
    out : like x, optional
        Where to write; may be ``x`` itself (in place).

    Returns
    -------
    like x [..., C]

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``; another ``approximate``.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result. In float32 "none" is
    also right in each result by itself, to 7 ulp, down to where it is 0 (-14.3); PyTorch's is 0 from -5.5 down.
    ``gelu(-inf)`` is NaN, as in PyTorch: the arithmetic is ``-inf * 0``.
    Source: Hendrycks and Gimpel 2016, arXiv:1606.08415.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.gelu(np.float32([0, 1, 20]))
    array([ 0.       ,  0.8413447, 20.       ], dtype=float32)
    """
    return form("gelu", _GELU, approximate)(out, x)


def gelu_forward(x, approximate="none", *, out=None):
    """As :func:`gelu`; also returns what :func:`gelu_backward` needs.

    Returns
    -------
    y : like x [..., C]
    ctx : GeluContext
        Refers to ``x``: do not overwrite it before backward, not by ``out`` either.
    """
    return gelu(x, approximate, out=out), GeluContext(x, approximate)


def gelu_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradient of :func:`gelu`.

    Parameters
    ----------
    dy : like x [..., C]
    ctx : GeluContext
    out : Gradients, optional
        An array to write into; ``out.x`` may be ``dy`` (in place), or the ``x`` of forward.
    accumulate : bool
        There is no parameter whose gradient could be added to: makes no difference.

    Returns
    -------
    Gradients
        ``x`` like x.

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
    >>> y, ctx = ck.gelu_forward(np.float32([0, 0]))
    >>> ck.gelu_backward(np.float32([1, 2]), ctx).x
    array([0.5, 1. ], dtype=float32)
    """
    check_context("gelu_backward", GeluContext, ctx)
    out = gradients("gelu_backward", Gradients, out)
    return Gradients(form("gelu_backward", _GELU_BACKWARD, ctx.approximate)(out.x, dy, ctx.x))
