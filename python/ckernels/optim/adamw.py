"""Adam with decoupled weight decay."""
import numpy as np

from ckernels import _ck
from ckernels.optim.lists import call, number
from ckernels.optim.optimizer import Optimizer

__all__ = ["AdamW"]


class AdamW(Optimizer):
    """``torch.optim.AdamW``: Adam with decoupled weight decay.

    Parameters
    ----------
    params : dict or sequence of arrays, or a list of groups
        Updated in place, so writeable; float32, float16 or bfloat16; the last axis contiguous, the others with any
        stride. A group is ``{"params": dict or sequence, "weight_decay": ...}`` with options of its own.
    lr : float
        Step size.
    betas : (float, float)
        How much of the averages of the gradient and of its square a step keeps; at least 0 and below 1.
    eps : float
        Added to the denominator, outside the root.
    weight_decay : float
        A step first multiplies the parameters by ``1 - lr * weight_decay``.
    amsgrad : bool
        Divide by the largest average square so far.
    maximize : bool
        Climb instead.

    Attributes
    ----------
    param_groups : list of dicts
        The options by torch's names: ``opt.param_groups[0]["lr"] = 0.01`` takes effect with the next step.
    state : dict
        ``{index: {"step", "exp_avg", "exp_avg_sq"}}``, and ``"max_exp_avg_sq"`` with amsgrad, of the parameters that
        have been stepped: float32 arrays whatever the parameter's dtype.

    Raises
    ------
    TypeError, ValueError
        A number or parameter of the wrong kind or out of range; parameters that share memory.

    Notes
    -----
    One pass over all tensors together, in torch's order: decay, averages, bias corrections, the denominator
    ``sqrt(exp_avg_sq) / sqrt(1 - beta2**step) + eps``. Computed in float32; 16-bit parameters are rounded once. Source:
    `torch.optim.AdamW`, version 2.13; Loshchilov and Hutter, Decoupled Weight Decay Regularization.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> params = {"w": np.float32([1, 2])}
    >>> opt = ck.optim.AdamW(params, lr=0.5, weight_decay=0.0)
    >>> opt.step({"w": np.float32([3, -4])})
    >>> params["w"]
    array([0.5, 2.5], dtype=float32)
    """

    _arrays = ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    _needed = ("step", "exp_avg", "exp_avg_sq")
    _must = ("lr", "betas", "eps", "weight_decay", "amsgrad")

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False, *,
                 maximize=False):
        super().__init__(params, {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": bool(amsgrad),
            "foreach": None, "maximize": bool(maximize), "capturable": False, "differentiable": False, "fused": None,
            "decoupled_weight_decay": True})

    def _options(self, where, options):
        for name in ("lr", "eps", "weight_decay"):
            number(where, name, options[name], 0)
        betas = options["betas"]
        if not isinstance(betas, (list, tuple)) or len(betas) != 2:
            raise TypeError(f"{where}: 'betas' must be two numbers, not {betas!r}")
        for i, beta in enumerate(betas):
            number(where, f"betas[{i}]", beta, 0, 1)
        options["betas"] = tuple(betas)
        if not options["decoupled_weight_decay"]:
            raise ValueError(f"{where}: 'decoupled_weight_decay' must be true: this is AdamW, not Adam")

    def _names(self, group):
        return self._arrays if group["amsgrad"] else self._needed

    def _update(self, where, batch, scale, zero, check):
        group, grads = batch.group, batch.grads
        steps = np.array([float(entry["step"]) + 1 for entry in batch.entries])
        call(where, batch.keys, {"zeroed": "grads"}, _ck.adamw_step, batch.params, batch.arrays("exp_avg"),
             batch.arrays("exp_avg_sq"), batch.arrays("max_exp_avg_sq") if group["amsgrad"] else None,
             grads if zero else None, grads, steps, scale, group["lr"], *group["betas"], group["eps"],
             group["weight_decay"], group["maximize"], check)
        for entry, step in zip(batch.entries, steps, strict=True) if not check else ():
            entry["step"][...] = step
