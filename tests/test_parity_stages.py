"""``ck parity stages``: one layer of a model on a text, against float64 and transformers."""

import dataclasses

import numpy as np
import pytest

import ckernels as ck
from ckernels.parity import Verdict, exact, levels, peer, probes, stages
from ckernels.parity.levels import Options

OK = {Verdict.EXACT, Verdict.WITHIN_BUDGET}
CONFIG = dataclasses.replace(ck.models.configs.gqa, num_hidden_layers=3)
PARAMS = probes.parameters(CONFIG, 2)
IDS = np.frombuffer(probes.text(40).encode(), np.uint8).astype(np.int64)


@pytest.fixture(scope="module")
def module():
    return peer.llama(CONFIG, PARAMS)


class Layer:
    """A correct layer, our equations in float32, with what a test changes of its stages and gradients."""

    def __init__(self, config, params, change=None):
        self.config, self.params, self.change = config, params, change

    def forward(self, x, positions=None, stages=None):
        stages.update(self._run(x).stages)
        return stages["output"], x

    def backward(self, dy, ctx, stages=None):
        run = self._run(ctx, dy)
        stages.update({name: array for name, array in run.stages.items() if name.startswith("d_")})
        return run.dx, run.grads

    def _run(self, x, dy=None):
        run = exact.layer(self.config, self.params, x, dy=dy, dtype="float32")
        if self.change is not None:
            self.change(run)
        return run


def run(module, index, change=None):
    model = ck.models.Model(CONFIG, PARAMS)
    build = None if change == "ours" else lambda config, params: Layer(config, params, change)
    return list(stages.layer_cases("toy", module, model, index, IDS, "avx2", build))


@pytest.mark.parametrize("index", [0, 2])
def test_a_layer_is_compared_in_all_its_stages(module, index):
    flags = [parameter.requires_grad for parameter in module.parameters()]
    for change in (None, "ours"):
        cases = run(module, index, change)
        assert all(case.verdict in OK for case in cases), [case for case in cases if case.verdict not in OK]
        names = [case.name.removeprefix("toy: ") for case in cases]
        stage_names = [*exact.LAYER_STAGES, *(f"d_{name}" for name in exact.LAYER_STAGES), "dx"]
        assert names[: len(stage_names)] == stage_names
        assert sorted(names[len(stage_names) :]) == sorted(f"d_{name}" for name in probes.layer_parameters(PARAMS))
    assert [parameter.requires_grad for parameter in module.parameters()] == flags
    assert all(parameter.grad is None for parameter in module.parameters())


def test_what_goes_in_is_what_the_model_has_there(module):
    x, dy, beside = stages._in_place(module, 1, IDS)
    whole = exact.model(CONFIG, PARAMS, IDS[None, :-1], IDS[None, 1:])
    assert np.abs(x - whole.stages["layers.0.output"]).max() < 1e-5 * np.abs(x).max()
    assert np.abs(dy - whole.stages["layers.1.d_output"]).max() < 1e-4 * np.abs(dy).max()
    assert beside.stages["probs"].shape == (1, 8, 39, 39)


def test_a_model_without_hooks_has_the_equations_as_its_peer(module, monkeypatch):
    monkeypatch.setattr(module.config, "model_type", "another")
    assert stages._in_place(module, 1, IDS)[2] is None
    assert all(case.verdict in OK for case in run(module, 1, "ours"))


def scaled(name, factor):
    def change(found):
        for arrays in (found.stages, found.grads):
            if name in arrays:
                arrays[name] = arrays[name] * np.float32(factor)

    return change


@pytest.mark.parametrize("name", ["q_rope", "probs", "d_gate", "mlp.up_proj.weight"])
def test_a_stage_that_is_wrong_is_named_and_nothing_else(module, name):
    bad = [case for case in run(module, 1, scaled(name, 1 + 3e-5)) if case.verdict not in OK]
    wanted = f"toy: d_{name}" if name.endswith("weight") else f"toy: {name}"
    assert [case.name for case in bad] == [wanted]


def test_a_stage_that_is_missing_is_unmeasured(module):
    def change(found):
        found.stages.pop("d_attn", None)
        found.grads.pop("input_layernorm.weight", None)

    bad = [case for case in run(module, 1, change) if case.verdict not in OK]
    assert {case.name: case.verdict for case in bad} == {
        "toy: d_attn": levels.UNMEASURED,
        "toy: d_input_layernorm.weight": levels.UNMEASURED,
    }


def test_layers_are_chosen():
    chosen = stages._chosen
    assert chosen(Options(), 30) == [0, 15, 29] and chosen(Options(quick=True), 30) == [15]
    assert chosen(Options(layer=-1), 30) == [29] and chosen(Options(), 1) == [0]
    with pytest.raises(levels.OptionError, match="no layer 30; the model has 30, 0 to 29"):
        chosen(Options(layer=30), 30)
