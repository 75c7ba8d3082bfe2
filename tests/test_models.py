"""Whole models: configurations, parameters, logits, gradients, caches, generation, traces."""
import dataclasses
import hashlib
from pydoc_data.topics import topics

import numpy as np
import pytest

import ckernels as ck
from ckernels.io import read_gguf
from ckernels.io.fetch import fetch
from ckernels.io.tokenizer import Tokenizer
from ckernels.models import Config, Model, configs, from_torch, load
from ckernels.models.parameters import parameter_shapes
from ckernels.parity import assert_parity

NO_TORCH = "not measured: no PyTorch for this Python"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SMALL = ("tiny", "gqa", "wide", "deep", "single_layer")


def draw(rng, *shape, vocab=257, ignored=0):
    """Token ids without a pattern; ``ignored`` of them, in the middle, are -100."""
    ids = rng.integers(0, vocab, shape)
    ids.reshape(-1)[ids.size // 2 : ids.size // 2 + ignored] = -100
    return ids


def peer_of(model):
    """The transformers model with the very weights of ours."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    from transformers import LlamaConfig, LlamaForCausalLM

    peer = LlamaForCausalLM(LlamaConfig(**model.config.to_hf(), attn_implementation="eager")).eval()
    state = {name: torch.tensor(value) for name, value in model.params.items()}
    peer.load_state_dict({HEAD: state[EMBEDDING], **state})
    return peer


def lively(config, seed=0):
    """A model whose weights are large enough for attention to look at something and for logits to differ."""
    model = Model(config, seed=seed)
    for value in model.params.values():
        if value.ndim == 2:
            value *= np.float32(5)
    return model


@pytest.fixture(params=SMALL)
def model(request):
    return lively(configs[request.param], seed=SMALL.index(request.param))


class TestConfig:
    def test_reads_and_writes_what_transformers_does(self):
        pytest.importorskip("torch", reason=NO_TORCH)
        from transformers import LlamaConfig

        for config in configs.values():
            theirs = LlamaConfig(**config.to_hf())
            assert Config.from_hf(theirs) == config
            assert Config.from_hf(theirs.to_dict()) == config
            for name, value in config.to_hf().items():
                assert getattr(theirs, name) == value, name

    def test_defaults_are_those_of_transformers(self):
        pytest.importorskip("torch", reason=NO_TORCH)
        from transformers import LlamaConfig

        assert Config.from_hf({}) == Config.from_hf(LlamaConfig()) == Config()

    @pytest.mark.parametrize(
        "fields",
        [
            {"rope_theta": 5e5},
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
            {"rope_parameters": {"rope_theta": 5e5}},
            {"rope_theta": 5e5, "rope_scaling": None},
            {"rope_theta": 5e5, "rope_scaling": {"type": "default"}},
            {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
            {"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 1.0}},
        ],
    )
    def test_every_spelling_of_the_rope_base(self, fields):
        for config in (Config.from_hf(fields), Config(**fields)):
            assert config.rope_theta == 5e5
            assert config.rope_parameters == {"rope_type": "default", "rope_theta": 5e5}
            assert dataclasses.replace(config, rope_theta=7.0).rope_parameters["rope_theta"] == 7.0

    def test_fields_without_arithmetic_are_ignored(self):
        # What the config.json of a real model holds besides.
        extra = {
            "architectures": ["LlamaForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "eos_token_id": [2, 3],
            "initializer_range": 0.04,
            "is_llama_config": True,
            "model_type": "llama",
            "pad_token_id": 2,
            "pretraining_tp": 1,
            "rope_interleaved": False,
            "torch_dtype": "bfloat16",
            "transformers.js_config": {"dtype": "q4"},
            "transformers_version": "4.42.3",
            "use_cache": True,
            "_name_or_path": "somewhere",
            "sliding_window": None,
        }
        assert Config.from_hf(extra) == Config()

    @pytest.mark.parametrize(
        ("fields", "text"),
        [
            ({"model_type": "bloom"}, "model_type='bloom'"),
            ({"hidden_act": "tanh"}, "hidden_act='tanh'"),
            ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
            ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
            ({"model_type": "stablelm", "qk_layernorm": True}, "qk_layernorm=True"),
            ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
            ({"model_type": "gemma2", "layer_types": ["linear_attention"] * 26}, "layer_types holds 'linear_attention'"),
            ({"model_type": "gpt_neox", "rotary_pct": 0.33}, "partial_rotary_factor=0.33 of head_dim=96"),
            (
                {"model_type": "gemma3_text", "rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2}}},
                "rope_parameters['sliding_attention']=",
            ),
            ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'low_freq_factor' of rope_scaling is missing"),
            ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "'factor' must be finite and at least 1, not 0.5"),
            ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "'factor' of rope_scaling is missing"),
            ({"rope_scaling": {"type": "su", "factor": 2.0}}, "'rope_type' of rope_scaling is 'su'; there are default"),
            ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta": 1}}, "'beta' of rope_scaling is no field"),
            ({"rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 5.0}}, "'rope_theta' of rope_scaling is 5"),
            ({"rope_scaling": {"type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
            (
                {"rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 5}},
                "original_max_position_embeddings=5 of rope_scaling contradicts max_position_embeddings=2048",
            ),
            (
                {"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": {"type": "ntk", "factor": 2.0}},
                "rope_scaling={'type': 'ntk', 'factor': 2.0} contradicts rope_parameters=",
            ),
            ({"rope_parameters": {"rope_theta": 1e4}, "rope_theta": 2e4}, "rope_theta=20000.0 contradicts"),
            ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
            ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "full_attention="),
            ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
            ({"rope_interleaved": True}, "rope_interleaved=True"),
            ({"sliding_window": 4096}, "sliding_window=4096"),
            ({"logits_scaling": 8.0}, "logits_scaling=8.0"),
            ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config="),
            ({"num_key_value_heads": 3}, "num_attention_heads=32 is not a multiple of num_key_value_heads=3"),
            ({"hidden_size": 100}, "hidden_size=100 is not a multiple of num_attention_heads=32"),
            ({"head_dim": 33}, "head_dim=33 is odd"),
            ({"num_hidden_layers": 0}, "num_hidden_layers=0 is outside 1"),
            ({"vocab_size": 2**31}, "vocab_size=2147483648 is outside 1"),
            ({"rms_norm_eps": 0.0}, "rms_norm_eps=0.0 must be finite and above 0"),
            ({"rope_theta": float("inf")}, "rope_theta=inf must be finite"),
            ({"rope_theta": 10**400}, "must be finite and above 0"),
        ],
    )
    def test_refused_by_name(self, fields, text):
        with pytest.raises(ValueError) as error:
            Config.from_hf(fields)
        assert text in str(error.value)

    @pytest.mark.parametrize(
        ("fields", "text"),
        [
            ({"hidden_size": "64"}, "hidden_size must be an integer"),
            ({"hidden_size": 64.0}, "hidden_size must be an integer"),
            ({"num_attention_heads": True}, "num_attention_heads must be an integer"),
            ({"rms_norm_eps": "1e-5"}, "rms_norm_eps must be a number"),
            ({"tie_word_embeddings": 1}, "tie_word_embeddings must be a bool"),
            ({"rope_scaling": 2.0}, "rope_scaling must be a dict"),
            ({"rope_parameters": [1]}, "rope_parameters must be a dict"),
        ],
    )
    def test_wrong_kinds(self, fields, text):
        with pytest.raises(TypeError, match=text):
            Config.from_hf(fields)
        with pytest.raises(TypeError, match="expected a dict"):
            Config.from_hf([fields])

    def test_presets(self):
        shapes = {
            name: (c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.num_hidden_layers)
            for name, c in configs.items()
        }
        assert shapes == {
            "tiny": (64, 2, 2, 2),
            "gqa": (128, 8, 2, 2),
            "deep": (64, 2, 2, 6),
            "wide": (128, 8, 8, 2),
            "medium": (256, 4, 4, 4),
            "single_layer": (64, 2, 2, 1),
        }
        assert configs.gqa is configs["gqa"] and "gqa" in dir(configs)
        with pytest.raises(KeyError, match="no preset 'huge'"):
            configs["huge"]
        with pytest.raises(AttributeError, match="no preset 'huge'"):
            configs.huge  # noqa: B018


class TestParameters:
    def test_random_ones(self):
        one, same, other = Model(configs.tiny), Model(configs.tiny, seed=0), Model(configs.tiny, seed=1)
        for name, value in one.params.items():
            np.testing.assert_array_equal(value, same.params[name])
            assert not np.array_equal(value, other.params[name])
            assert value.dtype == np.float32
            if value.ndim == 1:
                assert 0.05 < value.std() < 0.2 and 0.9 < value.mean() < 1.1, "norm weights are away from one"

    def test_given_ones_are_used_as_they_are(self):
        params = Model(configs.tiny).params
        backwards = dict(reversed(params.items()))
        model = Model(configs.tiny, backwards)
        assert list(model.params) == [name for name, _ in parameter_shapes(configs.tiny)]
        assert all(model.params[name] is params[name] for name in params)

    @pytest.mark.parametrize(
        ("name", "value", "kind", "text"),
        [
            ("model.norm.weight", None, ValueError, "missing model.norm.weight"),
            ("model.extra.weight", np.ones(3, "f4"), ValueError, "left over.*model.extra.weight"),
            ("model.norm.weight", np.ones(63, "f4"), ValueError, r"model.norm.weight has shape \(63,\).*\(64,\)"),
            ("model.norm.weight", np.ones(64, "f8"), TypeError, "model.norm.weight must be float32, got float64"),
            ("model.norm.weight", "ones", TypeError, "'model.norm.weight' must be an array, got str"),
            ("model.norm.weight", np.ones(128, "f4")[::2], ValueError, "model.norm.weight must be contiguous"),
        ],
    )
    def test_refused_by_name(self, name, value, kind, text):
        params = {**Model(configs.tiny).params, name: value}
        if value is None:
            del params[name]
        with pytest.raises(kind, match=text):
            Model(configs.tiny, params)

    def test_params_must_be_a_dict(self):
        with pytest.raises(TypeError, match="'params' must be a dict of arrays, got list"):
            Model(configs.tiny, [1])

    def test_config_must_be_one(self):
        with pytest.raises(TypeError, match="'config' must be a Config, got dict"):
            Model({})


class TestFromTorch:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_copies_config_and_weights(self, dtype):
        torch = pytest.importorskip("torch", reason=NO_TORCH)
        for config in (configs.tiny, configs.gqa):
            peer = peer_of(Model(config, seed=3)).to(getattr(torch, dtype))
            model = from_torch(peer)
            assert model.config == config
            assert (HEAD in model.params) != config.tie_word_embeddings
            state = peer.state_dict()
            for name, value in model.params.items():
                np.testing.assert_array_equal(value, state[name].float().numpy())
                assert not np.shares_memory(value, state[name].view(torch.uint8).numpy())

    def test_refusals(self):
        torch = pytest.importorskip("torch", reason=NO_TORCH)
        from transformers import OlmoConfig, OlmoForCausalLM

        peer = peer_of(Model(configs.tiny))
        with pytest.raises(TypeError, match="Linear is not supported; supported: LlamaForCausalLM"):
            from_torch(torch.nn.Linear(2, 2))
        with pytest.raises(TypeError, match="OlmoForCausalLM is not supported"):
            fields = {k: v for k, v in configs.tiny.to_hf().items() if k not in ("model_type", "architectures")}
            from_torch(OlmoForCausalLM(OlmoConfig(**fields)))
        with pytest.raises(TypeError, match="model.embed_tokens.weight is float64"):
            from_torch(peer.double())
        peer = peer_of(Model(configs.gqa)).float()
        peer.lm_head.weight = torch.nn.Parameter(peer.lm_head.weight + 1)
        with pytest.raises(ValueError, match="tie_word_embeddings=True, but lm_head.weight differs"):
            from_torch(peer)


class TestLoad:
    def test_refusals(self, tmp_path):
        with pytest.raises(TypeError, match=r"load\(\): 'path' must be a file or folder, not NoneType"):
            load(None)
        with pytest.raises(FileNotFoundError, match="absent.gguf"):
            load(tmp_path / "absent.gguf")
        with pytest.raises(FileNotFoundError, match="config.json"):
            load(tmp_path)
        for dtype in ("int8", "float64"):
            with pytest.raises(ValueError, match="is not supported; supported: 'float32', 'bfloat16', 'float16'"):
                load(tmp_path, dtype=dtype)
        with pytest.raises(TypeError, match="is no data type"):
            load(tmp_path, dtype="float99")


class TestLogits:
    @pytest.mark.parametrize("T", [1, 2, 17])
    def test_matches_transformers(self, model, rng, T):
        torch = pytest.importorskip("torch", reason=NO_TORCH)
        from ckernels.parity import exact

        ids = draw(rng, 3, T)
        with torch.no_grad():
            peer = peer_of(model)(torch.tensor(ids)).logits.numpy()
        assert_parity(model(ids), exact.logits(model.config, model.params, ids), peer)

    def test_one_text_without_a_batch(self, model, rng):
        ids = draw(rng, 2, 7)
        np.testing.assert_array_equal(model(ids[1]), model(ids)[1], strict=True)
        np.testing.assert_array_equal(model(ids[1].tolist()), model(ids)[1], strict=True)
        np.testing.assert_array_equal(model(ids.astype(np.int32)), model(ids), strict=True)

    def test_last_only(self, model, rng):
        ids = draw(rng, 3, 7)
        np.testing.assert_array_equal(model(ids, last_only=True), model(ids)[:, -1:], strict=True)
        np.testing.assert_array_equal(model(ids[0], last_only=True), model(ids[0])[-1:], strict=True)

    def test_nothing(self, model):
        V = model.config.vocab_size
        assert model(np.zeros((2, 0), np.int64)).shape == (2, 0, V)
        assert model(np.zeros((0, 3), np.int64)).shape == (0, 3, V)
        assert model([]).shape == (0, V)
        with pytest.raises(ValueError, match="last_only needs at least one token"):
            model([], last_only=True)

    def test_threads_change_no_bit(self, model, rng):
        ids = draw(rng, 2, 19)
        ck.set_num_threads(1)
        one = model(ids)
        for threads in (2, 3, 7):
            ck.set_num_threads(threads)
            np.testing.assert_array_equal(model(ids), one)

    def test_layers_share_one_rotary_table(self, rng):
        model = Model(configs.deep)
        model(draw(rng, 1, 70))
        tables = [layer.table(70) for layer in model.layers()]
        assert all(table[0] is tables[0][0] and table[1] is tables[0][1] for table in tables)

    def test_a_changed_parameter_is_seen(self, rng):
        model, ids = lively(configs.gqa), draw(rng, 2, 5)
        before = model(ids)
        for name in model.params:
            old = model.params[name].copy()
            model.params[name] *= np.float32(1.5)  # as an optimizer does
            in_place = model(ids)
            assert not np.array_equal(in_place, before), name
            np.testing.assert_array_equal(in_place, Model(model.config, model.params)(ids))
            model.params[name] = old  # another array in its place
            np.testing.assert_array_equal(model(ids), before)

    @pytest.mark.parametrize(
        ("ids", "kind", "text"),
        [
            ([[1, 2], [3, 257]], IndexError, r"ids\[1, 1\] = 257 is outside the vocabulary of 257 tokens"),
            ([1, -1], IndexError, r"ids\[1\] = -1"),
            ([1, -100], IndexError, r"ids\[1\] = -100"),
            (np.array([1.0]), TypeError, "'ids' must be int32 or int64, got float64"),
            (np.array([True]), TypeError, "'ids' must be int32 or int64, got bool"),
            (np.zeros((1, 1, 1), int), ValueError, r"'ids' of shape \(1, 1, 1\) is neither"),
            (np.array(3), ValueError, r"'ids' of shape \(\) is neither"),
            ("text", TypeError, "'ids' must be an array, got str"),
        ],
    )
    def test_refused_ids(self, ids, kind, text):
        model = Model(configs.single_layer)
        with pytest.raises(kind, match=text):
            model(ids)


class TestCache:
    @pytest.mark.parametrize("chunks", [[23], [1] * 23, [16, 7], [5, 1, 17], [22, 1]])
    def test_chunks_are_the_whole_bit_for_bit(self, model, rng, chunks):
        ids = draw(rng, 2, 23)
        whole, cache, start = model(ids), model.new_cache(29, batch=2), 0
        for size in chunks:
            part = model(ids[:, start : start + size], cache=cache)
            np.testing.assert_array_equal(part, whole[:, start : start + size], strict=True)
            start += size
        assert cache.lengths.tolist() == [23, 23]

    @pytest.mark.parametrize("paged", [False, True], ids=["in one piece", "paged"])
    @pytest.mark.parametrize("quant", [None, "int8", "int4", "int8_sym", "fp8_e4m3", "fp8_e5m2"])
    @pytest.mark.parametrize("preset", ["tiny", "gqa"])  # heads of 32 and of 16
    def test_any_form_of_cache_has_the_bits_of_one_prefill(self, preset, quant, paged, rng):
        model, ids = Model(configs[preset], seed=1), draw(rng, 2, 11)
        whole = model(ids, cache=model.new_cache(16, batch=2, quant=quant))
        assert np.array_equal(whole, model(ids)) == (quant is None)
        for sizes in ([1] * 11, [4, 6, 1]):
            cache, start = model.new_cache(16, batch=2, quant=quant, paged=paged), 0
            for size in sizes:
                part = model(ids[:, start : start + size], cache=cache)
                np.testing.assert_array_equal(part, whole[:, start : start + size], strict=True)
                start += size

    def test_items_of_different_lengths(self, model, rng):
        ids, counts = draw(rng, 3, 11), np.array([11, 4, 0])
        cache = model.new_cache(19, batch=3)
        first = model(ids, cache=cache, counts=counts)
        more = draw(rng, 3, 6)
        second = model(more, cache=cache, counts=[2, 6, 5])
        assert cache.lengths.tolist() == [13, 10, 5]
        for b, (n, m) in enumerate(((11, 2), (4, 6), (0, 5))):
            alone = model(np.concatenate([ids[b, :n], more[b, :m]]))
            np.testing.assert_array_equal(first[b, :n], alone[:n])
            np.testing.assert_array_equal(second[b, :m], alone[n:])

    def test_last_only_is_the_last_real_token(self, model, rng):
        ids, counts = draw(rng, 3, 5), [5, 0, 2]
        every = model(ids, cache=model.new_cache(9, batch=3), counts=counts)
        last = model(ids, cache=model.new_cache(9, batch=3), counts=counts, last_only=True)
        np.testing.assert_array_equal(last[0, 0], every[0, 4])
        np.testing.assert_array_equal(last[2, 0], every[2, 1])
        assert np.isnan(last[1]).all()

    def test_truncated_forked_reset(self, model, rng):
        ids = draw(rng, 1, 9)
        whole, cache = model(ids), model.new_cache(9)
        model(draw(rng, 1, 9), cache=cache)
        cache.reset()
        model(ids[:, :6], cache=cache)
        fork = cache.fork()
        model(draw(rng, 1, 3), cache=cache)
        cache.truncate(6)
        np.testing.assert_array_equal(model(ids[:, 6:], cache=cache), whole[:, 6:])
        np.testing.assert_array_equal(model(ids[:, 6:], cache=fork), whole[:, 6:])

    def test_refused_before_anything_is_written(self, rng):
        model = Model(configs.tiny)
        cache = model.new_cache(4, batch=2)
        model(draw(rng, 2, 2), cache=cache)
        before = [array.copy() for layer in cache.layers for array in (layer.keys(0), layer.values(1))]
        other = Model(configs.deep).new_cache(4, batch=2)
        for ids, options, kind, text in (
            (draw(rng, 2, 3), {}, ValueError, "item 0 would hold 5 tokens, its cache has a capacity of 4"),
            (draw(rng, 2, 3), {"counts": [1, 3]}, ValueError, "item 1 would hold 5 tokens"),
            ([[1], [999]], {}, IndexError, r"ids\[1, 0\] = 999"),
            ([[1]], {}, ValueError, "does not fit a cache of 2 items"),
            ([[1], [2]], {"counts": [2, 0]}, ValueError, "must be between 0 and T=1"),
            ([[1], [2]], {"counts": [-1, 0]}, ValueError, "must be between 0 and T=1"),
            ([[1], [2]], {"counts": [1]}, ValueError, r"'counts' of shape \(1,\) does not fit \[B\]"),
            ([[1], [2]], {"counts": [0.5, 1]}, TypeError, "'counts' must be integers"),
            ([[1], [2]], {"cache": other}, TypeError, "'cache' must come from this model's new_cache"),
            ([[1], [2]], {"cache": [cache]}, TypeError, "'cache' must come from this model's new_cache"),
            ([[1], [2]], {"cache": None, "counts": [1, 1]}, ValueError, "no 'cache' is given"),
        ):
            with pytest.raises(kind, match=text):
                model(ids, **{"cache": cache, **options})
            assert cache.lengths.tolist() == [2, 2]
        after = [array for layer in cache.layers for array in (layer.keys(0), layer.values(1))]
        for old, new in zip(before, after, strict=True):
            np.testing.assert_array_equal(old, new)

    def test_a_failure_half_way_leaves_no_token(self, rng, monkeypatch):
        model, ids = Model(configs.deep), draw(rng, 1, 5)
        cache, whole = model.new_cache(8), model(ids)
        model(ids[:, :2], cache=cache)

        def fails(*args, **kwargs):
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(model.layers()[3], "decode", fails)
            with pytest.raises(MemoryError):
                model(ids[:, 2:], cache=cache)
        assert {tuple(layer.lengths) for layer in cache.layers} == {(2,)}
        np.testing.assert_array_equal(model(ids[:, 2:], cache=cache), whole[:, 2:])

    @pytest.mark.parametrize("paged", [False, True])
    @pytest.mark.parametrize("quant", [None, "int8", "int4", "int8_sym", "fp8_e4m3", "fp8_e5m2"])
    def test_every_form_gives_the_same_bits_in_one_chunk_several_and_ragged(self, rng, quant, paged):
        model, ids = Model(dataclasses.replace(configs.gqa, head_dim=32)), draw(rng, 3, 37)
        whole = model(ids, cache=model.new_cache(40, 3, quant))
        if quant is None:
            np.testing.assert_array_equal(whole, model(ids))
        cache, held = model.new_cache(40, 3, quant, 12 if paged else False), np.zeros(3, int)
        for counts in ([5, 1, 20], [1, 0, 3], [17, 16, 1], [9, 11, 13], [5, 9, 0]):
            width = max(counts)
            part = np.stack([np.pad(ids[b, n : n + c], (0, width - c)) for b, (n, c) in enumerate(zip(held, counts, strict=True))])
            got = model(part, cache=cache, counts=counts)
            for b, c in enumerate(counts):
                np.testing.assert_array_equal(got[b, :c], whole[b, held[b] : held[b] + c])
            held += counts
        fork = cache.fork()
        cache.truncate([3, 9, 30])
        again = model(np.stack([ids[b, n : n + 1] for b, n in enumerate([3, 9, 30])]), cache=cache)
        for b, n in enumerate([3, 9, 30]):
            np.testing.assert_array_equal(again[b], whole[b, n : n + 1])
        assert fork.lengths.tolist() == [37, 37, 37] and cache.lengths.tolist() == [4, 10, 31]

    def test_caches_are_refused_by_name(self):
        model = Model(configs.tiny)
        for arguments, error, text in (
            (dict(quant="int3"), ValueError, "KVCache.*: 'quant' must be one of"),
            (dict(paged=-1), ValueError, "'num_blocks' must not be negative"),
            (dict(paged="yes"), TypeError, "'num_blocks' must be an integer"),
        ):
            with pytest.raises(error, match=text):
                model.new_cache(4, **arguments)
        cache = model.new_cache(40, paged=2)
        with pytest.raises(MemoryError, match="3 blocks are needed, 2 of 2 are free"):
            model([[1] * 33], cache=cache)
        assert cache.lengths.tolist() == [0] and cache.layers[0].pool.free_blocks == 2


class TestGradients:
    @pytest.mark.parametrize(("reduction", "ignored"), [("mean", 4), ("sum", 0)])
    def test_matches_autograd(self, model, rng, reduction, ignored):
        torch = pytest.importorskip("torch", reason=NO_TORCH)
        from ckernels.parity import exact

        ids, targets = draw(rng, 2, 13), draw(rng, 2, 13, ignored=ignored)
        loss, grads = model.loss_and_grads(ids, targets, reduction=reduction)
        truth = exact.model(model.config, model.params, ids, targets, reduction=reduction)
        peer = peer_of(model)
        logits = peer(torch.tensor(ids)).logits
        peer_loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.tensor(targets).flatten(), reduction=reduction
        )
        peer_loss.backward()
        theirs = {name: value.grad.numpy() for name, value in peer.named_parameters()}
        assert isinstance(loss, float)
        assert_parity(np.float32([loss]), truth.stages["loss"].reshape(1), peer_loss.detach().numpy().reshape(1))
        assert list(grads) == list(model.params) and grads.keys() == truth.grads.keys() == theirs.keys()
        for name, grad in grads.items():
            assert_parity(grad, truth.grads[name], theirs[name], name=name)

    def test_finite_differences_of_our_own_loss(self, rng):
        """A second opinion without PyTorch: the loss along a direction, in steps that float32 resolves."""
        model = lively(configs.single_layer)
        ids, targets = draw(rng, 2, 9), draw(rng, 2, 9)
        _, grads = model.loss_and_grads(ids, targets)
        for name, grad in grads.items():
            direction = (grad / np.linalg.norm(grad)).astype(np.float32)
            kept = model.params[name].copy()
            losses = []
            step = np.float32(1e-2)
            for sign in (1, -1):
                model.params[name][...] = kept + np.float32(sign) * step * direction
                losses.append(model.loss_and_grads(ids, targets)[0])
            model.params[name][...] = kept
            slope, expected = (losses[0] - losses[1]) / (2 * float(step)), float(np.linalg.norm(grad))
            # A float32 loss near 6 is known to 2.4e-7, so the slope to 2.4e-5; the rest is the third derivative.
            assert abs(slope - expected) < 5e-4 + 0.02 * expected, name

    def test_a_tied_embedding_has_both_parts(self, rng):
        model = lively(configs.gqa)
        ids, targets = draw(rng, 1, 6, vocab=100), draw(rng, 1, 6)
        _, grads = model.loss_and_grads(ids, targets)
        untied = Model(
            dataclasses.replace(model.config, tie_word_embeddings=False),
            {**model.params, HEAD: model.params[EMBEDDING]},
        )
        _, apart = untied.loss_and_grads(ids, targets)
        assert np.abs(apart[EMBEDDING]).max() > 0 and np.abs(apart[HEAD]).max() > 0
        once = np.bincount(ids.ravel(), minlength=257) <= 1  # the sum of several rows is rounded with the rest
        np.testing.assert_array_equal(grads[EMBEDDING][once], (apart[HEAD] + apart[EMBEDDING])[once])
        terms = np.maximum(np.abs(apart[HEAD]), np.abs(apart[EMBEDDING]))
        assert (np.abs(grads[EMBEDDING] - (apart[HEAD] + apart[EMBEDDING])) <= np.spacing(terms)).all()

    def test_nothing_counted(self, rng):
        model, ids = Model(configs.tiny), draw(rng, 2, 3)
        loss, grads = model.loss_and_grads(ids, np.full((2, 3), -100))
        assert np.isnan(loss)
        assert all((grad == 0).all() for grad in grads.values())
        loss, grads = model.loss_and_grads(ids, np.full((2, 3), -100), reduction="sum")
        assert loss == 0 and all((grad == 0).all() for grad in grads.values())

    def test_accumulated_is_added(self, model, rng):
        ids, targets = draw(rng, 3, 2, 5), draw(rng, 3, 2, 5, ignored=3)
        parts = [model.loss_and_grads(i, t, reduction="sum") for i, t in zip(ids, targets, strict=True)]
        loss, total = model.loss_and_grads(ids[0], targets[0], reduction="sum")
        for i, t, (part, _) in zip(ids[1:], targets[1:], parts[1:], strict=True):
            loss, same = model.loss_and_grads(i, t, reduction="sum", accumulate_into=total)
            assert same is total and loss == part
        for name in total:
            np.testing.assert_array_equal(total[name], (parts[0][1][name] + parts[1][1][name]) + parts[2][1][name])

    def test_bits_do_not_depend_on_threads(self, rng):
        """More rows than a block of linear_cross_entropy, more classes than one, and a batch."""
        model = lively(dataclasses.replace(configs.gqa, vocab_size=2500))
        ids, targets = draw(rng, 3, 101, vocab=2500), draw(rng, 3, 101, vocab=2500, ignored=7)
        want = None
        for n in (1, 2, 3, 7):
            ck.set_num_threads(n)
            loss, grads = model.loss_and_grads(ids, targets)
            found = [loss, *(grad.tobytes() for grad in grads.values())]
            want = want or found
            assert found == want

    def test_an_optimizer_s_step_and_a_user_s_own_are_seen_by_the_next_call(self, rng):
        model, ids = lively(configs.gqa), draw(rng, 1, 9)
        opt = ck.optim.SGD(model.params, lr=0.1)
        cache = model.new_cache(9)
        model(ids[:, :4], cache=cache)
        for change in range(3):
            if change == 0:
                opt.step(model.loss_and_grads(ids, ids)[1])
            elif change == 1:
                model.params["model.layers.1.mlp.up_proj.weight"][3, 5] += 0.5  # one number, by the user's own hand
            else:
                model.params[EMBEDDING] = model.params[EMBEDDING] * np.float32(1.5)
            fresh = Model(model.config, {name: value.copy() for name, value in model.params.items()})
            np.testing.assert_array_equal(model(ids), fresh(ids))
            other = fresh.new_cache(9)
            for held, mine in zip(other.layers, cache.layers, strict=True):
                held.append(*(np.stack([part(0)])[:, :, :4] for part in (mine.keys, mine.values)))
            np.testing.assert_array_equal(model(ids[:, 4:5], cache=cache), fresh(ids[:, 4:5], cache=other))
            cache.truncate(4)
            want = list(fresh.generate(ids, max_new_tokens=3))
            assert list(model.generate(ids, max_new_tokens=3)) == want

    def test_holds_no_matrix_of_logits(self, rng):
        config = dataclasses.replace(configs.single_layer, hidden_size=8, intermediate_size=8, vocab_size=30000)
        model = Model(config)
        ids = draw(rng, 1, 1000, vocab=30000)
        model.loss_and_grads(ids, ids)
        ck.empty_cache()
        before = ck.memory_stats()["in_use"]
        model.loss_and_grads(ids, ids)
        logits = ids.size * config.vocab_size * 4
        assert ck.memory_stats()["peak"] - before < 0.4 * logits  # those of 256 tokens, and what else there is

    def test_inputs_are_left_alone(self, model, rng):
        ids, targets = draw(rng, 2, 5), draw(rng, 2, 5, ignored=2)
        kept = {name: value.copy() for name, value in model.params.items()}
        for value in model.params.values():
            value.flags.writeable = False
        copies = ids.copy(), targets.copy()
        first = model.loss_and_grads(ids, targets)
        second = model.loss_and_grads(ids, targets)
        assert first[0] == second[0]
        for name, value in kept.items():
            np.testing.assert_array_equal(model.params[name], value)
            np.testing.assert_array_equal(first[1][name], second[1][name])
        assert (ids == copies[0]).all() and (targets == copies[1]).all()

    def test_refusals(self, rng):
        model, ids = Model(configs.single_layer), draw(rng, 2, 3)
        _, grads = model.loss_and_grads(ids, ids)
        kept = {name: grad.copy() for name, grad in grads.items()}
        narrow = {**grads, HEAD: grads[HEAD][:, :-1]}
        missing = {name: grad for name, grad in grads.items() if name != HEAD}
        for targets, options, kind, text in (
            (ids[:, :2], {}, ValueError, r"'targets' of shape \(2, 2\) does not fit 'ids' of shape \(2, 3\)"),
            (ids * 0 + 257, {}, IndexError, r"targets\[0, 0\] = 257"),
            (ids * 0 - 1, {}, IndexError, r"targets\[0, 0\] = -1"),
            (ids * 1.0, {}, TypeError, "'targets' must be int32 or int64"),
            (ids, {"reduction": "none"}, ValueError, "reduction='none' is not supported"),
            (ids, {"accumulate_into": missing}, ValueError, "'accumulate_into' has no lm_head.weight"),
            (ids, {"accumulate_into": 5}, TypeError, "'accumulate_into' must be a dict of arrays, got int"),
            (ids, {"accumulate_into": {**grads, HEAD: [1]}}, TypeError, r"\['lm_head.weight'\] must be a NumPy array"),
            (ids, {"accumulate_into": narrow}, ValueError, r"accumulate_into\['lm_head.weight'\] is float32 of shape"),
            (ids, {"accumulate_into": {**grads, "x": grads[HEAD]}}, ValueError, "has x, which is no parameter"),
        ):
            with pytest.raises(kind, match=text):
                model.loss_and_grads(ids, targets, **options)
        for name, grad in kept.items():
            np.testing.assert_array_equal(grads[name], grad)


class TestGenerate:
    def test_greedy_is_argmax_of_the_whole(self, model, rng):
        ids = draw(rng, 5).tolist()
        got = list(model.generate(ids, max_new_tokens=9))
        for _ in range(9):
            ids.append(int(model(np.array(ids))[-1].argmax()))
        assert got == ids[5:] and all(type(token) is int for token in got)

    def test_seeds(self, rng):
        model, ids = lively(configs.tiny), draw(rng, 4)
        draws = [list(model.generate(ids, 20, temperature=1.0, seed=seed)) for seed in (1, 1, 2)]
        assert draws[0] == draws[1] != draws[2]

    def test_narrow_choices_are_greedy(self, rng):
        model, ids = lively(configs.tiny), draw(rng, 4)
        greedy = list(model.generate(ids, 10))
        assert list(model.generate(ids, 10, temperature=2.0, top_k=1)) == greedy
        assert list(model.generate(ids, 10, temperature=2.0, top_p=1e-9)) == greedy

    def test_drawn_as_often_as_likely(self, rng):
        """Among the tokens that top_k and top_p leave, with the frequencies of the softmax."""
        from ckernels.models.sampling import _choose

        logits = np.log(np.array([0.05, 0.4, 0.2, 0.3, 0.05], np.float32))
        n = 4000
        for options, kept in (
            ((1.0, None, None), {0: 0.05, 1: 0.4, 2: 0.2, 3: 0.3, 4: 0.05}),
            ((1.0, 3, None), {1: 4 / 9, 2: 2 / 9, 3: 3 / 9}),
            ((1.0, None, 0.65), {1: 4 / 7, 3: 3 / 7}),
            ((0.5, 2, None), {1: 16 / 25, 3: 9 / 25}),
        ):
            drawn = [_choose(logits, *options, rng) for _ in range(n)]
            assert set(drawn) == set(kept)
            for token, p in kept.items():
                # Five standard deviations of a binomial count.
                assert abs(drawn.count(token) - n * p) < 5 * np.sqrt(n * p * (1 - p)), (options, token)

    def test_stops(self, rng):
        model, ids = lively(configs.tiny), draw(rng, 4)
        tokens = list(model.generate(ids, 10))
        stop = tokens[3]
        first = tokens.index(stop) + 1
        assert list(model.generate(ids, 10, eos_token_id=stop)) == tokens[:first]
        assert list(model.generate(ids, 10, eos_token_id=[stop, 256])) == tokens[: len(tokens[:first])]
        assert list(model.generate(ids, 0)) == []

    def test_refused_before_the_first_token(self):
        model = Model(configs.single_layer)
        for ids, options, kind, text in (
            ([], {}, ValueError, "at least one token"),
            ([[1], [2]], {}, ValueError, "more than one text"),
            ([999], {}, IndexError, "outside the vocabulary"),
            ([1], {"max_new_tokens": -1}, ValueError, "max_new_tokens=-1"),
            ([1], {"max_new_tokens": 1.5}, TypeError, "'max_new_tokens' must be an integer"),
            ([1], {"temperature": -1.0}, ValueError, "temperature=-1.0"),
            ([1], {"temperature": float("nan")}, ValueError, "temperature=nan"),
            ([1], {"temperature": "1"}, TypeError, "'temperature' must be a number"),
            ([1], {"top_k": 1.5}, TypeError, "'top_k' must be an integer"),
            ([1], {"top_p": "1"}, TypeError, "'top_p' must be a number"),
            ([1], {"seed": "a"}, TypeError, "'seed' is none"),
            ([1], {"seed": -1}, ValueError, "'seed' is none"),
            ([1], {"eos_token_id": "a"}, TypeError, "'eos_token_id' must be an integer or several"),
            ([[1], [2, 3]], {}, ValueError, "'ids' is a list of lists of different lengths"),
            ([1], {"top_k": 0}, ValueError, "top_k=0"),
            ([1], {"top_p": 0.0}, ValueError, "top_p=0.0"),
            ([1], {"top_p": 1.1}, ValueError, "top_p=1.1"),
        ):
            with pytest.raises(kind, match=text):
                model.generate(ids, **options)

    def test_nan_is_not_drawn_from(self):
        model = Model(configs.single_layer)
        model.params[HEAD][7] = np.nan
        with pytest.raises(ValueError, match="the logits hold NaN"):
            next(model.generate([1], temperature=1.0))
        assert next(model.generate([1])) == 7, "greedy: NaN wins, as in argmax"


class TestTrace:
    def test_names_shapes_and_values_are_those_of_transformers(self, model, rng):
        pytest.importorskip("torch", reason=NO_TORCH)
        from ckernels.parity import exact
        from ckernels.parity.trace import trace_torch

        ids, targets = draw(rng, 2, 9), draw(rng, 2, 9, ignored=3)
        trace = model.trace(ids, targets)
        theirs = trace_torch(peer_of(model), ids, targets).arrays
        truth = exact.model(model.config, model.params, ids, targets)
        truth = truth.stages | {f"d_{name}": grad for name, grad in truth.grads.items()}
        assert trace.arrays.keys() == truth.keys()
        assert theirs.keys() - trace.arrays.keys() <= {"d_loss"}
        for name, value in trace.arrays.items():
            if name == "loss" or name.endswith("scores"):  # hidden scores differ by convention; probs show the mask
                continue
            assert_parity(value, truth[name], theirs[name], name=name)

    def test_capture_changes_no_bit(self, model, rng):
        ids, targets = draw(rng, 2, 9), draw(rng, 2, 9, ignored=3)
        trace = model.trace(ids, targets)
        loss, grads = model.loss_and_grads(ids, targets)
        assert trace.arrays["loss"] == np.float32(loss)
        np.testing.assert_array_equal(trace.arrays["logits"], model(ids))
        for name, grad in grads.items():
            np.testing.assert_array_equal(trace.arrays[f"d_{name}"], grad)
        np.testing.assert_array_equal(trace.inputs["ids"], ids)
        np.testing.assert_array_equal(trace.inputs["targets"], targets)

    def test_without_targets(self, model, rng):
        ids = draw(rng, 9)
        trace = model.trace(ids)
        assert not any("d_" in name for name in trace.arrays) and "loss" not in trace.arrays
        np.testing.assert_array_equal(trace.arrays["logits"][0], model(ids))
        last = model.config.num_hidden_layers - 1
        assert trace.arrays[f"layers.{last}.output"].shape == (1, 9, model.config.hidden_size)


class TestSmolLM2:
    """The real model decides in which order llama files hold the rows of q and k, and has 30 layers for bits to differ."""

    def test_bits_do_not_depend_on_threads_chunks_or_batch(self, rng):
        model = ck.models.load(fetch("smollm2-135m", progress=False))
        ids = draw(rng, 3, 19, vocab=model.config.vocab_size)
        ck.set_num_threads(1)
        whole = model(ids)
        np.testing.assert_array_equal(model(ids[1]), whole[1])  # alone
        for n in (2, 3, 7):
            ck.set_num_threads(n)
            np.testing.assert_array_equal(model(ids[:, :11]), whole[:, :11])
            cache = model.new_cache(19, batch=3)
            for begin, end in zip((0, 5, 12, *range(13, 19)), (5, 12, *range(13, 20)), strict=True):
                np.testing.assert_array_equal(model(ids[:, begin:end], cache=cache), whole[:, begin:end])

    def test_bits_of_a_training_step_do_not_depend_on_threads(self, rng):
        model = ck.models.load(fetch("smollm2-135m", progress=False))
        ids = draw(rng, 2, 9, vocab=model.config.vocab_size)
        found = set()
        for n in (1, 2, 3, 7):
            ck.set_num_threads(n)
            loss, grads = model.loss_and_grads(ids[:, :-1], ids[:, 1:])
            digest = hashlib.sha1(np.float64(loss).tobytes(), usedforsecurity=False)
            for grad in grads.values():
                digest.update(grad)
            found.add(digest.hexdigest())
        assert len(found) == 1

    def test_only_the_order_we_read_is_a_language_model(self):
        path = fetch("smollm2-135m", progress=False)
        config, params, _ = read_gguf(path)
        text = np.array(Tokenizer.from_gguf(path).encode(topics["assignment"])[:256])
        targets = np.append(text[1:], -100)

        def loss():
            model = Model(config, params)
            logits = model(text)
            return float(ck.cross_entropy(logits, targets))

        right = loss()
        for name, value in params.items():  # back to the order of the file
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                halves = value.reshape(-1, 2, config.head_dim // 2, config.hidden_size)
                params[name] = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(value.shape)
        # transformers gives 3.27 and 5.78 on this text.
        assert right < 3.5 and loss() > 5
