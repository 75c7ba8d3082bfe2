"""The decoder layer: every stage, every gradient, and one set of bits however the tokens come."""
import dataclasses

import ml_dtypes
import numpy as np
import pytest

import ckernels as ck
from ckernels.nn.decoder import call
from ckernels.nn.parameters import layer_parameters

torch = pytest.importorskip("torch", reason="not measured: no PyTorch for this Python")

from ckernels.parity import exact  # noqa: E402
from ckernels.parity.compare import assert_parity  # noqa: E402

CONFIGS = {  # hidden, intermediate, heads, kv heads, head size
    "tiny": (64, 172, 2, 2, 32),
    "gqa": (48, 100, 6, 2, 16),
    "one kv head": (40, 56, 7, 1, 10),
    "wide heads": (24, 40, 3, 3, 20),
}


def make(rng, name):
    C, F, H, G, D = CONFIGS.get(name, name)
    config = ck.models.Config(hidden_size=C, intermediate_size=F, num_attention_heads=H, num_key_value_heads=G,
                              head_dim=D, num_hidden_layers=1, vocab_size=32, rms_norm_eps=1e-5)
    shapes = {"input_layernorm.weight": (C,), "self_attn.q_proj.weight": (H * D, C), "self_attn.k_proj.weight": (G * D, C),
              "self_attn.v_proj.weight": (G * D, C), "self_attn.o_proj.weight": (C, H * D),
              "post_attention_layernorm.weight": (C,), "mlp.gate_proj.weight": (F, C), "mlp.up_proj.weight": (F, C),
              "mlp.down_proj.weight": (C, F)}
    params = {n: (rng.uniform(0.5, 1.5, s) if len(s) == 1 else rng.standard_normal(s) / np.sqrt(s[1])).astype("f4")
              for n, s in shapes.items()}
    return config, params, ck.nn.DecoderLayer(config, params)


# What layers of other families have, alone and together; every field of a Config that a layer looks at.
OPTIONS = {
    "biases": dict(attention_bias=True, mlp_bias=True),
    "biases of q, k and v": dict(attention_bias=True, attention_out_bias=False, hidden_act="gelu"),
    "norms of q and k": dict(qk_norm=True, hidden_act="quick_gelu"),
    "offset norms of q and k": dict(qk_norm=True, rms_norm_offset=1.0, query_pre_attn_scalar=40.0),
    "norms behind": dict(post_norms=True, rms_norm_offset=1.0, hidden_act="gelu_pytorch_tanh"),
    "layer norm": dict(norm_type="layer_norm", norm_bias=True),
    "layer norm without bias": dict(norm_type="layer_norm", hidden_act="relu"),
    "plain mlp": dict(gated_mlp=False, hidden_act="gelu_new", mlp_bias=True, learned_positions=True),
    "plain relu": dict(gated_mlp=False, hidden_act="relu"),
    "window": dict(sliding_window=5),
    "cap": dict(attn_logit_softcapping=3.0),
    "sinks": dict(sinks=True),
    "partial": dict(partial_rotary_factor=0.5),
    "parallel": dict(use_parallel_residual=True),
    "one norm": dict(use_parallel_residual=True, shared_norm=True),
    "all": dict(attention_bias=True, mlp_bias=True, qk_norm=True, post_norms=True, sinks=True, sliding_window=7,
                attn_logit_softcapping=5.0, rms_norm_offset=1.0, use_parallel_residual=True, partial_rotary_factor=0.25),
}  # fmt: skip


def make_with(rng, options, dtype="f4"):
    config = ck.models.Config(hidden_size=48, intermediate_size=100, num_attention_heads=6, num_key_value_heads=2,
                              head_dim=16, num_hidden_layers=1, vocab_size=32, rms_norm_eps=1e-5, **options)
    params = {}
    for name, (_, shape, _) in layer_parameters(config).items():
        value = rng.standard_normal(shape) / np.sqrt(shape[-1] if len(shape) > 1 else 1)
        value = rng.uniform(0.5, 1.5, shape) if name.endswith("norm.weight") else value
        params[name] = value.astype("f4" if name.endswith("sinks") else dtype)
    return config, params, ck.nn.DecoderLayer(config, params)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_matches_float64(rng, name):
    """Every stage and gradient; the bits with and without capture; prefill, chunks and decode."""
    config, params, layer = make_with(rng, OPTIONS[name])
    x, dy = sequence(rng, config), sequence(rng, config)
    stages, slopes = {}, {}
    y, ctx = layer.forward(x, stages=stages)
    dx, grads = layer.backward(dy, ctx, stages=slopes)
    true = exact.layer(config, params, x, dy=dy)
    peer = exact.layer(config, params, x, dy=dy, dtype="float32")
    assert tuple(stages) == layer.stages == tuple(stage for stage in true.stages if not stage.startswith("d_"))
    for stage, value in (stages | slopes).items():
        if stage != "d_output":
            assert_parity(value, true.stages[stage], peer.stages[stage], name=stage)
    assert_parity(dx, true.dx, peer.dx, name="dx")
    assert grads.keys() == true.grads.keys() == params.keys()
    few = [weight for weight in params if params[weight].size <= 16]
    for weight in params.keys() - set(few):
        assert_parity(grads[weight], true.grads[weight], peer.grads[weight], name=weight)
    check_few(rng, config, params, layer, few)
    plain, ctx = layer.forward(x)
    seen = layer.backward(dy, ctx)
    assert plain.tobytes() == y.tobytes() == layer.forward(x, keep=False)[0].tobytes()
    assert seen[0].tobytes() == dx.tobytes() and all(seen[1][n].tobytes() == grads[n].tobytes() for n in params)
    cache = ck.KVCache(2, 16, 20, batch=2)
    parts = [layer.decode(np.ascontiguousarray(x[:, a:b]), cache) for a, b in ((0, 6), (6, 7), (7, 17))]
    assert np.concatenate(parts, 1).tobytes() == y.tobytes()


def check_few(rng, config, params, layer, names):
    """Gradients of few numbers, six draws of them together: luck decides on a handful."""
    found = []
    for _ in range(6 if names else 0):
        x, dy = sequence(rng, config), sequence(rng, config)
        runs = [layer.backward(dy, layer.forward(x)[1])[1]]
        runs += [exact.layer(config, params, x, dy=dy, dtype=dtype).grads for dtype in ("float64", "float32")]
        found.append([np.concatenate([run[weight].ravel() for weight in names]) for run in runs])
    if found:
        assert_parity(*(np.concatenate(parts) for parts in zip(*found, strict=True)), name=" and ".join(names))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["biases", "offset norms of q and k", "layer norm", "all"])
def test_16_bits_match_float64(rng, name, dtype):
    """The equations, rounded at every step by PyTorch, are the peer; their norms are rounded inside as well."""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    config, params, layer = make_with(rng, OPTIONS[name], kind)
    x, dy = sequence(rng, config).astype(kind), sequence(rng, config).astype(kind)
    stages, slopes = {}, {}
    y, ctx = layer.forward(x, stages=stages)
    dx, grads = layer.backward(dy, ctx, stages=slopes)
    assert y.dtype == dx.dtype == kind
    true = exact.layer(config, params, x, dy=dy)
    peer = exact.layer(config, params, x, dy=dy, dtype=dtype)
    for stage, value in (stages | slopes).items():
        if stage != "d_output":
            assert_parity(value.astype(kind), true.stages[stage], peer.stages[stage].astype(kind), name=stage)
    for weight in params:
        assert grads[weight].dtype == params[weight].dtype
        wide = peer.grads[weight].astype(grads[weight].dtype)
        assert_parity(grads[weight], true.grads[weight], wide, name=weight)
    for quant in None, "int8":
        caches = [ck.KVCache(2, 16, 20, batch=2, dtype=dtype, quant=quant, group=16) for _ in range(2)]
        whole = layer.decode(x, caches[0])
        parts = [layer.decode(np.ascontiguousarray(x[:, a:b]), caches[1]) for a, b in ((0, 6), (6, 7), (7, 17))]
        assert np.concatenate(parts, 1).tobytes() == whole.tobytes()
        assert quant or whole.tobytes() == y.tobytes()


def test_layers_differ_by_their_index(rng):
    """A window by layer, and a rotary base of its own with it."""
    config, params, _ = make_with(rng, {})
    config = dataclasses.replace(config, num_hidden_layers=2, sliding_window=3, rope_local_base_freq=50.0,
                                 layer_types=("full_attention", "sliding_attention"))
    x = sequence(rng, config)
    for index in 0, 1:
        y, _ = ck.nn.DecoderLayer(config, params, index).forward(x)
        true, peer = (exact.layer(config, params, x, index=index, dtype=d) for d in ("float64", "float32"))
        assert_parity(y, true.stages["output"], peer.stages["output"])


def sequence(rng, config, B=2, T=17):
    return rng.standard_normal((B, T, config.hidden_size)).astype("f4")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("where", ["from 0", "anywhere"])
def test_every_stage_matches_float64(isa, rng, name, where):
    config, params, layer = make(rng, name)
    x = sequence(rng, config)
    positions = None if where == "from 0" else rng.integers(0, 4096, x.shape[:2])
    stages = {}
    layer.forward(x, positions, stages=stages)
    true = exact.layer(config, params, x, positions=positions).stages
    peer = exact.layer(config, params, x, positions=positions, dtype="float32").stages
    assert tuple(stages) == layer.stages == exact.LAYER_STAGES
    for stage in layer.stages:
        assert_parity(stages[stage], true[stage], peer[stage], name=stage)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_gradient_matches_float64(isa, rng, name):
    config, params, layer = make(rng, name)
    x, dy = sequence(rng, config), sequence(rng, config)
    stages = {}
    dx, grads = layer.backward(dy, layer.forward(x)[1], stages=stages)
    true = exact.layer(config, params, x, dy=dy)
    peer = exact.layer(config, params, x, dy=dy, dtype="float32")
    assert_parity(dx, true.dx, peer.dx, name="dx")
    for weight in params:
        assert_parity(grads[weight], true.grads[weight], peer.grads[weight], name=weight)
    for stage in layer.stages:
        if stage != "output":
            assert_parity(stages[f"d_{stage}"], true.stages[f"d_{stage}"], peer.stages[f"d_{stage}"], name=f"d_{stage}")


def test_capture_changes_no_bit(isa, rng):
    config, _, layer = make(rng, "gqa")
    x, dy = sequence(rng, config), sequence(rng, config)
    y, ctx = layer.forward(x)
    assert layer.forward(x, stages={})[0].tobytes() == y.tobytes()
    assert layer.forward(x, keep=False)[0].tobytes() == y.tobytes()
    plain, seen = layer.backward(dy, ctx), layer.backward(dy, ctx, stages={})
    assert plain[0].tobytes() == seen[0].tobytes()
    assert all(plain[1][n].tobytes() == seen[1][n].tobytes() for n in layer.params)


def test_bits_do_not_depend_on_threads(isa, rng):
    config, _, layer = make(rng, "tiny")
    x, dy = sequence(rng, config, B=3, T=65), sequence(rng, config, B=3, T=65)

    def everything():
        y, ctx = layer.forward(x)
        dx, grads = layer.backward(dy, ctx)
        return [a.tobytes() for a in (y, dx, *grads.values())]

    ck.set_num_threads(1)
    alone = everything()
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything() == alone


@pytest.mark.parametrize("name", CONFIGS)
def test_prefill_chunks_and_decode_are_forward_bit_for_bit(isa, rng, name):
    config, _, layer = make(rng, name)
    x = sequence(rng, config, B=2, T=37)
    whole = layer.forward(x)[0]
    for chunks in ([37], [16, 21], [1] * 37, [5, 1, 30, 1]):
        cache = ck.KVCache(config.num_key_value_heads, config.head_dim, 40, batch=2)
        parts, at = [], 0
        for n in chunks:
            parts.append(layer.decode(x[:, at:at + n], cache))
            at += n
        assert np.concatenate(parts, 1).tobytes() == whole.tobytes(), chunks


def test_items_of_different_length_decode_as_if_alone(isa, rng):
    config, _, layer = make(rng, "gqa")
    x = sequence(rng, config, B=3, T=12)
    lengths = [12, 3, 7]
    cache = ck.KVCache(config.num_key_value_heads, config.head_dim, 16, batch=3)
    layer.decode(x, cache, counts=lengths)
    new = sequence(rng, config, B=3, T=1)
    together = layer.decode(new, cache)
    assert cache.lengths.tolist() == [13, 4, 8]
    for b, n in enumerate(lengths):
        alone = layer.forward(np.concatenate([x[b:b + 1, :n], new[b:b + 1]], 1))[0][0, -1]
        assert together[b, 0].tobytes() == alone.tobytes()


def test_an_item_is_the_same_alone_and_in_a_batch(isa, rng):
    config, _, layer = make(rng, "tiny")
    x = sequence(rng, config, B=5)
    y = layer.forward(x)[0]
    assert layer.forward(x[3:4])[0].tobytes() == y[3].tobytes()


def test_gradients_accumulate(isa, rng):
    config, _, layer = make(rng, "tiny")
    x, dy = sequence(rng, config), sequence(rng, config)
    ctx = layer.forward(x)[1]
    once = {n: g.copy() for n, g in layer.backward(dy, ctx)[1].items()}
    twice = layer.backward(dy, ctx, accumulate_into={n: g.copy() for n, g in once.items()})[1]
    for n in layer.params:
        np.testing.assert_array_equal(twice[n], 2 * once[n])
    only = {"mlp.up_proj.weight": once["mlp.up_proj.weight"].copy()}
    mixed = layer.backward(dy, ctx, accumulate_into=only)[1]
    assert mixed["mlp.up_proj.weight"] is only["mlp.up_proj.weight"]
    np.testing.assert_array_equal(mixed["mlp.up_proj.weight"], 2 * once["mlp.up_proj.weight"])
    np.testing.assert_array_equal(mixed["mlp.down_proj.weight"], once["mlp.down_proj.weight"])


def test_what_an_optimizer_writes_is_seen(rng):
    config, params, layer = make(rng, "tiny")
    x = sequence(rng, config)
    before = layer.forward(x)[0].tobytes()
    params["mlp.up_proj.weight"][...] *= 2
    assert layer.forward(x)[0].tobytes() != before


@pytest.mark.parametrize("B, T", [(0, 3), (2, 0), (1, 1)])
def test_small_and_empty_sequences(isa, rng, B, T):
    config, params, layer = make(rng, "gqa")
    x = sequence(rng, config, B=B, T=T)
    y, ctx = layer.forward(x)
    dx, grads = layer.backward(x, ctx)
    assert y.shape == dx.shape == x.shape
    if x.size:
        assert_parity(y, exact.layer(config, params, x).stages["output"], exact.layer(config, params, x,
                                                                                      dtype="float32").stages["output"])
    else:
        assert all(not grads[n].any() for n in layer.params)


def refused(layer, x, cache, lengths, counts=None, scale=0.25, rows=8, **more):
    """The error of a decode by ``_ck`` itself; asserts that storage and buffers are as they were."""
    C, F, H, G, D = CONFIGS["gqa"]
    cos, sin = (part[:rows] for part in layer.table(rows))
    ln1 = np.full(x.shape, 7, "f4")
    with pytest.raises((IndexError, ValueError)) as caught:
        call(ck._ck.decoder_fwd, k_codes=cache.storage.parts[0], v_codes=cache.storage.parts[3], ln1=ln1, x=x,
             **layer._weights(), cos=cos, sin=sin, lengths=np.array(lengths), counts=counts, eps=1e-5, scale=scale, **more)
    assert (ln1 == 7).all() and (cache.raw["k"] == 7).all() and (cache.raw["v"] == 7).all()
    return str(caught.value)


def test_a_refused_decode_writes_nothing(rng):
    _, _, layer = make(rng, "gqa")
    cache, x = ck.KVCache(2, 16, 9, batch=2), np.zeros((2, 3, 48), "f4")
    cache.raw["k"][...] = cache.raw["v"][...] = 7
    assert "'scale' must be finite" in refused(layer, x, cache, [0, 0], scale=np.nan)
    assert "item 1 holds -1 tokens of 9" in refused(layer, x, cache, [0, -1])
    assert "item 0 holds 7 tokens of 9: 3 more do not fit" in refused(layer, x, cache, [7, 0])
    assert "'counts' holds 4 for item 1, which brings 3" in refused(layer, x, cache, [0, 0], np.array([1, 4]))
    assert "'positions' holds 8, and the table has 8 rows" in refused(layer, x, cache, [0, 6])
    assert "'window' must be a number of keys, or 0 for all, not -1" in refused(layer, x, cache, [0, 0], window=-1)
    assert "'softcap' must be finite and above 0" in refused(layer, x, cache, [0, 0], softcap=-1.0)
    assert "'activation' is no number of an MLP's: 6" in refused(layer, x, cache, [0, 0], activation=6)


@pytest.mark.parametrize("quant", [None, "int8", "int4", "int8_sym", "fp8_e4m3", "fp8_e5m2"])
def test_every_cache_gives_the_same_bits_whole_in_chunks_and_paged(isa, rng, quant):
    """A quantised cache holds the rounded tokens, however they come; the last of them, alone, sees the same."""
    config, _, layer = make(rng, (48, 100, 6, 2, 32))
    x = rng.standard_normal((2, 21, config.hidden_size)).astype("f4")
    G, D = config.num_key_value_heads, config.head_dim
    whole = layer.decode(x, ck.KVCache(G, D, 21, batch=2, quant=quant))
    pool = ck.PagedKVCache(G, D, 12, 4, quant=quant)
    caches = [ck.KVCache(G, D, 30, batch=2, quant=quant), pool.batch([pool.new(), pool.new()])]
    for cache in caches:
        for begin, end in ((0, 6), (6, 7), (7, 20), (20, 21)):
            y = layer.decode(np.ascontiguousarray(x[:, begin:end]), cache)
            assert y.tobytes() == np.ascontiguousarray(whole[:, begin:end]).tobytes()
    assert caches[1].lengths.tolist() == [21, 21] and pool.free_blocks == 0
    x[:, :1] = np.nan
    if quant is not None:
        with pytest.raises(ValueError, match=r"^DecoderLayer.decode\(\): 'k' holds NaN"):
            layer.decode(np.ascontiguousarray(x[:, :1]), caches[0])
    with pytest.raises(MemoryError, match=r"^DecoderLayer.decode\(\): 2 blocks are needed, 0 of 12 are free"):
        layer.decode(x, caches[1], counts=[4, 4])
    assert [cache.lengths.tolist() for cache in caches] == [[21, 21]] * 2


def test_caches_that_do_not_fit_the_layer_are_refused(rng):
    _, _, layer = make(rng, "gqa")
    x = np.zeros((1, 1, 48), "f4")
    with pytest.raises(ValueError, match=r"decode\(\): 'cache' is a ring, and the layer sees all tokens"):
        layer.decode(x, ck.KVCache(2, 16, 4, ring=True))
    with pytest.raises(ValueError, match=r"decode\(\): 'cache' holds float16, not float32"):
        layer.decode(x, ck.KVCache(2, 16, 4, dtype="float16"))


def test_padding_needs_no_row_of_the_table(rng):
    _, _, layer = make(rng, "gqa")
    cache, x = ck.KVCache(2, 16, 9, batch=2), rng.standard_normal((2, 5, 48)).astype("f4")
    cos, sin = (part[:3] for part in layer.table(3))
    y = call(ck._ck.decoder_fwd, k_codes=cache.storage.parts[0], v_codes=cache.storage.parts[3], x=x,
             **layer._weights(), cos=cos, sin=sin, lengths=np.zeros(2, np.int64), counts=np.array([3, 0]), eps=1e-5,
             scale=0.25)[0]
    assert y[0, :3].tobytes() == layer.forward(x[:1, :3])[0].tobytes()


def test_a_refused_backward_adds_nothing(rng, monkeypatch):
    config, params, layer = make(rng, "gqa")
    x = sequence(rng, config)
    _, ctx = layer.forward(x, np.arange(17))
    held = {name: np.full_like(a, 7) for name, a in params.items()}
    table = tuple(part[:16] for part in layer.table(17))
    monkeypatch.setattr(type(layer), "_angles", lambda *unused: table)
    with pytest.raises(IndexError, match=r"backward\(\): 'positions' holds 16, and the table has 16 rows"):
        layer.backward(x, ctx, accumulate_into=held)
    assert all((a == 7).all() for a in held.values())


def test_sizes_that_no_element_bounds_do_not_crash():
    H, D = 2**15, 2**45  # C = 0: four tokens of these heads are 2^64 bytes

    def empty(*shape):
        return np.empty(shape, "f4")

    with pytest.raises(MemoryError, match=r"forward\(\): no memory for its workspace"):
        call(ck._ck.decoder_fwd, x=empty(4, 1, 0), ln1_weight=empty(0), q_weight=empty(H, D, 0), k_weight=empty(H, D, 0),
             v_weight=empty(H, D, 0), o_weight=empty(0, H, D), ln2_weight=empty(0), gate_weight=empty(3, 0),
             up_weight=empty(3, 0), down_weight=empty(0, 3), cos=empty(1, 0), sin=empty(1, 0), eps=1e-5, scale=1.0)


def test_refusals_name_what_does_not_fit(rng):
    config, params, layer = make(rng, "gqa")
    with pytest.raises(ValueError, match=r"DecoderLayer\(\): 'params' misses mlp.up_proj.weight"):
        ck.nn.DecoderLayer(config, {n: a for n, a in params.items() if n != "mlp.up_proj.weight"})
    with pytest.raises(ValueError, match="has no place for lm_head"):
        ck.nn.DecoderLayer(config, params | {"lm_head": np.zeros(3, "f4")})
    with pytest.raises(ValueError, match=r"'self_attn.q_proj.weight' of shape \(3, 48\) does not fit \(96, 48\)"):
        ck.nn.DecoderLayer(config, params | {"self_attn.q_proj.weight": np.zeros((3, 48), "f4")})
    with pytest.raises(TypeError, match="'mlp.up_proj.weight' must be float32"):
        ck.nn.DecoderLayer(config, params | {"mlp.up_proj.weight": params["mlp.up_proj.weight"].astype("f8")})
    with pytest.raises(ValueError, match=r"forward\(\): 'x' of shape \(2, 5\) does not fit \[B, T, C\]"):
        layer.forward(np.zeros((2, 5), "f4"))
    with pytest.raises(TypeError, match="'x' must be float32"):
        layer.forward(np.zeros((1, 2, 48)))
    with pytest.raises(TypeError, match=r"forward\(\): 'x' must be a NumPy array"):
        layer.forward(None)
    with pytest.raises(MemoryError, match=r"forward\(\): no memory for the angles up to position 1152921504606846976"):
        layer.forward(np.zeros((1, 2, 48), "f4"), np.array([0, 2**60]))
    with pytest.raises(TypeError, match=r"DecoderLayer\(\): 'params' must be a dict"):
        ck.nn.DecoderLayer(config, None)
    with pytest.raises(TypeError, match=r"DecoderLayer\(\): 'config' must be a Config"):
        ck.nn.DecoderLayer(None, params)
    with pytest.raises(TypeError, match=r"decode\(\): 'cache' must be a KVCache"):
        layer.decode(np.zeros((1, 1, 48), "f4"), None)
    with pytest.raises(ValueError, match=r"decode\(\): 'cache' has 3 heads of 16 channels, the config 2 of 16"):
        layer.decode(np.zeros((1, 1, 48), "f4"), ck.KVCache(3, 16, 3))
    with pytest.raises(IndexError, match="'positions' holds -1"):
        layer.forward(np.zeros((1, 2, 48), "f4"), np.array([0, -1]))
    cache = ck.KVCache(2, 16, 3)
    with pytest.raises(ValueError, match="item 0 holds 0 tokens of 3: 4 more do not fit"):
        layer.decode(np.zeros((1, 4, 48), "f4"), cache)
    assert cache.lengths.tolist() == [0]
