"""diff(): own error and inherited error apart, what is not there is UNMEASURED, and a harness that lies is caught."""

import json

import numpy as np
import pytest

import ckernels as ck
from ckernels.parity import Trace, Verdict, diff, probes
from ckernels.parity.acceptance import candidate
from ckernels.parity.levels import UNMEASURED

CONFIG = ck.models.configs.gqa


def model(seed=0):
    return ck.models.Model(CONFIG, probes.parameters(CONFIG, seed))


def batch(seed=0, tokens=19):
    rng = np.random.default_rng([seed, 11])
    ids, targets = rng.integers(0, CONFIG.vocab_size, (2, 2, tokens))
    targets[1, 4] = -100
    return ids, targets


@pytest.fixture
def traced():
    reference = model()
    return reference.trace(*batch()), reference


@pytest.mark.parametrize("seed", range(6))
def test_our_own_model_is_within_budget_at_every_stage(seed):
    reference = model(seed)
    found = diff(reference.trace(*batch(seed, 6 + 5 * seed)), reference)
    assert found.verdict.ok, found
    assert found.exit_code == 0 and not found.unmeasured and found.first is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_implementation_is_within_budget(dtype):
    for seed in range(4):
        found = diff(*candidate("", dtype, seed, tokens=6 + 9 * seed))
        assert found.verdict.ok and found.format == dtype, found


def test_an_error_is_the_stages_own_where_it_arises_and_inherited_after(traced):
    trace, reference = traced
    x = trace.arrays["layers.0.act"]
    x[..., ::7] *= 1.01
    found = diff(trace, reference)
    first = found.first
    assert (first.name, first.layer, first.stage) == ("layers.0.act", 0, "act")
    assert first.own > 1e-3 > 100 * first.inherited
    after = found["layers.1.q"]  # computed by the model from the right act: the captured one is not what it came from
    assert after.verdict.ok
    assert [s.name for s in found.diverging if s.layer == 0][:2] == ["layers.0.act", "layers.0.down"]


def test_inherited_errors_and_their_amplification(traced):
    """A weight off by a thousandth from layer 0 on: later stages carry the error and add none of their own."""
    _, reference = traced
    params = dict(reference.params)
    params["model.layers.0.mlp.down_proj.weight"] = params["model.layers.0.mlp.down_proj.weight"] * np.float32(1.001)
    found = diff(ck.models.Model(CONFIG, params).trace(batch()[0]), reference)
    assert [s.name for s in found.diverging] == ["layers.0.down"]
    down, later = found["layers.0.down"], found["layers.1.gate"]
    assert 0.9e-3 < down.own < 1.1e-3 and down.inherited < 1e-5
    assert later.own < 1e-6 and 1e-5 < later.inherited < 1e-2 and 0.1 < later.amplification < 10


def test_a_stage_that_is_not_there_is_unmeasured_and_the_next_one_covers_it(traced):
    trace, reference = traced
    for name in ("layers.0.scores", "layers.0.probs", "layers.1.q", "layers.1.k"):
        del trace.arrays[name]
    found = diff(trace, reference)
    assert found["layers.0.probs"].verdict == UNMEASURED
    assert found["layers.0.attn"].through == ["layers.0.probs", "layers.0.scores"]
    assert not found.unmeasured and found.verdict.ok


def test_lie_a_missing_stage_is_no_pass(traced):
    """H1, H2: nothing after `logits` was recomputed through it, so the run fails."""
    trace, reference = traced
    del trace.arrays["logits"], trace.arrays["loss"]
    found = diff(Trace(CONFIG, trace.arrays, trace.inputs), reference)
    assert found["logits"].verdict == UNMEASURED and "logits" in found["d_logits"].through
    trace.arrays = {name: a for name, a in trace.arrays.items() if "d_" not in name}
    found = diff(trace, reference)
    assert [s.name for s in found.unmeasured] == ["logits", "loss"]
    assert found.verdict == UNMEASURED and found.exit_code == 1


def test_lie_nothing_compared_is_vacuous(traced):
    _, reference = traced
    found = diff(Trace(CONFIG, {}, {"ids": np.zeros((1, 3), int)}), reference)
    assert found.verdict == Verdict.VACUOUS and found.exit_code == 3


def test_lie_a_name_that_is_no_stage_is_not_passed_over(traced):
    """H11: a misspelt stage is neither dropped nor compared with something else."""
    trace, reference = traced
    trace.arrays["layers.0.up_gate"] = trace.arrays.pop("layers.0.up")
    found = diff(trace, reference)
    assert found["layers.0.up_gate"].verdict == UNMEASURED and "no stage" in found["layers.0.up_gate"].note
    assert found.verdict == UNMEASURED


def test_lie_a_probe_that_is_too_easy_is_vacuous():
    """H12: one token at position 0 shows neither rope nor softmax."""
    reference = model()
    found = diff(reference.trace(np.array([[5]])), reference)
    assert found["layers.0.q_rope"].verdict == found["layers.0.probs"].verdict == Verdict.VACUOUS
    assert "do not turn anything" in found["layers.0.q_rope"].note
    assert found.verdict == Verdict.VACUOUS and found.exit_code == 3


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_lie_a_nan_is_not_lost(traced, value):
    """H5: one NaN among thousands is a failure, whatever the mean says."""
    trace, reference = traced
    trace.arrays["layers.1.ln2"][1, 3, 5] = value
    stage = diff(trace, reference)["layers.1.ln2"]
    assert stage.verdict == Verdict.STRUCTURAL and stage.margin == np.inf and "1 NaN or inf" in stage.note


def test_lie_one_wrong_element_is_not_diluted(traced):
    """H6: a single element off by a thousandth of the largest."""
    trace, reference = traced
    x = trace.arrays["layers.1.down"]
    x[0, 1, 2] += 1e-3 * np.abs(x).max()
    assert diff(trace, reference)["layers.1.down"].verdict == Verdict.EXCESS_DRIFT


def test_lie_a_stage_in_16_bits_gets_no_wider_budget(traced):
    """H9: the budget is that of the candidate's arithmetic, not of the one stage that is worse."""
    trace, reference = traced
    x = trace.arrays["layers.0.gate"]
    trace.arrays["layers.0.gate"] = (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    assert diff(trace, reference)["layers.0.gate"].diverges


def test_lie_the_trace_is_of_another_configuration():
    """H14: numbers that agree with another configuration than the one that is shipped prove nothing for that one."""
    reference = model()
    trace = reference.trace(batch()[0])
    trace.config["rope_parameters"]["rope_theta"] = 10001.0
    found = diff(trace, reference)
    assert found.conflicts == ["base 10001.0 instead of 10000.0"]
    assert found.verdict == Verdict.UNDECIDED and found.exit_code == 2 and "another" in str(found)


def test_the_result_does_not_change_from_run_to_run(traced):
    """H10."""
    assert str(diff(*traced)) == str(diff(*traced))


def test_other_layouts_are_recognised_and_said(traced):
    trace, reference = traced
    B, H, T, D = trace.arrays["layers.0.q"].shape
    trace.arrays["layers.0.q"] = trace.arrays["layers.0.q"].transpose(0, 2, 1, 3)
    trace.arrays["layers.0.attn"] = trace.arrays["layers.0.attn"].transpose(0, 2, 1, 3).reshape(B, T, H * D)
    found = diff(trace, reference)
    assert found.verdict.ok
    assert found["layers.0.q"].note == "axes (0, 2, 1, 3)"
    assert found["layers.0.attn"].note == "heads in one axis; axes (0, 2, 1, 3)"


def test_axes_of_equal_extent_are_tried_in_another_order():
    reference = model()
    trace = reference.trace(batch(tokens=8)[0])  # as many tokens as query heads
    trace.arrays["layers.1.q"] = np.ascontiguousarray(trace.arrays["layers.1.q"].transpose(0, 2, 1, 3))
    found = diff(trace, reference)
    assert found.verdict.ok and found["layers.1.q"].note == "axes (0, 2, 1, 3)"


def test_foreign_names_come_by_a_map(traced, tmp_path):
    trace, reference = traced
    rules = {"blk.{i}.attn_norm": "layers.{i}.ln1", "result": "logits"}
    foreign = {"layers.0.ln1": "blk.0.attn_norm", "layers.1.ln1": "blk.1.attn_norm", "logits": "result"}
    trace.arrays = {foreign.get(name, name): array for name, array in trace.arrays.items()}
    (tmp_path / "names.json").write_text(json.dumps(rules))
    for names in (rules, tmp_path / "names.json"):
        assert diff(trace, reference, names=names).verdict.ok
    with pytest.raises(ValueError, match="two arrays of the trace are called 'logits'"):
        diff(trace, reference, names={"result": "logits", "final_norm": "logits"})
    (tmp_path / "names.json").write_text("[1]")
    with pytest.raises(ValueError, match="a map of names is one object"):
        diff(trace, reference, names=tmp_path / "names.json")


def test_a_shape_that_fits_nothing_is_unmeasured_with_both_shapes(traced):
    trace, reference = traced
    trace.arrays["layers.0.ln1"] = trace.arrays["layers.0.ln1"][..., 1:]
    found = diff(trace, reference)
    assert found["layers.0.ln1"].verdict == UNMEASURED
    assert "(2, 19, 127) instead of (2, 19, 128)" in found["layers.0.ln1"].note


def test_a_layer_by_itself():
    layer = ck.nn.DecoderLayer(CONFIG, probes.layer_parameters(probes.parameters(CONFIG)))
    x, dy = probes.layer_input(CONFIG)
    stages, gradients = {}, {}
    _, ctx = layer.forward(x, stages=stages)
    layer.backward(dy, ctx, stages=gradients)
    arrays = {f"layers.0.{name}": array for name, array in {**stages, **gradients}.items()}
    params = {n: a for n, a in probes.parameters(CONFIG).items() if n.startswith("model.layers.0.")}
    config = CONFIG.to_hf() | {"num_hidden_layers": 1}
    found = diff(Trace(config, arrays, {"x": x, "dy": dy}), (config, params))
    assert found.verdict.ok and found["layers.0.d_output"].verdict == Verdict.EXACT, found


def test_plain_values_for_json(traced):
    trace, reference = traced
    trace.arrays["logits"][0, 0, 0] = np.nan
    text = json.dumps(diff(trace, reference).to_dict(), allow_nan=False)
    told = json.loads(text)
    assert told["schema"] == 1 and told["first"] == "logits" and told["exit_code"] == 1
    assert {"own", "inherited", "amplification", "margin", "verdict", "layer", "stage"} <= told["stages"][0].keys()


def test_what_is_no_model_is_refused(traced):
    with pytest.raises(TypeError, match="'model' of type int has not 'config' and 'params'"):
        diff(traced[0], 3)
    with pytest.raises(ValueError, match=r"diff\(\): the configuration has no 'num_attention_heads'"):
        diff(traced[0], ({}, {}))
    with pytest.raises(ValueError, match="neither 'ids' nor an array that says how many tokens"):
        diff(Trace(CONFIG, {"loss": np.float32(1)}), model())


def test_transformers_is_known_by_its_float32_angles():
    """Its tables are computed in float32: rounding of its own, which the model may be told to have."""
    from ckernels.parity import peer, trace_torch

    reference = model()
    module = peer.llama(CONFIG, reference.params)
    trace = trace_torch(module, *batch(tokens=64))
    found = diff(trace, module, assume=["rope: angles in float32"])
    assert found.verdict.ok, found
    assert {s.stage for s in diff(trace, module).diverging} <= {"q_rope", "k_rope", "d_q", "d_k"}
