"""The loss of a classifier or language model: log-sum-exp less the target's logit."""
import math
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.checks import check_context, gradients, loss_gradient, reduction_of

__all__ = ["cross_entropy", "cross_entropy_forward", "cross_entropy_backward"]


class Context(NamedTuple):
    """What backward needs; ``peak`` and ``sum`` are float32 [...]: a row's largest x, and the sum of exp(x - peak)."""

    logits: np.ndarray
    target: np.ndarray
    peak: np.ndarray
    sum: np.ndarray
    ignore_index: int
    reduction: str
    label_smoothing: float
    z_loss: float
    softcap: float


class Gradients(NamedTuple):
    """Like the inputs; targets have none."""

    logits: np.ndarray | None = None


def _forward(logits, target, ignore_index, reduction, label_smoothing, z_loss, softcap, out, save):
    reduction_of("cross_entropy", reduction)
    cap = math.inf if softcap is None else softcap
    wanted = True if out is None else out
    loss, losses = (None, wanted) if reduction == "none" else (wanted, None)
    loss, losses, peak, total = _ck.cross_entropy_fwd(
        loss, losses, save, save, logits, target, ignore_index, reduction == "mean", label_smoothing, z_loss, cap)
    ctx = Context(logits, target, peak, total, ignore_index, reduction, label_smoothing, z_loss, cap)
    return losses if reduction == "none" else loss, ctx


def cross_entropy(logits, target, *, ignore_index=-100, reduction="mean", label_smoothing=0.0, z_loss=0.0,
                  softcap=None, out=None):
    """How surprising each target is: minus the logarithm of its softmax probability.

    Parameters
    ----------
    logits : float32, float16 or bfloat16 [..., V]
    target : int32 or int64 [...]
        0 to V-1, or ``ignore_index``. Any strides.
    ignore_index : int
        Rows with this target do not count: loss 0, gradient 0, logits not read.
    reduction : {"mean", "sum", "none"}
        Mean over the rows that count (NaN where none does), sum, or one loss a row.
    label_smoothing : float
        0 to 1: the share of the target that is spread over all V classes, as in PyTorch.
    z_loss : float
        Times the square of each row's log-sum-exp, added to its loss.
    softcap : float, optional
        Replace the logits by ``softcap * tanh(logits / softcap)`` first.
    out : float32 [] or [...], optional
        Where to write the loss.

    Returns
    -------
    float32 [] or [...]
        An array without axes (``float(loss)`` is its value), or with those of ``target`` under "none".

    Raises
    ------
    IndexError
        A target outside the table; says which and at what position, counted in C order. Nothing is written.
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout or range.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result; a row's exponentials are
    summed in blocks of 2048 in 16 lanes, block by block in double, and so are the losses.  Never capped: it is
    log-sum-exp, not the logarithm of a probability.  Same bits for any number of threads and rows.
    Source: `torch.nn.functional.cross_entropy`, with the classes last; z-loss as in PaLM, arXiv:2204.02311.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.cross_entropy(np.zeros((3, 4), "f4"), np.array([0, 3, -100]))
    array(1.3862944, dtype=float32)
    """
    return _forward(logits, target, ignore_index, reduction, label_smoothing, z_loss, softcap, out, None)[0]


def cross_entropy_forward(logits, target, *, ignore_index=-100, reduction="mean", label_smoothing=0.0, z_loss=0.0,
                          softcap=None, out=None):
    """As :func:`cross_entropy`; also returns what :func:`cross_entropy_backward` needs.

    Returns
    -------
    loss : float32 [] or [...]
    ctx : Context
        Refers to ``logits`` and ``target``: do not overwrite them before backward.
    """
    return _forward(logits, target, ignore_index, reduction, label_smoothing, z_loss, softcap, out, True)


def cross_entropy_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradient of :func:`cross_entropy`.

    Parameters
    ----------
    dy : float, or float32 [...] under "none"
        1.0 for the gradient of the loss itself.
    ctx : Context
    out : Gradients, optional
        The array to write into; it may be ``ctx.logits`` (in place, and then there is no second backward).
    accumulate : bool
        No effect: a loss has no parameters, and gradients of inputs are overwritten.

    Returns
    -------
    Gradients
        ``logits`` like logits [..., V].

    Raises
    ------
    IndexError
        A target outside the table; nothing is written.
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, another op's ``ctx``, or overlapping ``out``.

    Notes
    -----
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest result.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> y, ctx = ck.cross_entropy_forward(np.zeros((1, 2), "f4"), np.array([1]))
    >>> ck.cross_entropy_backward(1.0, ctx).logits
    array([[ 0.5, -0.5]], dtype=float32)
    """
    check_context("cross_entropy_backward", Context, ctx)
    dlogits = gradients("cross_entropy_backward", Gradients, out).logits
    per_row, scalar = loss_gradient("cross_entropy_backward", dy, ctx.reduction)
    return Gradients(_ck.cross_entropy_bwd(
        dlogits, per_row, scalar, ctx.logits, ctx.target, ctx.peak, ctx.sum, ctx.ignore_index, ctx.reduction == "mean",
        ctx.label_smoothing, ctx.z_loss, ctx.softcap))
