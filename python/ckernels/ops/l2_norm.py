"""Each row of the last axis divided by its length."""
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.ops.checks import check_context, gradients

__all__ = ["l2_norm", "l2_norm_backward", "l2_norm_forward"]


class Context(NamedTuple):
    """What backward needs; ``rnorm`` is float32 [...], one over the length of each row."""

    x: np.ndarray
    rnorm: np.ndarray


class Gradients(NamedTuple):
    """Like the inputs."""

    x: np.ndarray | None = None


def l2_norm(x, eps=1e-6, *, out=None):
    """Divide each row by its length, ``sqrt(sum(x**2) + eps)``.

    Parameters
    ----------
    x : float32, float16 or bfloat16 [..., C]
    eps : float
        Added to the sum of squares, inside the root: the default is that of Qwen3-Next's linear attention.
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
    Not ``torch.nn.functional.normalize``, which takes the larger of the length and eps.  Error: at most 3 times
    PyTorch's own against float64, plus 2 ulp of the largest result; 16-bit results are computed in float32 and rounded
    once.  Same bits for any number of threads and rows.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.l2_norm(np.array([[3, 4]], "f4"), eps=0.0)
    array([[0.6, 0.8]], dtype=float32)
    """
    return _ck.l2_norm_fwd(out, None, x, eps)[0]


def l2_norm_forward(x, eps=1e-6, *, out=None):
    """As :func:`l2_norm`; also returns what :func:`l2_norm_backward` needs.

    Returns
    -------
    y : like x [..., C]
    ctx : Context
        Refers to ``x``: do not overwrite it before backward.
    """
    y, rnorm = _ck.l2_norm_fwd(out, True, x, eps)
    return y, Context(x, rnorm)


def l2_norm_backward(dy, ctx, *, out=None, accumulate=False):
    """Gradient of :func:`l2_norm`.

    Parameters
    ----------
    dy : like x [..., C]
    ctx : Context
    out : Gradients, optional
        An array to write into; ``out.x`` may be ``dy`` (in place).
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
    Error: at most 3 times PyTorch's own against float64, plus 2 ulp of the largest term.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> y, ctx = ck.l2_norm_forward(np.float32([[0, 2]]), eps=0.0)
    >>> ck.l2_norm_backward(np.float32([[1, 1]]), ctx).x
    array([[0.5, 0. ]], dtype=float32)
    """
    check_context("l2_norm_backward", Context, ctx)
    return Gradients(_ck.l2_norm_bwd(gradients("l2_norm_backward", Gradients, out).x, dy, ctx.x, ctx.rnorm))
