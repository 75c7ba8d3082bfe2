"""Stochastic gradient descent."""
import math
from collections.abc import Mapping

import numpy as np

from ckernels import _ck
from ckernels.runtime import empty

__all__ = ["SGD"]


def _number(name, value, least=-math.inf, called="SGD"):
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{called}(): '{name}' must be a number, not {type(value).__name__}")
    if not value >= least:
        raise ValueError(f"{called}(): '{name}' must be " +
                         (f"at least {least}" if least > -math.inf else "a number") + f", not {value}")
    return value


def _as_numpy(array):
    """Return an array on the same memory; the extension has checked that there is one."""
    return array if isinstance(array, np.ndarray) else np.from_dlpack(array)


def _refuse_shared(keys, params):
    """Refuse parameters that share memory: each would be stepped by the gradients of both."""
    spans = sorted((*np.lib.array_utils.byte_bounds(array), i)
                   for i, array in enumerate(map(_as_numpy, params)) if array.size)
    for at, (_low, high, i) in enumerate(spans):
        for start, _, j in spans[at + 1:]:
            if start >= high:
                break
            if np.shares_memory(_as_numpy(params[i]), _as_numpy(params[j])):
                first, second = sorted((i, j))
                raise ValueError(f"SGD(): 'params' {keys[first]!r} and {keys[second]!r} share memory")


class SGD:
    """``torch.optim.SGD``: momentum, dampening, coupled weight decay, Nesterov.

    Parameters
    ----------
    params : dict or sequence of float32 arrays
        Updated in place, so writeable; the last axis contiguous, the others with any stride.
    lr : float
        Step size.
    momentum, dampening, weight_decay : float
    nesterov : bool
        Wants a momentum and no dampening.
    maximize : bool
        Climb instead.

    Attributes
    ----------
    param_groups : list of one dict
        The options by torch's names: ``opt.param_groups[0]["lr"] = 0.01`` takes effect with the next step.
    state : dict
        ``{index: {"momentum_buffer": array}}`` of the parameters that have been stepped with momentum.

    Raises
    ------
    TypeError, ValueError
        A number or parameter of the wrong kind or out of range; parameters that share memory.

    Notes
    -----
    One pass over each tensor.  Every result rounds as in ``torch.optim.SGD(foreach=False)``: with fused multiply-adds
    the same bits as there.  Source: `torch.optim.SGD`, version 2.13.

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

    def __init__(self, params, lr=1e-3, momentum=0, dampening=0, weight_decay=0, nesterov=False, maximize=False):
        named = isinstance(params, Mapping)
        if not named and not isinstance(params, (list, tuple)):
            raise TypeError(f"SGD(): 'params' must be a dict or a list of arrays, not {type(params).__name__}")
        self._keys = list(params) if named else list(range(len(params)))
        self._params = [params[key] for key in self._keys]
        if len({id(p) for p in self._params}) != len(self._params):
            raise ValueError("SGD(): 'params' holds the same array twice")
        group = {"lr": _number("lr", lr, 0), "momentum": _number("momentum", momentum, 0),
                 "dampening": _number("dampening", dampening), "weight_decay": _number("weight_decay", weight_decay, 0),
                 "nesterov": bool(nesterov), "maximize": bool(maximize), "foreach": None, "differentiable": False,
                 "fused": None, "params": list(range(len(self._params)))}
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("SGD(): 'nesterov' needs a momentum and zero dampening")
        if named:
            group["param_names"] = list(self._keys)
        self.param_groups, self.state = [group], {}
        for key, param in zip(self._keys, self._params, strict=True):
            if not hasattr(param, "shape"):
                raise TypeError(f"SGD(): parameter {key!r} must be an array, not {type(param).__name__}")
            self._call("SGD()", key, param, np.zeros(tuple(param.shape), np.float32), None, 1.0, check=True)
        _refuse_shared(self._keys, self._params)

    def _call(self, where, key, param, grad, buffer, scale, *, first=False, check=False):
        """Step one tensor, or only let every argument be checked; name the parameter in what is refused."""
        group = self.param_groups[0]
        if not param.shape:  # the op wants an axis
            param, grad, buffer = (None if a is None else a.reshape(1) for a in (param, grad, buffer))
        try:
            _ck.sgd_step(param, buffer, grad, scale, group["lr"], 0 if check else group["momentum"], group["dampening"],
                         group["weight_decay"], group["nesterov"], group["maximize"], first, check)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where}: parameter {key!r}: {str(error).partition(': ')[2]}") from None

    def _present(self, grads):
        """Return (index, gradient) of the parameters that have one, all checked."""
        if isinstance(grads, Mapping):
            unknown = [key for key in grads if key not in self._keys]
            if unknown:
                raise ValueError(f"SGD.step(): 'grads' has {unknown[0]!r}, which is no parameter")
            grads = [grads.get(key) for key in self._keys]
        if not isinstance(grads, (list, tuple)) or len(grads) != len(self._params):
            raise ValueError(f"SGD.step(): 'grads' must be keyed like the {len(self._params)} parameters")
        present = [(i, grad) for i, grad in enumerate(grads) if grad is not None]
        for i, grad in present:
            key, param = self._keys[i], self._params[i]
            if not hasattr(grad, "shape"):
                raise TypeError(f"SGD.step(): the gradient of {key!r} must be an array, not {type(grad).__name__}")
            if tuple(grad.shape) != tuple(param.shape):
                raise ValueError(f"SGD.step(): the gradient of {key!r} has shape {tuple(grad.shape)}, "
                                 f"the parameter {tuple(param.shape)}")
            self._call("SGD.step()", key, param, grad, self._buffer(i), 1.0, check=True)
        return present

    def _buffer(self, i):
        return self.state.get(i, {}).get("momentum_buffer")

    def step(self, grads, max_norm=None):
        """Update the parameters.

        Parameters
        ----------
        grads : dict or sequence of float32 arrays
            Keyed like the parameters and of their shapes; a missing one, or None, leaves its parameter and state alone.
            They are not modified.
        max_norm : float, optional
            Scale all gradients by ``max_norm / (norm + 1e-6)`` if that is less than 1, as
            ``torch.nn.utils.clip_grad_norm_`` does, in the same pass.

        Returns
        -------
        float or None
            The norm of all gradients before clipping, where ``max_norm`` is given: squares are added in double, in an
            order that follows from the shapes.

        Raises
        ------
        TypeError, ValueError
            A gradient of the wrong kind, dtype, shape or layout, a key without a parameter.  Nothing has been updated.
        """
        if max_norm is not None:
            _number("max_norm", max_norm, 0, "SGD.step")
        present, group = self._present(grads), self.param_groups[0]
        norm, scale = None, 1.0
        if max_norm is not None:
            total = np.zeros(1)
            for _, grad in present:
                _ck.sum_of_squares(total, grad if grad.shape else grad.reshape(1), True)
            norm = math.sqrt(total[0])
            scale = max_norm / (norm + 1e-6)
            scale = 1.0 if scale > 1 else scale  # a NaN stays
        moves = group["momentum"] != 0
        fresh = {i: empty(tuple(grad.shape)) for i, grad in present if moves and self._buffer(i) is None}
        for i, grad in present:
            buffer = fresh.get(i, self._buffer(i))
            self._call("SGD.step()", self._keys[i], self._params[i], grad, buffer, scale, first=i in fresh)
            if i in fresh:
                self.state[i] = {"momentum_buffer": buffer}
        return norm

    def state_dict(self):
        """Return state and options under torch's keys; ``torch.optim.SGD.load_state_dict`` takes it, once in tensors.

        Returns
        -------
        dict
            ``{"state": {index: {"momentum_buffer": array}}, "param_groups": [{"lr": ..., "params": [0, 1, ...]}]}``;
            the arrays are those in use, not copies.
        """
        return {"state": {i: dict(entry) for i, entry in self.state.items()},
                "param_groups": [dict(group, params=list(group["params"])) for group in self.param_groups]}

    def load_state_dict(self, state_dict):
        """Take state and options from :meth:`state_dict`, or from torch's, whose tensors are copied.

        Raises
        ------
        TypeError
            No such dict.
        ValueError
            A key is missing, another number of groups or parameters, or a buffer of another shape.  Nothing has been
            changed.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"SGD.load_state_dict(): 'state_dict' must be a dict, not {type(state_dict).__name__}")
        for key in ("state", "param_groups"):
            if key not in state_dict:
                raise ValueError(f"SGD.load_state_dict(): 'state_dict' has no '{key}'")
        groups = state_dict["param_groups"]
        if len(groups) != 1 or len(groups[0].get("params", ())) != len(self._params):
            raise ValueError(f"SGD.load_state_dict(): one group of {len(self._params)} parameters expected")
        missing = {"lr", "momentum", "dampening", "weight_decay", "nesterov"} - set(groups[0])
        if missing:
            raise ValueError(f"SGD.load_state_dict(): the group has no '{min(missing)}'")
        state = {}
        for i, entry in state_dict["state"].items():
            buffer = entry.get("momentum_buffer")
            if buffer is None:
                continue
            shape = tuple(getattr(buffer, "shape", ()))
            if i not in range(len(self._params)) or shape != tuple(self._params[i].shape):
                raise ValueError(f"SGD.load_state_dict(): 'momentum_buffer' {i!r} of shape {shape} fits no parameter")
            state[i] = {"momentum_buffer": np.array(np.asarray(buffer), np.float32, order="C")}
        names = self.param_groups[0].get("param_names")
        group = {**self.param_groups[0], **groups[0], "params": list(range(len(self._params)))}
        if names is not None:
            group["param_names"] = names
        self.state, self.param_groups = state, [group]
