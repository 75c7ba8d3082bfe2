"""The Kullback-Leibler divergence of a target distribution from one that is given by its logarithm."""
import math
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.checks import check_context, flag, gradients, loss_gradient, reduction_of

__all__ = ["kl_div", "kl_div_forward", "kl_div_backward"]


class Context(NamedTuple):
    """What backward needs: the target, what the sum was divided by, and what the target is."""

    target: np.ndarray
    reduction: str
    divisor: float
    log_target: bool


class Gradients(NamedTuple):
    """Like the input; the target has none."""

    input: np.ndarray | None = None


def kl_div(input, target, *, reduction="mean", log_target=False, out=None):
    """Kullback-Leibler divergence, element by element ``target * (log(target) - input)``.

    Parameters
    ----------
    input : float32, float16 or bfloat16 [..., C]
        Logarithms of probabilities, as :func:`log_softmax` returns them.
    target : like input [..., C]
        Probabilities, or their logarithms with ``log_target``.  Of the same shape: nothing is broadcast.
    reduction : {"mean", "sum", "none", "batchmean"}
        Mean over all elements, sum, one loss an element, or the sum divided by the size of the first axis, which is
        the divergence as it is defined.
    log_target : bool
        Whether ``target`` holds logarithms.
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
    A target of 0 adds 0, unless its input is infinite or NaN; a negative one adds NaN: both as in PyTorch.
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest term; elements are summed in C order
    in blocks of 1024, block by block in double.  Same bits for any number of threads and any strides.
    Source: `torch.nn.functional.kl_div`; under 16 bits the loss stays float32.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> p, q = np.float32([[0.5, 0.5]]), np.float32([[0.25, 0.75]])
    >>> ck.kl_div(np.log(q), p, reduction="batchmean")
    array(0.14384104, dtype=float32)
    """
    return kl_div_forward(input, target, reduction=reduction, log_target=log_target, out=out)[0]


def kl_div_forward(input, target, *, reduction="mean", log_target=False, out=None):
    """As :func:`kl_div`; also returns what :func:`kl_div_backward` needs.

    Returns
    -------
    loss : float32 [] or [..., C]
    ctx : Context
        Refers to ``target``: do not overwrite it before backward.  ``input`` is not needed any more.
    """
    reduction_of("kl_div", reduction, "batchmean")
    log_target = flag("kl_div", "log_target", log_target)
    shape = getattr(input, "shape", ())
    divisor = {"mean": math.prod(shape), "batchmean": shape[0] if len(shape) else 1}.get(reduction, 1)
    wanted = True if out is None else out
    loss, losses = (None, wanted) if reduction == "none" else (wanted, None)
    loss, losses = _ck.kl_div_fwd(loss, losses, input, target, divisor, log_target)
    return losses if reduction == "none" else loss, Context(target, reduction, divisor, log_target)


def kl_div_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradient of :func:`kl_div`.

    Parameters
    ----------
    dy : float, or float32 [..., C] under "none"
        1.0 for the gradient of the loss itself.
    ctx : Context
    out : Gradients, optional
        The array to write into; it may be ``ctx.target`` (in place, and then there is no second backward), or a
        float32 ``dy``.
    accumulate : bool
        No effect: a loss has no parameters, and gradients of inputs are overwritten.

    Returns
    -------
    Gradients
        ``input`` like target.

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
    >>> loss, ctx = ck.kl_div_forward(np.float32([[-1, -2]]), np.float32([[0.5, 0.5]]), reduction="sum")
    >>> ck.kl_div_backward(1.0, ctx).input
    array([[-0.5, -0.5]], dtype=float32)
    """
    check_context("kl_div_backward", Context, ctx)
    out = gradients("kl_div_backward", Gradients, out)
    each, scalar = loss_gradient("kl_div_backward", dy, ctx.reduction)
    return Gradients(_ck.kl_div_bwd(out.input, each, scalar, ctx.target, ctx.divisor, ctx.log_target))
