"""The loss of a regression: squared differences."""
import math
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.checks import check_context, gradients, loss_gradient, reduction_of

__all__ = ["mse_loss", "mse_loss_forward", "mse_loss_backward"]


class Context(NamedTuple):
    """What backward needs: both inputs, and what the sum was divided by."""

    input: np.ndarray
    target: np.ndarray
    reduction: str
    divisor: float


class Gradients(NamedTuple):
    """Like the input; the target's is its negative, and not computed."""

    input: np.ndarray | None = None


def mse_loss(input, target, *, reduction="mean", out=None):
    """Squared differences of input and target.

    Parameters
    ----------
    input : float32, float16 or bfloat16 [..., C]
    target : like input [..., C]
        Of the same shape: nothing is broadcast.
    reduction : {"mean", "sum", "none"}
        Mean over all elements (NaN where there is none), sum, or one loss an element.
    out : float32 [] or [..., C], optional
        Where to write the loss.

    Returns
    -------
    float32 [] or [..., C]
        An array without axes (``float(loss)`` is its value), or the shape of ``input`` under "none".

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout or range.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result; elements are summed in C
    order in blocks of 1024, block by block in double.  Same bits for any number of threads and any strides.
    Source: `torch.nn.functional.mse_loss`; under 16 bits the loss stays float32.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.mse_loss(np.float32([1, 2, 4]), np.float32([1, 0, 1]), reduction="sum")
    array(13., dtype=float32)
    """
    return mse_loss_forward(input, target, reduction=reduction, out=out)[0]


def mse_loss_forward(input, target, *, reduction="mean", out=None):
    """As :func:`mse_loss`; also returns what :func:`mse_loss_backward` needs.

    Returns
    -------
    loss : float32 [] or [..., C]
    ctx : Context
        Refers to ``input`` and ``target``: do not overwrite them before backward.
    """
    reduction_of("mse_loss", reduction)
    divisor = float(math.prod(getattr(input, "shape", ()))) if reduction == "mean" else 1.0
    wanted = True if out is None else out
    loss, losses = (None, wanted) if reduction == "none" else (wanted, None)
    loss, losses = _ck.mse_loss_fwd(loss, losses, input, target, divisor)
    return losses if reduction == "none" else loss, Context(input, target, reduction, divisor)


def mse_loss_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradient of :func:`mse_loss`.

    Parameters
    ----------
    dy : float, or float32 [..., C] under "none"
        1.0 for the gradient of the loss itself.
    ctx : Context
    out : Gradients, optional
        The array to write into; it may be ``ctx.input`` or ``ctx.target`` (in place, and then there is no second
        backward), or a float32 ``dy``.
    accumulate : bool
        No effect: a loss has no parameters, and gradients of inputs are overwritten.

    Returns
    -------
    Gradients
        ``input`` like input; that of the target is its negative.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, another op's ``ctx``, or overlapping ``out``.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> loss, ctx = ck.mse_loss_forward(np.float32([1, 2]), np.float32([1, 0]))
    >>> ck.mse_loss_backward(1.0, ctx).input
    array([0., 2.], dtype=float32)
    """
    check_context("mse_loss_backward", Context, ctx)
    out = gradients("mse_loss_backward", Gradients, out)
    each, scalar = loss_gradient("mse_loss_backward", dy, ctx.reduction)
    return Gradients(_ck.mse_loss_bwd(out.input, each, scalar, ctx.input, ctx.target, ctx.divisor))
