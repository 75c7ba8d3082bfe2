"""The decoder layer: every stage, every gradient, and one set of bits however the tokens come."""
import numpy as np
import pytest

import ckernels as ck
from ckernels.nn.decoder import NAMES, STAGES

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
    assert tuple(stages) == STAGES
    for stage in STAGES:
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
    for weight in NAMES:
        assert_parity(grads[weight], true.grads[weight], peer.grads[weight], name=weight)
    for stage in STAGES:
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
    assert all(plain[1][n].tobytes() == seen[1][n].tobytes() for n in NAMES)


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
    for n in NAMES:
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
        assert all(not grads[n].any() for n in NAMES)


def refused(layer, x, cache, lengths, counts=None, scale=0.25, rows=8):
    """The error of a decode by ``_ck`` itself; asserts that storage and buffers are as they were."""
    C, F, H, G, D = CONFIGS["gqa"]
    cos, sin = (part[:rows] for part in layer.table(rows))
    ln1 = np.full(x.shape, 7, "f4")
    with pytest.raises((IndexError, ValueError)) as caught:
        ck._ck.decoder_fwd(None, *cache.storage.parts, None, ln1, *[None] * 18, x, *layer._weights(), cos, sin,
                           None, np.array(lengths), counts, None, None, None, 0, 0, 1e-5, scale)
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
    y = ck._ck.decoder_fwd(None, *cache.storage.parts, *[None] * 20, x, *layer._weights(), cos, sin, None,
                           np.zeros(2, np.int64), np.array([3, 0]), None, None, None, 0, 0, 1e-5, 0.25)[0]
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
        ck._ck.decoder_fwd(None, *[None] * 26, empty(4, 1, 0), empty(0), empty(H, D, 0), empty(H, D, 0),
                           empty(H, D, 0), empty(0, H, D), empty(0), empty(3, 0), empty(3, 0), empty(0, 3),
                           empty(1, 0), empty(1, 0), *[None] * 6, 0, 0, 1e-5, 1.0)


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
