"""Stochastic gradient descent."""
from ckernels import _ck
from ckernels.optim.lists import call, number
from ckernels.optim.optimizer import Optimizer

__all__ = ["SGD"]


class SGD(Optimizer):
    """``torch.optim.SGD``: momentum, dampening, coupled weight decay, Nesterov.

    Parameters
    ----------
    params : dict or sequence of arrays, or a list of groups
        Updated in place, so writeable; float32, float16 or bfloat16; the last axis contiguous, the others with any
        stride. A group is ``{"params": dict or sequence, "lr": ...}`` with options of its own.
    lr : float
        Step size.
    momentum, dampening, weight_decay : float
    nesterov : bool
        Wants a momentum and no dampening.
    maximize : bool
        Climb instead.

    Attributes
    ----------
    param_groups : list of dicts
        The options by torch's names: ``opt.param_groups[0]["lr"] = 0.01`` takes effect with the next step.
    state : dict
        ``{index: {"momentum_buffer": float32 array}}`` of the parameters that have been stepped with momentum.

    Raises
    ------
    TypeError, ValueError
        A number or parameter of the wrong kind or out of range; parameters that share memory.

    Notes
    -----
    One pass over all tensors together. Float32 results round as in ``torch.optim.SGD(foreach=False)``: with fused
    multiply-adds the same bits as there. 16-bit parameters are updated in float32, from a float32 buffer, and rounded
    once. Source: `torch.optim.SGD`, version 2.13.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> params = {"w": np.float32([1, 2])}
    >>> opt = ck.optim.SGD(params, lr=0.5)
    >>> opt.step({"w": np.float32([3, 4])}, max_norm=10.0)
    5.0
    >>> params["w"]
    array([-0.5,  0. ], dtype=float32)
    """

    _arrays = ("momentum_buffer",)
    _starts_at_zero = False
    _must = ("lr", "momentum", "dampening", "weight_decay", "nesterov")

    def __init__(self, params, lr=1e-3, momentum=0, dampening=0, weight_decay=0, nesterov=False, maximize=False):
        super().__init__(params, {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
            "nesterov": bool(nesterov), "maximize": bool(maximize), "foreach": None, "differentiable": False,
            "fused": None})

    def _options(self, where, options):
        for name in ("lr", "momentum", "weight_decay"):
            number(where, name, options[name], 0)
        number(where, "dampening", options["dampening"])
        if options["nesterov"] and (options["momentum"] <= 0 or options["dampening"] != 0):
            raise ValueError(f"{where}: 'nesterov' needs a momentum and zero dampening")

    def _names(self, group):
        return self._arrays if group["momentum"] != 0 else ()

    def _update(self, where, batch, scale, zero, check):
        group, grads = batch.group, batch.grads
        buffers = batch.arrays("momentum_buffer") if group["momentum"] != 0 else None
        call(where, batch.keys, {"zeroed": "grads"}, _ck.sgd_step, batch.params, buffers, grads if zero else None,
             grads, scale, group["lr"], group["momentum"], group["dampening"], group["weight_decay"], group["nesterov"],
             group["maximize"], batch.first, check)
