"""The NumPy equations: the same numbers as the float64 model of `exact`, which shares no code with them."""

import dataclasses

import numpy as np
import pytest

from ckernels.models import configs
from ckernels.parity import probes
from ckernels.parity.arithmetic import Arithmetic, format_of, round_to
from ckernels.parity.backward import gradient_names
from ckernels.parity.equations import Equations, Missing, Weights, edit_key, split, stage_names
from ckernels.parity.hypotheses import catalogue, edits_named
from ckernels.parity.settings import ConfigError, Settings

EPS = np.finfo(np.float64).eps


def inputs(seed=0, tokens=17):
    rng = np.random.default_rng([seed, 3])
    ids, targets = rng.integers(0, 257, (2, 2, tokens))
    targets[0, 3] = -100
    return {"ids": ids, "targets": targets}


def equations(config, params, number=None, given=None, edits=None, **more):
    return Equations(Settings.of(config), Weights(params), number or Arithmetic(), given or {}, inputs(**more), edits)


def whole(config, g):
    names = [*stage_names(Settings.of(config), g.has), "loss"]
    return {name: g(name) for name in [*names, *gradient_names(Settings.of(config), g.weights.params, names)]}


@pytest.mark.parametrize("name", ["tiny", "gqa"])
def test_every_stage_and_gradient_is_that_of_the_exact_model(name):
    pytest.importorskip("torch")
    from ckernels.parity import exact

    config = configs[name]
    params = probes.parameters(config)
    run = exact.model(config, params, **inputs())
    want = run.stages | {f"d_{key}": value for key, value in run.grads.items()}
    got = whole(config, equations(config, params))
    assert set(got) == set(want)
    terms = 2 * (6 * config.hidden_size + config.intermediate_size) + 257  # roundings on the way, as a chain of sums
    for key, value in want.items():
        assert np.abs(got[key] - value).max() <= terms * EPS * np.abs(value).max(), key


def test_gradients_of_what_the_exact_model_has_not():
    """Interleaved rope, a softcap and GELU: finite differences of the loss along random directions."""
    config = configs.tiny.to_hf() | {"hidden_act": "gelu_pytorch_tanh", "attn_logit_softcapping": 5.0,
                                     "rope_interleaved": True, "sliding_window": 5, "rms_norm_offset": 1.0}  # fmt: skip
    params = {key: value.astype(np.float64) for key, value in probes.parameters(configs.tiny).items()}
    rng = np.random.default_rng(8)
    for name in ("model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.gate_proj.weight",
                 "model.layers.0.input_layernorm.weight", "model.embed_tokens.weight"):  # fmt: skip
        direction, step = rng.standard_normal(params[name].shape), 1e-6
        up, down = (
            equations(config, params | {name: params[name] + sign * step * direction})("loss") for sign in (1, -1)
        )
        along = float(np.sum(equations(config, params)(f"d_{name}") * direction))
        # Central differences: truncation of step², and the rounding of two losses over twice the step.
        assert abs((up - down) / (2 * step) - along) <= 1e-3 * abs(along) + 8 * EPS * abs(up) / step, name


def test_a_given_stage_is_taken_and_what_follows_comes_from_it():
    config = configs.single_layer
    params = probes.parameters(config)
    plain = equations(config, params)
    other = equations(config, params, given={"layers.0.ln1": 2 * plain("layers.0.ln1")})
    assert np.array_equal(other("layers.0.q"), 2 * plain("layers.0.q"))
    other("layers.0.q_rope")
    assert other.chain("layers.0.q_rope") == ["layers.0.q_rope", "layers.0.q"]
    assert other.sources("layers.0.q") == ["layers.0.ln1"]


def test_what_is_missing_is_named():
    config = configs.single_layer
    g = Equations(Settings.of(config), Weights({}), Arithmetic(), {}, {})
    with pytest.raises(Missing, match=r"'model.embed_tokens.weight' is not there"):
        g("layers.0.output")
    with pytest.raises(Missing, match="no stage is called 'nonsense'"):
        g("nonsense")
    with pytest.raises(ConfigError, match="has no 'rms_norm_eps'"):
        Settings.of({"num_attention_heads": 2, "hidden_size": 8, "num_hidden_layers": 1})
    with pytest.raises(ConfigError, match="hidden_act='tan' is not known"):
        Settings.of(config.to_hf() | {"hidden_act": "tan"})


def test_edits_of_every_hypothesis_run_and_change_something():
    """A hypothesis that changes nothing could never be told from a correct candidate."""
    config = dataclasses.replace(configs.gqa, num_hidden_layers=3, tie_word_embeddings=False)
    params = probes.parameters(config)
    from ckernels.parity.grafting import Graft

    graft = Graft(config, params, whole(config, equations(config, params, tokens=37)), inputs(tokens=37), "float32")
    plain = {name: np.asarray(array) for name, array in graft.given.items()}
    silent = ("last 16 lanes", "no max subtraction", "angles in float32", "log(p + 1e-12)", "scale × ", "tied ")
    for index in (1, None):
        for hypothesis in catalogue(graft, index):
            if hypothesis.name.startswith("memory"):
                continue
            keys = set(hypothesis.edits)
            stages = [name for name in plain if split(name)[0] == index and edit_key(split(name)[1]) in keys]
            assert stages, hypothesis
            g = Equations(graft.settings, graft.weights, Arithmetic(), plain, graft.inputs, hypothesis.edits)
            changed = any(not np.array_equal(g.compute(stage), plain[stage]) for stage in stages)
            assert changed or any(text in hypothesis.name for text in silent), hypothesis.name


def test_a_hypothesis_by_name_is_part_of_the_model():
    from ckernels.parity.grafting import Graft

    config = configs.gqa
    graft = Graft(config, probes.parameters(config), {}, inputs(), "float32")
    assert edits_named(["rope: sign"], graft) == {"q_rope": {"sign": -1}, "k_rope": {"sign": -1}}
    with pytest.raises(ValueError, match=r"no hypothesis is called 'rope: upside down'; there are rope: missing"):
        edits_named(["rope: upside down"], graft)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_formats_are_told_from_values(name):
    rng = np.random.default_rng(0)
    values = round_to(rng.standard_normal(100).astype(np.float32), name)
    assert format_of([values, values, rng.standard_normal(5)]) == name


def test_rounding_is_to_nearest_even():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(1)
    values = np.concatenate(
        [rng.standard_normal(1000) * 2.0 ** rng.integers(-140, 120, 1000), [0, -0.0, np.inf, 1 + 2**-8]]
    )
    values = values.astype(np.float32)
    want = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(round_to(values, "bfloat16"), want)
    assert np.array_equal(round_to(values.astype(np.float64), "bfloat16"), want)


def test_a_running_sum_of_a_large_product_errs_as_a_whole_one_does():
    """Rows that are not summed in order get the error of those that are: same size, maximum and mean."""
    from ckernels.parity import arithmetic

    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((64, 500)).astype(np.float32), rng.standard_normal((500, 40)).astype(np.float32)
    exact = a.astype(np.float64) @ b
    full = Arithmetic("float32", True).matmul(a, b) - exact
    before, arithmetic._PRODUCTS = arithmetic._PRODUCTS, 0
    try:
        some = Arithmetic("float32", True).matmul(a, b) - exact
    finally:
        arithmetic._PRODUCTS = before
    assert 0.5 < np.std(some) / np.std(full) < 2 and 0.4 < np.abs(some).max() / np.abs(full).max() < 2.5
