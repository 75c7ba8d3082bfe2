"""What the optimizers share: parameters and their groups, gradients that fit them, state that travels."""
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.optim.clip_grad_norm import clip_factor, norm_of
from ckernels.optim.lists import batches, call, dtype_of, is_array, matched, number, refuse_shared, rows
from ckernels.runtime import empty

__all__ = ["Optimizer"]


def _groups_of(where, params):
    """Return groups as dicts whose "params" are lists of (key, array)."""
    several = isinstance(params, (list, tuple)) and len(params) > 0 and all(isinstance(p, Mapping) for p in params)
    groups, count = [], 0
    for group in params if several else [{"params": params}]:
        if "params" not in group:
            raise ValueError(f"{where}: a group of 'params' has no 'params'")
        own = group["params"]
        if not isinstance(own, (Mapping, list, tuple)):
            raise TypeError(f"{where}: 'params' must be a dict or a list of arrays, not {type(own).__name__}")
        keyed = list(own.items()) if isinstance(own, Mapping) else list(enumerate(own, count))
        count += len(keyed)
        groups.append({**group, "params": keyed})
    return groups


class Batch(NamedTuple):
    """Parameters of one group and dtype, with their gradients and state: what one call takes."""

    group: dict
    first: bool
    indices: list
    keys: list
    params: list
    grads: list
    entries: list

    def arrays(self, name):
        """Return one array of the state of each, with an axis."""
        return [rows(entry[name]) for entry in self.entries]


class Optimizer:
    """Parameters, options and state; a subclass says what a step does.

    ``_options(where, options)`` checks the options of a group, ``_names(group)`` tells what state a step needs,
    ``_update(where, batch, scale, zero, check)`` calls the op.
    """

    #: Arrays of a parameter's state; those of them that a loaded state must have; options that a group must have.
    _arrays = ()
    _needed = ()
    _must = ()
    #: Whether a state of zeros makes the first step; if not, it is a call of its own.
    _starts_at_zero = True

    def __init__(self, params, options):
        where = f"{type(self).__name__}()"
        groups = _groups_of(where, params)
        keyed = [pair for group in groups for pair in group["params"]]
        self._keys, self._params = [key for key, _ in keyed], [param for _, param in keyed]
        self._index = {key: i for i, key in enumerate(self._keys)}
        if len(self._index) != len(self._keys):
            raise ValueError(f"{where}: a key of 'params' stands in two groups")
        if len({id(p) for p in self._params}) != len(self._params):
            raise ValueError(f"{where}: 'params' holds the same array twice")
        self.state, self.param_groups, group_of = {}, [], []
        for group in groups:
            unknown = sorted(set(group) - set(options) - {"params"})
            if unknown:
                raise ValueError(f"{where}: a group of 'params' has '{unknown[0]}', which is no option")
            own = [self._index[key] for key, _ in group["params"]]
            whole = {**options, **group, "params": own}
            if any(isinstance(key, str) for key, _ in group["params"]):
                whole["param_names"] = [key for key, _ in group["params"]]
            self._options(where, whole)
            self.param_groups.append(whole)
            group_of += [len(self.param_groups) - 1] * len(own)
        for key, param in keyed:
            if not is_array(param):
                raise TypeError(f"{where}: 'params'[{key!r}] must be an array, not {type(param).__name__}")
        self._shapes = [tuple(param.shape) for param in self._params]
        self._rows = [rows(param) for param in self._params]
        dtypes = [dtype_of(param) for param in self._params]
        for _, some in batches(range(len(keyed)), dtypes):  # a scale of 1: only checks
            call(where, [self._keys[i] for i in some], {"grads": "params"}, _ck.grad_scale,
                 [self._rows[i] for i in some], 1.0)
        by_dtype = batches(range(len(keyed)), dtypes)
        refuse_shared(where, [(i, "params", [self._keys[j] for j in some], [self._rows[j] for j in some], True)
                              for i, (_, some) in enumerate(by_dtype)] if len(by_dtype) > 1 else ())
        self._batches = batches(range(len(keyed)), list(zip(group_of, dtypes, strict=True)))

    def _fitting(self, where, grads):
        """Return the gradients in the order of the parameters, None where there is none; all of their shapes."""
        grads = matched(where, grads, self._keys, self._index)
        for i, (grad, shape) in enumerate(zip(grads, self._shapes, strict=True)):
            if grad is None or getattr(grad, "shape", None) == shape:
                continue
            if not hasattr(grad, "shape"):
                raise TypeError(f"{where}: 'grads'[{self._keys[i]!r}] must be an array, not {type(grad).__name__}")
            if tuple(grad.shape) != shape:
                raise ValueError(f"{where}: 'grads'[{self._keys[i]!r}] has shape {tuple(grad.shape)}, "
                                 f"the parameter {shape}")
        return grads

    def _fresh(self, names, indices):
        """Return {index: {name: zeros}}: what is missing of ``names`` in the state, in one block of memory."""
        lacking = [(i, name) for i in indices for name in names if name not in self.state.get(i, ())]
        sizes = [0 if name == "step" else -(-math.prod(self._shapes[i]) // 16) * 16 for i, name in lacking]
        block, at, found = empty((sum(sizes),)), 0, {i: {} for i, _ in lacking}
        block.fill(0)
        for (i, name), size in zip(lacking, sizes, strict=True):
            if name == "step":
                found[i][name] = np.zeros((), np.float32)
            else:
                found[i][name] = block[at:at + math.prod(self._shapes[i])].reshape(self._shapes[i])
            at += size
        return found

    def _todo(self, grads):
        """Return what a step calls: batches of one group and dtype; ``first`` where no state was and that matters."""
        todo = []
        for (g, _), members in self._batches:
            group = self.param_groups[g]
            some = [i for i in members if grads[i] is not None]
            names = self._names(group)
            wanted, none = set(names), {}
            new = [i for i in some if not wanted <= self.state.get(i, none).keys()] if names else []
            fresh = self._fresh(names, new) if new else {}
            old = [i for i in some if i not in fresh] if new else some
            for first, indices in [(False, some)] if self._starts_at_zero else [(False, old), (True, new)]:
                if indices:
                    entries = [self.state.get(i, none) for i in indices]
                    entries = [{**e, **fresh[i]} if i in fresh else e for i, e in zip(indices, entries, strict=True)]
                    todo.append(Batch(group, first, indices, [self._keys[i] for i in indices],
                                      [self._rows[i] for i in indices], [rows(grads[i]) for i in indices], entries))
        return todo

    def _lists(self, todo, zero_grads):
        """Yield what each of several calls reads and writes, for :func:`refuse_shared`."""
        for number_of_call, batch in enumerate(todo):
            yield number_of_call, "params", batch.keys, batch.params, True
            yield number_of_call, "grads", batch.keys, batch.grads, zero_grads
            for name in self._names(batch.group):
                if name != "step":
                    yield number_of_call, name, batch.keys, batch.arrays(name), True

    def step(self, grads, max_norm=None, *, zero_grads=False):
        """Update the parameters.

        Parameters
        ----------
        grads : dict or sequence of arrays
            Keyed like the parameters, of their shapes; of their dtypes, or float32 beside 16 bits. A missing one, or
            None, leaves its parameter and state alone. They are not modified, except by ``zero_grads``.
        max_norm : float, optional
            Scale all gradients by ``max_norm / (norm + 1e-6)`` if that is less than 1, as
            ``torch.nn.utils.clip_grad_norm_`` does, in the same pass.
        zero_grads : bool
            Leave zeros in ``grads``, in the same pass: ready for the next accumulation.

        Returns
        -------
        float or None
            The norm of all gradients before clipping, where ``max_norm`` is given: squares are added in double, in an
            order that follows from the shapes.

        Raises
        ------
        TypeError, ValueError
            A gradient of the wrong kind, dtype, shape or layout, a key without a parameter, memory in common with what
            is written, in whatever group. Nothing has been updated.
        KeyboardInterrupt
            Some parameters may have been updated, others not.
        """
        where = f"{type(self).__name__}.step()"
        if max_norm is not None:
            number(where, "max_norm", max_norm, 0)
        grads = self._fitting(where, grads)
        for key, grad in zip(self._keys, grads, strict=True) if zero_grads else ():
            if grad is not None and not is_array(grad):
                raise TypeError(f"{where}: 'grads'[{key!r}] must be an array to be zeroed, not {type(grad).__name__}")
        todo, norm, scale = self._todo(grads), None, 1.0
        for batch in todo if len(todo) > 1 else ():  # all of them, before one is updated
            self._update(where, batch, scale, zero_grads, check=True)
        if len(todo) > 1:
            refuse_shared(where, self._lists(todo, zero_grads))
        if max_norm is not None:
            norm = norm_of(where, self._keys, [None if grad is None else rows(grad) for grad in grads])
            scale = clip_factor(norm, max_norm)
        for batch in todo:
            self._update(where, batch, scale, zero_grads, check=False)
            for i, entry in zip(batch.indices, batch.entries, strict=True) if self._names(batch.group) else ():
                self.state[i] = entry
        return norm

    def state_dict(self):
        """Return state and options under torch's keys; torch's ``load_state_dict`` takes it, once in tensors.

        Returns
        -------
        dict
            ``{"state": {index: {name: array}}, "param_groups": [{"lr": ..., "params": [0, 1, ...]}]}``; the arrays are
            those in use, not copies.
        """
        return {"state": {i: dict(entry) for i, entry in sorted(self.state.items())},
                "param_groups": [dict(group, params=list(group["params"])) for group in self.param_groups]}

    def load_state_dict(self, state_dict):
        """Take state and options from :meth:`state_dict`, or from torch's, whose tensors are copied.

        Raises
        ------
        TypeError
            No such dict, or an option of the wrong kind.
        ValueError
            A key is missing, another number of groups or parameters, an option out of range or an array of another
            shape. Nothing has been changed.
        """
        where = f"{type(self).__name__}.load_state_dict()"
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"{where}: 'state_dict' must be a dict, not {type(state_dict).__name__}")
        for key in ("state", "param_groups"):
            if key not in state_dict:
                raise ValueError(f"{where}: 'state_dict' has no '{key}'")
        sizes = [len(group["params"]) for group in self.param_groups]
        if [len(group.get("params", ())) for group in state_dict["param_groups"]] != sizes:
            raise ValueError(f"{where}: groups of {', '.join(map(str, sizes))} parameters expected")
        groups, order = [], []
        for own, given in zip(self.param_groups, state_dict["param_groups"], strict=True):
            missing = sorted(set(self._must) - set(given))
            if missing:
                raise ValueError(f"{where}: a group has no '{missing[0]}'")
            kept = {key: own[key] for key in ("params", "param_names") if key in own}
            groups.append({**own, **{key: value for key, value in given.items() if key in own}, **kept})
            self._options(where, groups[-1])
            order += zip(given["params"], own["params"], strict=True)
        index = dict(order)
        state = {}
        for i, entry in state_dict["state"].items():
            arrays = {name: entry[name] for name in self._arrays if entry.get(name) is not None}
            missing = [name for name in self._needed if name not in arrays]
            if i not in index or (arrays and missing):
                why = "fits no parameter" if i not in index else f"has no '{missing[0]}'"
                raise ValueError(f"{where}: the state of {i!r} {why}")
            if arrays:
                state[index[i]] = {name: self._loaded(where, index[i], name, value) for name, value in arrays.items()}
        self.state, self.param_groups = state, groups

    def _loaded(self, where, i, name, value):
        """Return a float32 copy of an array or tensor of parameter i's state."""
        shape = () if name == "step" else tuple(self._params[i].shape)
        if tuple(getattr(value, "shape", ())) != shape:
            raise ValueError(f"{where}: '{name}' of {self._keys[i]!r} has shape {tuple(getattr(value, 'shape', ()))}, "
                             f"not {shape}")
        if str(getattr(value, "dtype", None)) == "torch.bfloat16":  # which NumPy cannot read
            value = value.float()
        if name == "step":
            number(f"{where}: state of {self._keys[i]!r}", name, float(value), 0)
        return np.array(np.asarray(value), np.float32, order="C")
