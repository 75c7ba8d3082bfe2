"""Models whose config stretches the rotary frequencies: configuration, logits and gradients beside transformers'."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import ckernels as ck
from ckernels.models import Config, Model
from ckernels.parity import assert_parity, exact

SIZES = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=61
)
K, TRAINED = 8, 12
LISTS = {"short_factor": [1 + k / 7 for k in range(K)], "long_factor": [2.0 * 1.5**k for k in range(K)]}
RULES = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 8},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {"rope_type": "longrope", "factor": 3.0, "original_max_position_embeddings": TRAINED, **LISTS},
}


def config_of(kind):
    # yarn and llama3 stretch a context that is longer than the original one
    longer = {"yarn": 256, "llama3": 512, "longrope": 3 * TRAINED}.get(kind, TRAINED)
    return dict(max_position_embeddings=longer, rope_parameters={"rope_theta": 500.0, **RULES[kind]})


def lively(config):
    model = Model(config, seed=1)
    for value in model.params.values():
        if value.ndim == 2:
            value *= np.float32(5)
    return model


def peer_of(model):
    peer = LlamaForCausalLM(LlamaConfig(**model.config.to_hf(), attn_implementation="eager")).eval()
    peer.load_state_dict({name: torch.tensor(value) for name, value in model.params.items()})
    return peer


@pytest.mark.parametrize("kind", RULES)
def test_config_reads_and_writes_what_transformers_does(kind):
    fields = SIZES | config_of(kind)
    theirs = LlamaConfig(**fields)
    config = Config.from_hf(theirs)
    assert config == Config.from_hf(fields) == Config(**fields) == Config.from_hf(config.to_hf())
    assert config.rope_theta == 500.0
    assert config.rope_parameters == {"rope_theta": 500.0, **RULES[kind]} == theirs.rope_parameters
    assert LlamaConfig(**config.to_hf()).rope_parameters == theirs.rope_parameters
    assert hash(config) == hash(Config(**fields))
    moved = dataclasses.replace(config, rope_theta=7.0)
    assert moved.rope_parameters == {**theirs.rope_parameters, "rope_theta": 7.0} and moved != config
    older = {name: value for name, value in fields.items() if name != "rope_parameters"}
    spelled = {"type" if name == "rope_type" else name: value for name, value in RULES[kind].items()}
    assert Config.from_hf({**older, "rope_theta": 500.0, "rope_scaling": spelled}) == config
    assert Config.from_hf({**fields, "rope_theta": 500.0, "rope_scaling": spelled}) == config


def test_what_a_rule_leaves_out_is_filled_in_as_transformers_does():
    for kind in "yarn", "llama3":
        rule = {name: value for name, value in RULES[kind].items() if name != "original_max_position_embeddings"}
        fields = SIZES | {"max_position_embeddings": 96, "rope_parameters": {"rope_theta": 1e4, **rule}}
        assert Config.from_hf(LlamaConfig(**fields)) == Config.from_hf(fields)
        assert Config.from_hf(fields).rope_rule["original_max_position_embeddings"] == 96
    rule = {name: value for name, value in RULES["longrope"].items() if name != "factor"}
    assert Config(**SIZES, max_position_embeddings=4 * TRAINED, rope_scaling=rule).rope_rule["factor"] == 4
    assert "factor" not in Config(**SIZES, rope_scaling=rule | {"attention_factor": 1.5}).rope_rule
    rule = RULES["yarn"] | {"factor": None}
    assert Config(**SIZES, max_position_embeddings=640, rope_scaling=rule).rope_rule["factor"] == 10


# Within what dynamic and longrope call the original length, at its end, and beyond.
@pytest.mark.parametrize("T", [5, TRAINED, 19])
@pytest.mark.parametrize("kind", RULES)
def test_logits_and_gradients_match_transformers(kind, T):
    rng = np.random.default_rng(T)
    model = lively(Config(**SIZES, **config_of(kind)))
    plain = Model(Config(**SIZES, rope_theta=500.0), model.params)
    ids, targets = rng.integers(0, 61, (2, 3, T))
    peer = peer_of(model)
    logits = model(ids)
    theirs = peer(torch.tensor(ids)).logits
    assert_parity(logits, exact.logits(model.config, model.params, ids), theirs.detach().numpy())
    if not (kind == "dynamic" and T <= TRAINED):
        with pytest.raises(AssertionError):  # a rule that has no effect could not fail
            assert_parity(plain(ids), exact.logits(model.config, model.params, ids), theirs.detach().numpy())
    torch.nn.functional.cross_entropy(theirs.flatten(0, 1), torch.tensor(targets).flatten()).backward()
    _, grads = model.loss_and_grads(ids, targets)
    run = exact.model(model.config, model.params, ids, targets)
    for name, parameter in peer.named_parameters():
        assert_parity(grads[name], run.grads[name], parameter.grad.numpy(), name=name)


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_decoding_gives_the_bits_of_the_whole(kind):
    model, ids = lively(Config(**SIZES, **config_of(kind))), np.random.default_rng(0).integers(0, 61, (2, 19))
    cache = model.new_cache(19, 2)
    parts = [model(ids[:, :7], cache=cache)] + [model(ids[:, t : t + 1], cache=cache) for t in range(7, 19)]
    np.testing.assert_array_equal(np.concatenate(parts, 1), model(ids))


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_decoding_past_the_original_length_matches_transformers(kind):
    """Keys keep the frequencies of the length at which they came; the bits of the whole are not to be had."""
    model, ids = lively(Config(**SIZES, **config_of(kind))), np.random.default_rng(0).integers(0, 61, (2, 19))
    cache, peer, past = model.new_cache(19, 2), peer_of(model), None
    whole = model(ids[:, :TRAINED])
    for t in range(19):
        logits = model(ids[:, t : t + 1], cache=cache)
        with torch.no_grad():
            theirs = peer(torch.tensor(ids[:, t : t + 1]), past_key_values=past, use_cache=True)
        past = theirs.past_key_values
        if t < TRAINED:
            np.testing.assert_array_equal(logits, whole[:, t : t + 1])
        # No exact side steps token by token: the ceiling of logits between two float32 programs takes its place.
        assert_parity(logits, theirs.logits.double().numpy(), bound=1e-3)


def test_a_table_serves_every_length_of_equal_frequencies():
    for kind, lengths in ("dynamic", (1, 5, TRAINED)), ("longrope", (1, TRAINED)), ("llama3", (1, 30, 64)):
        layer = lively(Config(**SIZES, **config_of(kind))).layers()[0]
        tables = {id(layer.table(length)[0]) for length in lengths}
        assert len(tables) == 1, kind
    layer = lively(Config(**SIZES, **config_of("dynamic"))).layers()[0]
    longer = layer.table(TRAINED + 1)
    assert layer.table(TRAINED + 1) is longer
    want = ck.rope_table(np.arange(64), 16, 500.0, scaling=layer.config.rope_rule, length=TRAINED + 1)
    np.testing.assert_array_equal(longer[1], want[1])
    assert layer.table(TRAINED)[1].tobytes() != longer[1].tobytes()
