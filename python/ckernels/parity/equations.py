"""The stages of a decoder as equations in NumPy: which are given, which are computed, and from what.

`Equations` answers with the value of a stage. A stage that is *given* (the candidate's own array) is taken as it is;
any other is computed from its inputs, which are looked up the same way. So each stage of a candidate can be recomputed
from the candidate's own inputs to it, and where a stage was not captured, from the nearest ones before it. The
functions are in `forward_equations` and `backward`.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

LINEAR = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "proj": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
WHOLE = ("embedding", "final_norm", "logits", "loss")
_HELD = 48  # converted parameters kept at a time


class Missing(LookupError):
    """A stage cannot be computed: neither it nor what it needs is there."""


class Weights:
    """Parameters by name, converted to an arithmetic when they are used; the latest ones are kept."""

    def __init__(self, params):
        self.params, self.held = params or {}, OrderedDict()

    def __contains__(self, name):
        return name in self.params

    def get(self, name, number):
        """One parameter in an arithmetic; Missing where there is none of that name."""
        key = name, number.name
        if key not in self.held:
            if name not in self.params:
                raise Missing(f"the parameter '{name}' is not there")
            self.held[key] = number.take(_plain(self.params[name]))
        self.held.move_to_end(key)
        while len(self.held) > _HELD:
            self.held.popitem(last=False)
        return self.held[key]


def _plain(value):
    if hasattr(value, "detach"):  # a torch tensor
        value = value.detach().cpu()
        value = value.float().numpy() if str(value.dtype) == "torch.bfloat16" else value.numpy()
    return np.asarray(value)


class Equations:
    """The stages of one run: given ones, and the others computed from them.

    Parameters
    ----------
    settings : Settings
    weights : Weights
    number : Arithmetic
        In which everything is computed.
    given : dict of str to array
        Stages that are taken as they are.
    inputs : dict of str to array
        ``ids``, ``targets``, ``positions``, ``x`` (the input of layer 0, where there is no embedding), ``dy``.
    edits : dict of str to dict, optional
        Stage without its layer, or with it, to keywords of its function. ``post`` is applied to the result.
    drop : set of str
        Given stages to compute nevertheless.
    """

    def __init__(self, settings, weights, number, given, inputs=None, edits=None, drop=frozenset()):
        self.settings, self.weights, self.number = settings, weights, number
        self.given, self.inputs, self.edits, self.drop = given, inputs or {}, edits or {}, drop
        self.values = {}
        self.reads = {}  # stage that was computed -> what it asked for
        self._open = []

    def __call__(self, name):
        """The value of a stage: the given one, or the computed one."""
        if self._open:
            self.reads[self._open[-1]].append(name)
        if name in self.given and name not in self.drop:
            return self.number.take(self.given[name])
        return self.compute(name)

    def chain(self, name):
        """The stages that were computed for `name`, itself included: those between the given ones and it."""
        found, left = {}, [name]
        while left:
            stage = left.pop()
            if stage in found or (stage != name and stage in self.given and stage not in self.drop):
                continue
            found[stage] = None
            left += self.reads.get(stage, ())
        return list(found)

    def sources(self, name):
        """The given stages that `name` was computed from."""
        reads = (read for stage in self.chain(name) for read in self.reads.get(stage, ()))
        return list(dict.fromkeys(read for read in reads if read in self.given and read not in self.drop))

    def compute(self, name):
        """Compute a stage from its inputs, even where it is given."""
        if name not in self.values:
            index, stage = split(name)
            function = equation_of(name)
            edit = dict(self.edits.get(edit_key(stage), {}) | self.edits.get(name, {}))
            post = edit.pop("post", None)
            self.reads[name] = []
            self._open.append(name)
            try:
                with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                    value = function(self, index, **edit)
                    value = value if post is None else post(self, name, value)
            finally:
                self._open.pop()
            self.values[name] = self.number(np.asarray(value, self.number.dtype))
        return self.values[name]

    def at(self, index, stage):
        """A stage of a layer."""
        return self(f"layers.{index}.{stage}")

    def before(self, index):
        """The input of a layer."""
        if index:
            return self(f"layers.{index - 1}.output")
        return self.number.take(self.inputs["x"]) if "x" in self.inputs else self("embedding")

    def weight(self, name):
        """A parameter of the model."""
        return self.weights.get(name, self.number)

    def has(self, name):
        """Whether there is such a parameter."""
        return name in self.weights

    def input(self, name):
        """An input as it was given."""
        if name not in self.inputs:
            raise Missing(f"the trace has no input '{name}'")
        return np.asarray(self.inputs[name])

    def positions(self, batch, length):
        """``[B, T]``."""
        if "positions" not in self.inputs:
            return np.broadcast_to(np.arange(length), (batch, length))
        return np.broadcast_to(np.atleast_2d(self.inputs["positions"]), (batch, length))


def split(name):
    """``layers.3.q`` to (3, "q"), anything else to (None, name)."""
    parts = name.split(".")
    if len(parts) == 3 and parts[0] == "layers" and parts[1].isdecimal():
        return int(parts[1]), parts[2]
    return None, name


def edit_key(stage):
    """Under which name a stage is edited: gradients of parameters without their layer, ``d_q_proj.weight``."""
    return "d_" + ".".join(stage[2:].split(".")[-2:]) if stage.startswith("d_") and "." in stage else stage


def equation_of(name):
    """The function of a stage, of its gradient, or of a parameter's gradient."""
    from .backward import GRADIENTS, parameter_gradient
    from .forward_equations import STAGES

    index, stage = split(name)
    if stage in STAGES and (index is None) == (stage in WHOLE):
        return STAGES[stage]
    if stage in GRADIENTS:
        return GRADIENTS[stage]
    if not name.startswith("d_"):
        raise Missing(f"no stage is called '{name}'")
    return lambda g, _index, **edit: parameter_gradient(g, name[2:], **edit)


def stage_names(settings, has):
    """The forward stages of a model, in the order in which they are computed.

    Parameters
    ----------
    settings : Settings
    has : callable
        Whether there is a parameter of a name.
    """
    from .forward_equations import STAGES

    names = ["embedding"]
    for i in range(settings.layers):
        prefix = f"model.layers.{i}."
        needs = {
            "q_norm": "self_attn.q_norm.weight",
            "k_norm": "self_attn.k_norm.weight",
            "post_attn_norm": "pre_feedforward_layernorm.weight",
            "post_mlp_norm": "pre_feedforward_layernorm.weight",
        }
        inner = [name for name in STAGES if name not in WHOLE]
        names += [f"layers.{i}.{name}" for name in inner if name not in needs or has(prefix + needs[name])]
    return [*names, "final_norm", "logits"]
