"""Functions of every element by itself; gelu, which has three forms, is in gelu.py."""
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.checks import check_context, gradients

__all__ = [
    "relu", "relu_backward", "relu_forward",
    "sigmoid", "sigmoid_backward", "sigmoid_forward",
    "silu", "silu_backward", "silu_forward",
    "softcap", "softcap_backward", "softcap_forward",
    "tanh", "tanh_backward", "tanh_forward",
]


class Gradients(NamedTuple):
    """Like the inputs."""

    x: np.ndarray | None = None


class ReluContext(NamedTuple):
    """What :func:`relu_backward` needs."""

    x: np.ndarray


class SiluContext(NamedTuple):
    """What :func:`silu_backward` needs."""

    x: np.ndarray


class SigmoidContext(NamedTuple):
    """What :func:`sigmoid_backward` needs."""

    x: np.ndarray


class TanhContext(NamedTuple):
    """What :func:`tanh_backward` needs."""

    x: np.ndarray


class SoftcapContext(NamedTuple):
    """What :func:`softcap_backward` needs."""

    x: np.ndarray
    cap: float


def relu(x, *, out=None):
    """Replace negative elements by 0: ``max(x, 0)``.

    Parameters
    ----------
    x : float32, float16 or bfloat16 [..., C]
    out : like x, optional
        Where to write; may be ``x`` itself (in place).

    Returns
    -------
    like x [..., C]

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``.

    Notes
    -----
    Exact. NaN stays NaN.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.relu(np.float32([-1, 0, 2]))
    array([0., 0., 2.], dtype=float32)
    """
    return _ck.relu_fwd(out, x)


def relu_forward(x, *, out=None):
    """As :func:`relu`; also returns what :func:`relu_backward` needs.

    Returns
    -------
    y : like x [..., C]
    ctx : ReluContext
        Refers to ``x``: do not overwrite it before backward, not by ``out`` either.
    """
    return relu(x, out=out), ReluContext(x)


def relu_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradient of :func:`relu`.

    Parameters
    ----------
    dy : like x [..., C]
    ctx : ReluContext
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
    Exact: ``dy`` where ``x`` is positive or NaN, else 0, as in PyTorch.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> y, ctx = ck.relu_forward(np.float32([-1, 2]))
    >>> ck.relu_backward(np.float32([5, 6]), ctx).x
    array([0., 6.], dtype=float32)
    """
    check_context("relu_backward", ReluContext, ctx)
    out = gradients("relu_backward", Gradients, out)
    return Gradients(_ck.relu_bwd(out.x, dy, ctx.x))


def silu(x, *, out=None):
    """Multiply each element by its sigmoid: ``x / (1 + exp(-x))``.

    Parameters
    ----------
    x : float32, float16 or bfloat16 [..., C]
    out : like x, optional
        Where to write; may be ``x`` itself (in place).

    Returns
    -------
    like x [..., C]

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result; in float32 also
    2.4 ulp of each result by itself, where PyTorch gives 0 from -89 down. ``silu(-inf)`` is NaN, as in PyTorch: the
    arithmetic is ``-inf * 0``. Source: Elfwing et al. 2018, arXiv:1702.03118.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.silu(np.float32([-1, 0, 1]))
    array([-0.26894143,  0.        ,  0.7310586 ], dtype=float32)
    """
    return _ck.silu_fwd(out, x)


def silu_forward(x, *, out=None):
    """As :func:`silu`; also returns what :func:`silu_backward` needs.

    Returns
    -------
    y : like x [..., C]
    ctx : SiluContext
        Refers to ``x``: do not overwrite it before backward, not by ``out`` either.
    """
    return silu(x, out=out), SiluContext(x)


def silu_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradient of :func:`silu`.

    Parameters
    ----------
    dy : like x [..., C]
    ctx : SiluContext
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
    >>> y, ctx = ck.silu_forward(np.float32([0, 0]))
    >>> ck.silu_backward(np.float32([1, 2]), ctx).x
    array([0.5, 1. ], dtype=float32)
    """
    check_context("silu_backward", SiluContext, ctx)
    out = gradients("silu_backward", Gradients, out)
    return Gradients(_ck.silu_bwd(out.x, dy, ctx.x))


def sigmoid(x, *, out=None):
    """The logistic function of each element: ``1 / (1 + exp(-x))``.

    Parameters
    ----------
    x : float32, float16 or bfloat16 [..., C]
    out : like x, optional
        Where to write; may be ``x`` itself (in place).

    Returns
    -------
    like x [..., C]

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result; in float32 also
    1 ulp of each result by itself (1.4 on baseline).

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.sigmoid(np.float32([-1, 0, 1]))
    array([0.26894143, 0.5       , 0.7310586 ], dtype=float32)
    """
    return _ck.sigmoid_fwd(out, x)


def sigmoid_forward(x, *, out=None):
    """As :func:`sigmoid`; also returns what :func:`sigmoid_backward` needs.

    Returns
    -------
    y : like x [..., C]
    ctx : SigmoidContext
        Refers to ``x``: do not overwrite it before backward, not by ``out`` either.
    """
    return sigmoid(x, out=out), SigmoidContext(x)


def sigmoid_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradient of :func:`sigmoid`.

    Parameters
    ----------
    dy : like x [..., C]
    ctx : SigmoidContext
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
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result. Computed from ``x``:
    where the sigmoid is 1 to its last place, ``1 - y`` would be 0.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> y, ctx = ck.sigmoid_forward(np.float32([0, 0]))
    >>> ck.sigmoid_backward(np.float32([1, 2]), ctx).x
    array([0.25, 0.5 ], dtype=float32)
    """
    check_context("sigmoid_backward", SigmoidContext, ctx)
    out = gradients("sigmoid_backward", Gradients, out)
    return Gradients(_ck.sigmoid_bwd(out.x, dy, ctx.x))


def tanh(x, *, out=None):
    """The hyperbolic tangent of each element.

    Parameters
    ----------
    x : float32, float16 or bfloat16 [..., C]
    out : like x, optional
        Where to write; may be ``x`` itself (in place).

    Returns
    -------
    like x [..., C]

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result; in float32 also
    1.4 ulp of each result by itself.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.tanh(np.float32([-1, 0, 1]))
    array([-0.7615942,  0.       ,  0.7615942], dtype=float32)
    """
    return _ck.tanh_fwd(out, x)


def tanh_forward(x, *, out=None):
    """As :func:`tanh`; also returns what :func:`tanh_backward` needs.

    Returns
    -------
    y : like x [..., C]
    ctx : TanhContext
        Refers to ``x``: do not overwrite it before backward, not by ``out`` either.
    """
    return tanh(x, out=out), TanhContext(x)


def tanh_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradient of :func:`tanh`.

    Parameters
    ----------
    dy : like x [..., C]
    ctx : TanhContext
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
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result. Computed from ``x``:
    where the tangent is 1 to its last place, ``1 - y * y`` would be 0.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> y, ctx = ck.tanh_forward(np.float32([0, 0]))
    >>> ck.tanh_backward(np.float32([1, 2]), ctx).x
    array([1., 2.], dtype=float32)
    """
    check_context("tanh_backward", TanhContext, ctx)
    out = gradients("tanh_backward", Gradients, out)
    return Gradients(_ck.tanh_bwd(out.x, dy, ctx.x))


def softcap(x, cap, *, out=None):
    """Bend each element so that it stays within ``cap``: ``cap * tanh(x / cap)``.

    Parameters
    ----------
    x : float32, float16 or bfloat16 [..., C]
    cap : float
        Positive and finite, also when rounded to float32.
    out : like x, optional
        Where to write; may be ``x`` itself (in place).

    Returns
    -------
    like x [..., C]

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``; ``cap`` that is not positive.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result.
    Source: the logits of Gemma 2, arXiv:2408.00118.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.softcap(np.float32([-100, 0, 100]), 30.0)
    array([-29.92374,   0.     ,  29.92374], dtype=float32)
    """
    return _ck.softcap_fwd(out, x, cap)


def softcap_forward(x, cap, *, out=None):
    """As :func:`softcap`; also returns what :func:`softcap_backward` needs.

    Returns
    -------
    y : like x [..., C]
    ctx : SoftcapContext
        Refers to ``x``: do not overwrite it before backward, not by ``out`` either.
    """
    return softcap(x, cap, out=out), SoftcapContext(x, cap)


def softcap_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradient of :func:`softcap`.

    Parameters
    ----------
    dy : like x [..., C]
    ctx : SoftcapContext
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
    >>> y, ctx = ck.softcap_forward(np.float32([0, 0]), 30.0)
    >>> ck.softcap_backward(np.float32([1, 2]), ctx).x
    array([1., 2.], dtype=float32)
    """
    check_context("softcap_backward", SoftcapContext, ctx)
    out = gradients("softcap_backward", Gradients, out)
    return Gradients(_ck.softcap_bwd(out.x, dy, ctx.x, ctx.cap))
