"""What the exact model runs on: parameters in one dtype, a tape of stages, and their gradients by autograd."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Run:
    """What one run of the exact model left behind.

    Attributes
    ----------
    stages : dict of str to numpy.ndarray
        Every stage in the order of computation; ``d_<stage>`` follows where gradients were asked for.
    grads : dict of str to numpy.ndarray
        The gradient of every parameter, keyed like the parameters.
    dx : numpy.ndarray or None
        The gradient of the input of a layer.
    """

    stages: dict = field(default_factory=dict)
    grads: dict = field(default_factory=dict)
    dx: np.ndarray | None = None


class Params:
    """Parameters by name, converted to one dtype when they are first used and kept until they are released."""

    def __init__(self, params, dtype, gradients):
        self.source, self.dtype, self.gradients, self.used = params, dtype, gradients, {}

    def __contains__(self, name):
        return name in self.source

    def __getitem__(self, name):
        import torch

        if name not in self.used:
            if name not in self.source:
                raise ValueError(f"exact model: the parameter '{name}' is missing")
            value = self.source[name]
            tensor = value.detach() if isinstance(value, torch.Tensor) else torch.tensor(wide(np.asarray(value)))
            tensor = tensor.to(self.dtype)
            # With gradients a copy even where the dtype is right already: the caller's tensor is no leaf of this graph.
            self.used[name] = tensor.clone().requires_grad_() if self.gradients else tensor
        return self.used[name]

    def stored(self, number, name):
        """A number of the model as it is stored, in float32 and then in the dtype of a parameter: no error of ours."""
        import torch

        value = self.source[name]
        kind = str(value.dtype).removeprefix("torch.")
        return torch.tensor(number, dtype=torch.float32).to(getattr(torch, kind)).item()

    def release(self, prefix):
        """Forget the converted parameters whose names begin like this."""
        for name in [name for name in self.used if name.startswith(prefix)]:
            del self.used[name]


def wide(array):
    """What torch can take: bfloat16 of NumPy as float32, which holds all of it."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


class Tape:
    """Keeps tensors under their stage names and asks autograd for their gradients."""

    def __init__(self):
        self.tensors, self.prefix = {}, ""

    def put(self, name, tensor):
        self.tensors[self.prefix + name] = tensor
        return tensor

    def arrays(self):
        return {name: as_numpy(tensor) for name, tensor in self.tensors.items()}


def as_numpy(tensor):
    tensor = tensor.detach()
    return np.array((tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy(), order="C")


def gradients(of, upstream, tape, params, extra=()):
    """The gradients of stages, parameters and `extra` tensors, without touching anybody's ``.grad``."""
    import torch

    stages = {name: tensor for name, tensor in tape.tensors.items() if name != "loss"}
    wanted = [*stages.values(), *params.used.values(), *extra]
    found = torch.autograd.grad(of, wanted, upstream)
    stage_grads = {d_name(name): as_numpy(grad) for name, grad in zip(stages, found, strict=False)}
    rest = found[len(stages) :]
    weight_grads = {name: as_numpy(grad) for name, grad in zip(params.used, rest, strict=False)}
    return stage_grads, weight_grads, [as_numpy(grad) for grad in rest[len(weight_grads) :]]


def d_name(stage):
    """The name of the gradient of a stage: ``layers.0.q`` becomes ``layers.0.d_q``, ``logits`` becomes ``d_logits``."""
    head, dot, tail = stage.rpartition(".")
    return f"{head}{dot}d_{tail}"
