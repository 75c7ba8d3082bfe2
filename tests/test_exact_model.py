"""The exact side is right: a second implementation, complex steps, finite differences, patched transformers.

Everything here is float64 against float64, so there is no peer. The budget is the textbook bound of a chain of sums: as
many roundings of one float64 ulp as there are terms on the way, relative to the largest value (or, for a gradient along
a direction, to the product of the norms).
"""

import contextlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ckernels.parity import exact  # noqa: E402

# Every extent is its own: B, T, C, H, G, D, F, V. Heads are wider than C / H, and G divides H three times.
B, T = 2, 5
CONFIG = dict(
    num_hidden_layers=2, hidden_size=24, num_attention_heads=6, num_key_value_heads=2, head_dim=8, intermediate_size=37,
    vocab_size=31, rms_norm_eps=1e-2, rope_theta=500.0, hidden_act="silu", tie_word_embeddings=False,
)  # fmt: skip
CHAIN = 2 * (4 * 24 + 2 * 8 + 48 + T + 37) + 24 + 31
EPS = np.finfo(np.float64).eps


def parameters(seed=0, *, tied=False, bias=False, **changes):
    """Random parameters under their Hugging Face names; norm weights far from one, and from zero."""
    c = CONFIG | changes
    rng = np.random.default_rng(seed)
    C, H, G, D, F = (c[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
                                    "intermediate_size"))  # fmt: skip
    sizes = {"self_attn.q_proj": (H * D, C), "self_attn.k_proj": (G * D, C), "self_attn.v_proj": (G * D, C),
             "self_attn.o_proj": (C, H * D), "mlp.gate_proj": (F, C), "mlp.up_proj": (F, C),
             "mlp.down_proj": (C, F)}  # fmt: skip
    params = {"model.embed_tokens.weight": rng.standard_normal((c["vocab_size"], C))}
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        for name, size in sizes.items():
            params[f"{at}{name}.weight"] = rng.standard_normal(size) * 1.5 / size[1] ** 0.5
            if bias:
                params[f"{at}{name}.bias"] = rng.standard_normal(size[0])
        for name in ("input_layernorm", "post_attention_layernorm"):
            params[f"{at}{name}.weight"] = rng.uniform(0.4, 2.0, C) * rng.choice([-1, 1], C)
    params["model.norm.weight"] = rng.uniform(0.4, 2.0, C)
    if not tied:
        params["lm_head.weight"] = rng.standard_normal((c["vocab_size"], C)) / C**0.5
    return params


def batch(seed=0):
    """Ids and targets; one id appears twice in a row, and two targets are ignored."""
    rng = np.random.default_rng(seed + 1000)
    ids = rng.integers(0, CONFIG["vocab_size"], (B, T))
    ids[0, 1] = ids[0, 0]
    targets = rng.integers(0, CONFIG["vocab_size"], (B, T))
    targets[0, 3] = targets[1, 0] = -100
    return ids, targets


# --- a second opinion: loops over tokens and heads in NumPy, in complex numbers -------------------------------------


def numpy_loss(params, ids, targets, bump=None, h=1e-30):
    """The loss, one head and one token at a time. Stages and parameters named in `bump` are moved by ``i·h·direction``.

    For an analytic function ``Im f(x + i h v) / h`` is the derivative along v without any cancellation.
    """
    bump = {} if bump is None else bump
    stages = {}
    C, H, G, D = 24, 6, 2, 8

    def put(name, value):
        stages[name] = value + 1j * h * bump[name] if name in bump else value
        return stages[name]

    def weight(name):
        return params[name] + 1j * h * bump[name] if name in bump else params[name]

    def norm(x, name):
        out = np.empty_like(x)
        for b in range(B):
            for t in range(T):
                out[b, t] = weight(name) * x[b, t] * (np.sum(x[b, t] ** 2) / C + CONFIG["rms_norm_eps"]) ** -0.5
        return out

    def project(x, name, heads=None):
        y = np.einsum("btc,oc->bto", x, weight(name + ".weight"))
        return y if heads is None else np.stack([y[..., D * n : D * n + D] for n in range(heads)], axis=1)

    def rotate(x):
        out = np.empty_like(x)
        for t in range(T):
            for i in range(D // 2):
                turn = t / CONFIG["rope_theta"] ** (2 * i / D)
                a, b = x[:, :, t, i], x[:, :, t, i + D // 2]
                out[:, :, t, i] = a * np.cos(turn) - b * np.sin(turn)
                out[:, :, t, i + D // 2] = a * np.sin(turn) + b * np.cos(turn)
        return out

    x = put("embedding", weight("model.embed_tokens.weight")[ids].astype(complex))
    for layer in range(2):
        s, at = f"layers.{layer}.", f"model.layers.{layer}."
        ln1 = put(s + "ln1", norm(x, at + "input_layernorm.weight"))
        q = put(s + "q", project(ln1, at + "self_attn.q_proj", H))
        k = put(s + "k", project(ln1, at + "self_attn.k_proj", G))
        v = put(s + "v", project(ln1, at + "self_attn.v_proj", G))
        q, k = put(s + "q_rope", rotate(q)), put(s + "k_rope", rotate(k))
        scores = put(s + "scores", np.stack([q[:, n] @ k[:, n // 3].swapaxes(1, 2) for n in range(H)], 1) * D**-0.5)
        probs = np.zeros_like(scores)
        for t in range(T):
            e = np.exp(scores[:, :, t, : t + 1])
            probs[:, :, t, : t + 1] = e / e.sum(-1, keepdims=True)
        probs = put(s + "probs", probs)
        attn = put(s + "attn", np.stack([probs[:, n] @ v[:, n // 3] for n in range(H)], 1))
        proj = put(s + "proj", project(np.concatenate([attn[:, n] for n in range(H)], -1), at + "self_attn.o_proj"))
        mid = put(s + "residual1", x + proj)
        ln2 = put(s + "ln2", norm(mid, at + "post_attention_layernorm.weight"))
        gate, up = put(s + "gate", project(ln2, at + "mlp.gate_proj")), put(s + "up", project(ln2, at + "mlp.up_proj"))
        down = put(s + "down", project(put(s + "act", gate * up / (1 + np.exp(-gate))), at + "mlp.down_proj"))
        x = put(s + "output", mid + down)
    final = put("final_norm", norm(x, "model.norm.weight"))
    logits = put("logits", project(final, "lm_head"))
    rows = [(b, t) for b in range(B) for t in range(T) if targets[b, t] >= 0]
    loss = sum(np.log(np.exp(logits[r]).sum()) - logits[r][targets[r]] for r in rows) / len(rows)
    return loss, stages


@pytest.fixture(scope="module")
def case():
    params, (ids, targets) = parameters(), batch()
    return params, ids, targets, exact.model(CONFIG, params, ids, targets)


def assert_close(got, want, scale=None, terms=CHAIN):
    """Equal up to `terms` roundings of the largest value."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape and np.isfinite(want).all()
    scale = np.abs(want).max() if scale is None else scale
    worst = np.abs(got - want).max()
    assert worst <= terms * EPS * scale, f"off by {worst:.3g}, {worst / (EPS * scale):.3g} ulp of the largest value"


def test_every_stage_equals_a_second_implementation(case):
    params, ids, targets, run = case
    loss, stages = numpy_loss(params, ids, targets)
    names = [name for name in run.stages if name.split(".")[-1][:2] != "d_"]
    assert names == [*stages, "loss"]
    for name, value in stages.items():
        assert_close(run.stages[name], value.real)
    assert_close(run.stages["loss"], loss.real)


def test_every_gradient_equals_its_complex_step(case):
    params, ids, targets, run = case
    rng = np.random.default_rng(7)
    gradients = {name: run.stages[exact.d_name(name)] for name in run.stages
                 if name != "loss" and name.split(".")[-1][:2] != "d_"}  # fmt: skip
    gradients |= run.grads
    assert len(gradients) == 3 + 2 * len(exact.LAYER_STAGES) + len(params)
    for name, gradient in gradients.items():
        direction = rng.standard_normal(gradient.shape)
        step = numpy_loss(params, ids, targets, {name: direction})[0].imag / 1e-30
        scale = np.linalg.norm(gradient) * np.linalg.norm(direction)
        assert np.any(gradient), name
        assert_close((gradient * direction).sum(), step, scale)


def test_gradients_equal_finite_differences(case):
    params, ids, targets, run = case
    rng = np.random.default_rng(8)
    for name, gradient in run.grads.items():
        direction = rng.standard_normal(gradient.shape) / gradient.size**0.5

        def difference(h, name=name, direction=direction):
            ends = [params | {name: params[name] + side * h * direction} for side in (1, -1)]
            up, down = (float(exact.model(CONFIG, end, ids, targets).stages["loss"]) for end in ends)
            return (up - down) / (2 * h)

        coarse, fine = difference(2e-3), difference(1e-3)
        # The truncation error falls by four, so it is a third of the change; Richardson takes that third out.
        allowed = abs(coarse - fine) / 3 + 2 * CHAIN * EPS * abs(run.stages["loss"]) / 1e-3
        assert abs((4 * fine - coarse) / 3 - (gradient * direction).sum()) <= allowed, name


# --- transformers, made to compute in float64 -----------------------------------------------------------------------


def hugging_face(params, dtype, **changes):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(**(CONFIG | changes), max_position_embeddings=64, attention_dropout=0.0)
    module = transformers.LlamaForCausalLM(config).to(dtype).eval()
    state = {name: torch.tensor(value).to(dtype) for name, value in params.items()}
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    return module


@contextlib.contextmanager
def true_float64():
    """RMSNorm and rope tables of transformers in float64, which it computes in float32 otherwise."""
    from transformers.models.llama import modeling_llama as llama

    def norm(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def tables(self, x, position_ids):
        dim = self.config.head_dim
        frequency = 1.0 / self.config.rope_parameters["rope_theta"] ** (torch.arange(0, dim, 2).double() / dim)
        angles = position_ids[..., None].double() * frequency
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama.LlamaRMSNorm, "forward", norm)
        patch.setattr(llama.LlamaRotaryEmbedding, "forward", tables)
        yield


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_transformers_patched_to_float64_agree_in_every_stage_and_gradient(tied, bias):
    from ckernels.parity.trace import trace_torch

    changes = dict(tie_word_embeddings=tied, attention_bias=bias, mlp_bias=bias)
    params, (ids, targets) = parameters(3, tied=tied, bias=bias), batch(3)
    module = hugging_face(params, torch.float64, **changes)
    with true_float64():
        trace = trace_torch(module, ids, targets)
    run = exact.model(CONFIG | changes, params, ids, targets)
    want = run.stages | {f"d_{name}": grad for name, grad in run.grads.items()}
    assert set(trace.arrays) == set(want)
    for name, value in want.items():
        assert_close(trace.arrays[name], value, terms=4 * CHAIN)


def test_transformers_as_they_are_in_float64_are_not_exact(case):
    params, ids, targets, run = case
    with torch.no_grad():
        logits = hugging_face(params, torch.float64)(torch.tensor(ids)).logits.numpy()
    off = np.abs(logits - run.stages["logits"]).max() / np.abs(logits).max()
    assert off > 1e4 * CHAIN * EPS, "if transformers are exact in float64 now, say so in the documentation"


# --- the rest of the contract ---------------------------------------------------------------------------------------


def test_a_layer_alone_is_the_layer_of_the_model(case):
    params, ids, targets, run = case
    at = "model.layers.1."
    own = {name.removeprefix(at): value for name, value in params.items() if name.startswith(at)}
    alone = exact.layer(CONFIG, own, run.stages["layers.0.output"], dy=run.stages["layers.1.d_output"])
    for name, value in alone.stages.items():
        assert_close(value, run.stages[f"layers.1.{name}"])
    for name, value in alone.grads.items():
        assert_close(value, run.grads[at + name])
    assert_close(alone.dx, run.stages["layers.0.d_output"])


def test_logits_alone_are_the_logits_of_the_whole_run(case):
    params, ids, _, run = case
    finished = []
    alone = exact.logits(CONFIG, params, [ids[0], ids[1, :2], ids[1]], progress=finished.append)
    assert [rows.shape for rows in alone] == [(T, 31), (2, 31), (T, 31)] and finished == [1, 2]
    assert_close(alone[0], run.stages["logits"][0])
    assert_close(alone[1], run.stages["logits"][1, :2])
    assert_close(alone[2], run.stages["logits"][1])


def test_positions_shift_the_tables_and_nothing_else():
    params = {name.removeprefix("model.layers.0."): value for name, value in parameters().items() if ".0." in name}
    x = np.random.default_rng(5).standard_normal((B, T, 24))
    plain = exact.layer(CONFIG, params, x)
    same = exact.layer(CONFIG, params, x, positions=np.tile(np.arange(T), (B, 1)))
    moved = exact.layer(CONFIG, params, x, positions=np.arange(T) + 4095)
    np.testing.assert_array_equal(plain.stages["output"], same.stages["output"])
    # Rope is relative: rotated queries differ, scores do not, beyond the rounding of angles of 4095 radians.
    assert np.abs(plain.stages["q_rope"] - moved.stages["q_rope"]).max() > 0.1
    assert_close(moved.stages["scores"], plain.stages["scores"], terms=CHAIN + 4100)
    mixed = exact.layer(CONFIG, params, x, positions=np.stack([np.arange(T), np.arange(T) + 4095]))
    np.testing.assert_array_equal(mixed.stages["q_rope"][0], plain.stages["q_rope"][0])
    np.testing.assert_array_equal(mixed.stages["q_rope"][1], moved.stages["q_rope"][1])


def test_the_dtype_is_the_callers():
    params, (ids, targets) = parameters(), batch()
    run = exact.model(CONFIG, params, ids, targets, dtype="float32")
    assert {array.dtype for array in (*run.stages.values(), *run.grads.values())} == {np.dtype(np.float32)}
    params = {name: torch.tensor(value) for name, value in params.items()}
    again = exact.model(CONFIG, params, ids, targets, dtype=torch.float64)
    assert again.stages["logits"].dtype == np.float64
    assert not any(tensor.requires_grad for tensor in params.values())


def test_ignored_targets_take_no_part_and_all_ignored_is_nan_with_zero_gradient():
    params, (ids, targets) = parameters(), batch()
    run = exact.model(CONFIG, params, ids, targets)
    assert not run.stages["d_logits"][0, 3].any() and not run.stages["d_logits"][1, 0].any()
    assert run.stages["d_logits"][0, 2].any()
    summed = exact.model(CONFIG, params, ids, targets, reduction="sum")
    assert_close(summed.stages["loss"] / 8, run.stages["loss"])
    nothing = exact.model(CONFIG, params, ids, np.full_like(targets, -100))
    assert np.isnan(nothing.stages["loss"])
    assert not any(grad.any() for grad in nothing.grads.values())


def test_a_token_sees_nothing_that_comes_after_it():
    params, (ids, _) = parameters(), batch()
    changed = ids.copy()
    changed[:, 3:] = (changed[:, 3:] + 1) % CONFIG["vocab_size"]
    before, after = exact.model(CONFIG, params, ids).stages, exact.model(CONFIG, params, changed).stages
    np.testing.assert_array_equal(before["logits"][:, :3], after["logits"][:, :3])
    assert (before["logits"][:, 3:] != after["logits"][:, 3:]).all()
    assert (before["layers.0.probs"][..., np.triu_indices(T, 1)[0], np.triu_indices(T, 1)[1]] == 0).all()


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(hidden_act="tan"), "hidden_act='tan' is not known"),
        (dict(rope_scaling={"rope_type": "yarn", "factor": 2.0}), "rope of type 'yarn'"),
        (dict(rope_parameters={"rope_type": "llama3", "rope_theta": 1e4}), "rope of type 'llama3'"),
        (dict(rms_norm_eps=None), "no 'rms_norm_eps'"),
        (dict(num_attention_heads=5, num_key_value_heads=2), "num_attention_heads=5 is not a multiple"),
    ],
)
def test_a_config_that_asks_for_other_arithmetic_is_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        exact.model(CONFIG | changes, parameters(), batch()[0])


def test_bad_arguments_are_named():
    params, (ids, targets) = parameters(), batch()
    short = {name: value for name, value in params.items() if "down_proj" not in name}
    with pytest.raises(ValueError, match="'model.layers.0.mlp.down_proj.weight' is missing"):
        exact.logits(CONFIG, short, ids)
    with pytest.raises(ValueError, match="'int32' is not a floating dtype"):
        exact.logits(CONFIG, params, ids, dtype="int32")
    with pytest.raises(ValueError, match=r"'positions' of shape \(4,\) does not fit"):
        own = {name.removeprefix("model.layers.0."): value for name, value in params.items() if ".0." in name}
        exact.layer(CONFIG, own, np.zeros((B, T, 24)), positions=np.arange(4))
    with pytest.raises(ValueError, match="'reduction' is 'none'"):
        exact.model(CONFIG, params, ids, targets, reduction="none")
    with pytest.raises(ValueError, match=r"'targets' of shape \(2, 4\) does not fit"):
        exact.model(CONFIG, params, ids, targets[:, :4])
