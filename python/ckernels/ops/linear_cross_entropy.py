"""The loss of a language model straight from its last hidden states: the logits are never held as a whole."""
import math
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.checks import check_context, flag, gradients, loss_gradient, reduction_of

__all__ = ["linear_cross_entropy", "linear_cross_entropy_forward", "linear_cross_entropy_backward",
           "linear_cross_entropy_grads"]


class Context(NamedTuple):
    """What backward needs; ``peak`` and ``sum`` are float32 [...]: a row's largest x, and the sum of exp(x - peak)."""

    x: np.ndarray
    weight: np.ndarray
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

    x: np.ndarray | None = None
    weight: np.ndarray | None = None


def _forward(x, weight, target, ignore_index, reduction, label_smoothing, z_loss, softcap, out, save):
    reduction_of("linear_cross_entropy", reduction)
    cap = math.inf if softcap is None else softcap
    wanted = True if out is None else out
    loss, losses = (None, wanted) if reduction == "none" else (wanted, None)
    loss, losses, peak, total = _ck.linear_cross_entropy_fwd(
        loss, losses, save, save, x, weight, target, ignore_index, reduction == "mean", label_smoothing, z_loss, cap)
    ctx = Context(x, weight, target, peak, total, ignore_index, reduction, label_smoothing, z_loss, cap)
    return losses if reduction == "none" else loss, ctx


def linear_cross_entropy(x, weight, target, *, ignore_index=-100, reduction="mean", label_smoothing=0.0, z_loss=0.0,
                         softcap=None, out=None):
    """Cross entropy of ``x @ weight.T``: that of :func:`cross_entropy`, without the logits [..., V] in memory.

    Parameters
    ----------
    x : float32, float16 or bfloat16 [..., C]
    weight : like x [V, C]
        One row a class, as :func:`linear` takes it.
    target : int32 or int64 [...]
        0 to V-1, or ``ignore_index``. Any strides.
    ignore_index : int
        Rows with this target do not count: loss 0, and none of the gradients comes from them.
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
    Memory: logits live in blocks of 256 rows and 2048 classes, as floats; in 16 bits, where they are never rounded,
    ``x`` and a block of ``weight`` are widened as well.  Error: at most 3 times that of PyTorch's linear followed by
    its cross_entropy against float64, plus 2 ulp of the largest result.  Same bits for any number of threads and rows.
    Source: the formulas of `torch.nn.functional.linear` and `cross_entropy`; never holding the logits is the idea of
    "Cut Your Losses", arXiv:2411.09009, and of Liger, arXiv:2410.10989.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.linear_cross_entropy(np.ones((3, 2), "f4"), np.zeros((4, 2), "f4"), np.array([0, 3, -100]))
    array(1.3862944, dtype=float32)
    """
    return _forward(x, weight, target, ignore_index, reduction, label_smoothing, z_loss, softcap, out, None)[0]


def linear_cross_entropy_forward(x, weight, target, *, ignore_index=-100, reduction="mean", label_smoothing=0.0,
                                 z_loss=0.0, softcap=None, out=None):
    """As :func:`linear_cross_entropy`; also returns what :func:`linear_cross_entropy_backward` needs.

    Returns
    -------
    loss : float32 [] or [...]
    ctx : Context
        Refers to ``x``, ``weight`` and ``target``: do not overwrite them before backward, which computes the logits
        anew.  Beside them it holds two float32 a row.
    """
    return _forward(x, weight, target, ignore_index, reduction, label_smoothing, z_loss, softcap, out, True)


def linear_cross_entropy_grads(x, weight, target, *, ignore_index=-100, reduction="mean", label_smoothing=0.0,
                               z_loss=0.0, softcap=None, dy=1.0, out=None, accumulate=False):
    """Loss and gradients in one call: forward and backward with the same bits, but logits are computed once in float32.

    Parameters
    ----------
    x, weight, target, ignore_index, label_smoothing, z_loss, softcap
        As for :func:`linear_cross_entropy`.
    reduction : {"mean", "sum"}
    dy : float
        What the gradients are of: ``dy`` times the loss.
    out : Gradients, optional
        The arrays to write into.
    accumulate : bool
        Add the gradient of the weight to what is in ``out``, in one rounded addition an element.

    Returns
    -------
    loss : float32 []
    grads : Gradients
        ``x`` [..., C] and ``weight`` [V, C].

    Raises
    ------
    IndexError
        A target outside the table; nothing is written.
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout or range, or overlapping ``out``.

    Notes
    -----
    Memory: the logits of 256 rows as floats; without them, as forward and backward, in 16 bits, and for more rows than
    that with ``accumulate``.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> loss, grads = ck.linear_cross_entropy_grads(np.ones((1, 1), "f4"), np.zeros((2, 1), "f4"), np.array([1]))
    >>> loss, grads.weight
    (array(0.6931472, dtype=float32), array([[ 0.5],
           [-0.5]], dtype=float32))
    """
    called = "linear_cross_entropy_grads"
    if reduction not in ("mean", "sum"):
        raise ValueError(f"{called}(): 'reduction' must be 'mean' or 'sum', not {reduction!r}")
    dx, dweight = gradients(called, Gradients, out)
    add = flag(called, "accumulate", accumulate) and dweight is not None
    loss, dx, dweight = _ck.linear_cross_entropy_grads(
        True, True if dx is None else dx, True if dweight is None else dweight, dy, x, weight, target, ignore_index,
        reduction == "mean", label_smoothing, z_loss, math.inf if softcap is None else softcap, add)
    return loss, Gradients(dx, dweight)


def linear_cross_entropy_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradient of :func:`linear_cross_entropy`.

    Parameters
    ----------
    dy : float, or float32 [...] under "none"
        1.0 for the gradient of the loss itself.
    ctx : Context
    out : Gradients, optional
        The arrays to write into.
    accumulate : bool
        Add the gradient of the weight to what is in ``out``, in one rounded addition an element.

    Returns
    -------
    Gradients
        ``x`` [..., C] and ``weight`` [V, C], in their dtype.

    Raises
    ------
    IndexError
        A target outside the table; nothing is written.
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, another op's ``ctx``, or overlapping ``out``.

    Notes
    -----
    Error: at most 3 times that of PyTorch's linear and cross_entropy against float64, plus 2 ulp of the largest
    result.  The sum over rows for ``weight`` is float32 in any dtype, in blocks of 256 rows.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> y, ctx = ck.linear_cross_entropy_forward(np.ones((1, 1), "f4"), np.zeros((2, 1), "f4"), np.array([1]))
    >>> ck.linear_cross_entropy_backward(1.0, ctx).weight
    array([[ 0.5],
           [-0.5]], dtype=float32)
    """
    called = "linear_cross_entropy_backward"
    check_context(called, Context, ctx)
    dx, dweight = gradients(called, Gradients, out)
    add = flag(called, "accumulate", accumulate) and dweight is not None
    per_row, scalar = loss_gradient(called, dy, ctx.reduction)
    return Gradients(*_ck.linear_cross_entropy_bwd(
        True if dx is None else dx, True if dweight is None else dweight, per_row, scalar, ctx.x, ctx.weight,
        ctx.target, ctx.peak, ctx.sum, ctx.ignore_index, ctx.reduction == "mean", ctx.label_smoothing, ctx.z_loss,
        ctx.softcap, add))
