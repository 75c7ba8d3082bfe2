"""Every family of models: read, run, trained and decoded beside transformers' module with the same weights."""

import json

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers

import ckernels as ck
from ckernels.models import Config, Model, from_torch, load
from ckernels.models.mapping import places
from ckernels.parity import assert_parity, exact
from families import FAMILIES, configuration, module

TYPES = list(dict.fromkeys(name.partition(",")[0] for name in FAMILIES))


def batch(seed=0, B=3, T=19):
    ids, targets = np.random.default_rng(seed).integers(0, 101, (2, B, T))
    targets[1, 4] = -100
    return ids, targets


def gradients_of(peer, config):
    """Transformers' gradients by our names, joined ones taken apart."""
    named = dict(peer.named_parameters())
    found, _ = places(config, named)
    return {name: np.ascontiguousarray(at.take(named[at.source].grad.float().numpy())) for name, at in found.items()}


class TestConfig:
    @pytest.mark.parametrize("name", TYPES)
    def test_defaults_are_those_of_transformers(self, name):
        kind = getattr(transformers, FAMILIES[name][1])
        assert Config.from_hf({"model_type": name}) == Config.from_hf(kind()) == Config.from_hf(kind().to_dict())

    @pytest.mark.parametrize("name", FAMILIES)
    def test_reads_and_writes_what_transformers_does(self, name):
        theirs = configuration(name)
        config = Config.from_hf(theirs)
        said = config.to_hf()
        again = type(theirs)(**{key: value for key, value in said.items() if key not in ("model_type", "architectures")})
        assert Config.from_hf(again) == config == Config.from_hf(json.loads(json.dumps(said)))
        assert said["architectures"] == [FAMILIES[name][0]]

    def test_older_spellings(self):
        gemma = {"model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window_pattern": 3, "rope_theta": 5e5,
                 "rope_local_base_freq": 7e3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}  # fmt: skip
        theirs = Config.from_hf(transformers.Gemma3TextConfig(**{k: v for k, v in gemma.items() if k != "model_type"}))
        config = Config.from_hf(gemma)
        assert config == theirs and [config.window(i) for i in range(3)] == [4096, 4096, 0]
        assert config.rotary(0) == (7e3, None) and config.rotary(2) == (5e5, {"rope_type": "linear", "factor": 8.0})
        neox = Config.from_hf({"model_type": "gpt_neox", "rotary_pct": 1.0, "rotary_emb_base": 500})
        assert (neox.rotary_dim, neox.rope_theta) == (96, 500.0)
        phi = {"model_type": "phi3", "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
               "rope_scaling": {"type": "su", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}}  # fmt: skip
        rule = Config.from_hf(phi).rope_rule
        assert (rule["rope_type"], rule["original_max_position_embeddings"], rule["factor"]) == ("longrope", 4096, 32)

    def test_what_no_family_says_is_refused(self):
        config = Config(post_norms=True, hidden_size=64, num_attention_heads=4, intermediate_size=8)
        with pytest.raises(ValueError, match="of type 'llama' cannot say post_norms=True"):
            config.to_hf()
        for fields, text in (
            (dict(shared_norm=True), "shared_norm=True needs use_parallel_residual"),
            (dict(norm_bias=True), "norm_bias=True needs norm_type='layer_norm'"),
            (dict(rms_norm_offset=0.5), "rms_norm_offset=0.5 is not supported"),
            (dict(layer_types=["full_attention"]), "layer_types has 1 entries for 32 layers"),
            (dict(layer_types=["sliding_attention"] * 32), "there is no sliding_window"),
            (dict(partial_rotary_factor=1.5), "partial_rotary_factor=1.5 is above 1"),
        ):
            with pytest.raises(ValueError, match=text):
                Config(**fields)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_gradients_match_transformers(name):
    peer = module(name)
    model = from_torch(peer)
    ids, targets = batch()
    theirs = peer(torch.tensor(ids)).logits
    run = exact.model(peer.config, model.params, ids, targets)  # reads the configuration for itself
    assert_parity(model(ids), run.stages["logits"], theirs.detach().numpy())
    torch.nn.functional.cross_entropy(theirs.flatten(0, 1), torch.tensor(targets).flatten()).backward()
    loss, grads = model.loss_and_grads(ids, targets)
    assert loss == pytest.approx(float(run.stages["loss"]), rel=1e-6)
    beside = gradients_of(peer, model.config)
    assert grads.keys() == run.grads.keys() == beside.keys() == model.params.keys()
    for parameter, gradient in grads.items():
        if name == "gpt2" and parameter.endswith("k_proj.bias"):
            # Nothing is rotated: a bias of all keys moves all scores of a query alike, and its gradient is 0.
            terms = np.abs(run.stages[f"layers.{parameter.split('.')[2]}.d_k"]).sum((0, 2)).max()
            limit = 3 * np.abs(beside[parameter]).max() + 2 * np.finfo("f4").eps * terms
            assert np.abs(gradient).max() <= limit < 1e-3 * np.abs(grads[parameter.replace("k_proj", "q_proj")]).max()
        else:
            assert_parity(gradient, run.grads[parameter], beside[parameter], name=parameter)


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "stablelm, parallel", "gpt2"])
def test_every_stage_matches_float64(name):
    """Stages that a Llama has not, scaled embeddings, learned positions and capped logits among them."""
    model = from_torch(module(name))
    ids, targets = batch(T=11)
    true, beside = (exact.model(configuration(name), model.params, ids, targets, dtype=d) for d in ("float64", "float32"))
    trace = model.trace(ids, targets)
    stages = {place for place in trace.arrays if not place.startswith("d_model.") and place != "d_lm_head.weight"}
    assert stages == set(true.stages)
    for place in stages:
        assert_parity(trace.arrays[place], true.stages[place], beside.stages[place], name=place)


@pytest.mark.parametrize("name", FAMILIES)
def test_bits_of_prefill_chunks_decode_and_threads(name):
    model = from_torch(module(name))
    ids, targets = batch()
    whole = model(ids)
    for paged in False, True:
        cache = model.new_cache(20, 3, paged=paged)
        parts = [model(ids[:, a:b], cache=cache) for a, b in ((0, 6), (6, 7), (7, 8), (8, 19))]
        assert np.concatenate(parts, 1).tobytes() == whole.tobytes()
    grads = model.loss_and_grads(ids, targets)[1]
    ck.set_num_threads(1)
    assert model(ids).tobytes() == whole.tobytes()
    alone = model.loss_and_grads(ids, targets)[1]
    assert all(alone[parameter].tobytes() == gradient.tobytes() for parameter, gradient in grads.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_matches_float64(name):
    # Smaller weights than elsewhere: with those, scores of a bfloat16 model are noise, in transformers and here.
    check_16_bits(name, "bfloat16")


@pytest.mark.parametrize("name", ["gemma3_text", "gpt2"])
def test_float16_matches_float64(name):
    check_16_bits(name, "float16")


def check_16_bits(name, dtype):
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    peer = module(name, dtype, size=0.7)
    model = from_torch(peer, dtype=None)
    ids, targets = batch()
    theirs = peer(torch.tensor(ids)).logits
    # The mean over tokens makes gradients that float16 holds as subnormals, if at all.
    reduction = "sum" if dtype == "float16" else "mean"
    run = exact.model(peer.config, model.params, ids, targets, reduction=reduction)
    logits = model(ids)
    assert logits.dtype == model.dtype == kind
    assert_parity(logits, run.stages["logits"], theirs.detach())
    torch.nn.functional.cross_entropy(
        theirs.flatten(0, 1), torch.tensor(targets).flatten(), reduction=reduction
    ).backward()
    grads = model.loss_and_grads(ids, targets, reduction=reduction)[1]
    beside = gradients_of(peer, model.config)
    for parameter, gradient in grads.items():
        if name == "gpt2" and parameter.endswith("k_proj.bias"):
            continue  # 0, as above; both are noise of what was rounded before the sum
        assert_parity(gradient, run.grads[parameter], beside[parameter].astype(kind), name=parameter)
    cache = model.new_cache(20, 3)
    parts = [model(ids[:, a:b], cache=cache) for a, b in ((0, 6), (6, 7), (7, 19))]
    assert np.concatenate(parts, 1).tobytes() == logits.tobytes()


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "phi3", "gemma3_text", "qwen2"])
def test_folders_of_shards_are_what_the_module_is(tmp_path, name):
    peer = module(name)
    peer.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    model, copied = load(tmp_path), from_torch(peer)
    assert model.config == copied.config and list(model.params) == list(copied.params)
    for parameter, value in copied.params.items():
        assert value.tobytes() == model.params[parameter].tobytes()
        if parameter != "lm_head.weight":  # which the files of GPT-NeoX call embed_out
            assert copied.report.loaded[parameter][0] == model.report.loaded[parameter][0]
    assert model.report.changed == copied.report.changed
    if name == "gpt2":
        assert model.report.changed["model.layers.0.self_attn.k_proj.weight"] == "transposed, rows 48 to 96"
        assert model.report.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    narrow = load(tmp_path, dtype="bfloat16")
    assert narrow.dtype == ml_dtypes.bfloat16
    for parameter, value in copied.params.items():
        assert value.astype(ml_dtypes.bfloat16).tobytes() == narrow.params[parameter].tobytes()
    peer.to(torch.bfloat16).save_pretrained(tmp_path / "narrow")
    stored = load(tmp_path / "narrow", dtype=None)
    assert all(stored.params[parameter].tobytes() == value.tobytes() for parameter, value in narrow.params.items())


def test_a_joined_tensor_that_does_not_fit_is_named():
    peer = module("phi3")
    peer.config.intermediate_size = 92
    with pytest.raises(ValueError, match="gate_up_proj.weight has shape .182, 48., the config asks for rows 92 to 184"):
        from_torch(peer)


@pytest.mark.parametrize("name", ["gemma3_text", "gpt2"])
def test_padding_before_and_behind(name):
    model = from_torch(module(name))
    ids, _ = batch(B=4, T=13)
    mask = np.ones((4, 13), int)
    mask[0, :5] = mask[1, 9:] = mask[2, :1] = mask[2, 12:] = 0
    got = model(ids, attention_mask=mask)
    for b in range(4):
        real = mask[b] == 1
        assert got[b, real].tobytes() == model(ids[b, real]).tobytes()
        assert np.isnan(got[b, ~real]).all()
    last = model(ids, attention_mask=mask.astype(bool), last_only=True)
    assert all(last[b, 0].tobytes() == got[b, np.flatnonzero(mask[b])[-1]].tobytes() for b in range(4))
    # transformers hides the same tokens, but counts positions from the first place unless it is told.
    peer, places_of = module(name), np.maximum(mask.cumsum(1) - 1, 0)
    theirs = peer(torch.tensor(ids), attention_mask=torch.tensor(mask), position_ids=torch.tensor(places_of)).logits
    real = mask == 1
    true = np.concatenate(exact.logits(peer.config, model.params, [ids[b, real[b]] for b in range(4)]))
    assert_parity(got[real], true, theirs.detach().numpy()[real])


def test_masks_that_do_not_fit_are_refused():
    model = Model(ck.models.configs.tiny)
    ids = np.zeros((1, 4), int)
    for mask, error, text in (
        ([[1, 0, 1, 1]], ValueError, "has padding between real tokens"),
        ([[1, 1, 1]], ValueError, r"of shape \(1, 3\) does not fit 'ids' of shape \(1, 4\)"),
        ([[1, 2, 1, 1]], ValueError, "holds 2; 1 is a real token"),
        ([[1.0, 1, 1, 1]], TypeError, "must be bool or integers, got float64"),
    ):
        with pytest.raises(error, match=text):
            model(ids, attention_mask=mask)
    with pytest.raises(ValueError, match="'attention_mask' is for whole sequences"):
        model(ids, attention_mask=[[1, 1, 1, 1]], cache=model.new_cache(4))


def test_more_tokens_than_learned_positions_are_refused():
    model = from_torch(module("gpt2"))
    ids = np.zeros((1, 65), int)
    for call in (lambda: model(ids), lambda: model.loss_and_grads(ids, ids)):
        with pytest.raises(ValueError, match="65 tokens, and the model has learned 64 positions"):
            call()
    cache = model.new_cache(80)
    model(ids[:, :60], cache=cache)
    with pytest.raises(ValueError, match="65 tokens, and the model has learned 64 positions"):
        model(ids[:, :5], cache=cache)
    assert cache.lengths.tolist() == [60]
