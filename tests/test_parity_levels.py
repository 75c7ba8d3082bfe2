"""The levels of ``ck parity`` pass what is right, and name what is wrong.

Stand-ins take the place of the code under test: correct ones, computed by our equations in float32, and faulty ones.
Every fault must turn the level red at the stage where it sits, and everything before that stage must stay green.
"""

import contextlib

import numpy as np
import pytest

from ckernels.models import families
from ckernels.parity import Verdict, exact, forward, invariance, layer, levels, peer, probes, stages, train
from ckernels.parity.levels import Options

PER_LAYER = 17 + 17 + 1 + 9 + 2
OK = {Verdict.EXACT, Verdict.WITHIN_BUDGET}


@pytest.fixture
def torch():
    pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # sizes here are tiny: threads would only wait for one another
    yield torch
    torch.set_num_threads(before)


def failed(cases):
    return [case for case in cases if case.verdict not in OK]


# --- level 2: the layer ---------------------------------------------------------------------------------------------


class Layer:
    """A correct layer: our equations in float32, forward and backward, with the faults that a test asks for."""

    fault = staticmethod(contextlib.nullcontext)

    def __init__(self, config, params):
        self.config, self.params = config, params

    def _run(self, x, positions, dy=None):
        with self.fault():
            return exact.layer(self.config, self.params, x, positions=positions, dy=dy, dtype="float32")

    def forward(self, x, positions=None, stages=None):
        run = self._run(x, positions)
        if stages is not None:
            stages.update(run.stages)
        return run.stages["output"], (x, positions)

    def backward(self, dy, ctx, stages=None):
        run = self._run(*ctx, dy)
        if stages is not None:
            stages.update({name: array for name, array in run.stages.items() if name.startswith("d_")})
        return run.dx, run.grads


def with_fault(name, function):
    """A layer that computes one of the functions of the exact model in another way."""

    @contextlib.contextmanager
    def fault():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exact, name, function)
            yield

    return type("Faulty", (Layer,), {"fault": staticmethod(fault)})


def test_a_correct_layer_passes_everywhere(torch):
    cases = list(layer.run(Options(config="tiny"), build=Layer))
    assert not failed(cases), failed(cases)[0]
    # 17 stages, their gradients, dx, 9 parameters, capture
    assert len(cases) == PER_LAYER
    assert {case.level for case in cases} == {"layer"}
    assert {case.what for case in cases} == {"forward", "backward", "bits"}
    assert all(case.ratio is not None or case.verdict is Verdict.EXACT for case in cases)


def test_presets_beyond_the_first_are_one_line_a_pass_unless_something_fails(torch):
    cases = list(layer.run(Options(), build=Layer))
    assert len(cases) == PER_LAYER + 3 * (3 + len(families)) and not failed(cases)
    short = [case for case in cases if case.name.startswith("wide")]
    assert [case.name for case in short] == ["wide: 17 arrays", "wide: 27 arrays", "wide: 2 arrays"]
    assert short[0].note.startswith("the worst of 17: ") and short[0].margin > 0
    cases = list(layer.run(Options(), build=with_fault("_attention", attention(group=lambda h, size, G: h % G))))
    assert "gqa: attn" in [case.name for case in failed(cases)]
    assert "gqa: 7 arrays" not in [case.name for case in failed(cases)]


def interleaved_rope(x, cos, sin):
    even, odd = x[..., ::2], x[..., 1::2]
    rotated = x.clone()
    rotated[..., ::2], rotated[..., 1::2] = even * cos - odd * sin, odd * cos + even * sin
    return rotated


def eps_times_ten(x, weight, shape):
    return weight * (x / (x.square().mean(-1, keepdim=True) + 10 * shape.eps).sqrt())


def last_lanes_skipped(x, weight, shape):
    y = weight * (x / (x.square().mean(-1, keepdim=True) + shape.eps).sqrt())
    return y * (y.new_tensor(np.arange(y.shape[-1]) < y.shape[-1] - 3))


def last_lanes_left_out_of_the_mean(x, weight, shape):
    return weight * (x / (x[..., :-2].square().mean(-1, keepdim=True) + shape.eps).sqrt())


def float32_angles(positions, frequencies):
    import torch

    return torch.as_tensor(np.asarray(positions)).float()[..., None] * torch.as_tensor(frequencies).float()


def attention(diagonal=1, group=lambda h, size, G: h // size, scale=1.0):
    def compute(shape, q, k, v, window, sinks, put):
        import torch

        size, length = shape.heads // shape.kv_heads, q.shape[-2]
        index = [group(h, size, shape.kv_heads) for h in range(shape.heads)]
        scores = put("scores", q @ k[:, index].mT / shape.head_dim**0.5 * scale)
        hidden = torch.ones(length, length, dtype=torch.bool).triu(diagonal)
        probs = put("probs", torch.softmax(scores.masked_fill(hidden, -1e30), -1).masked_fill(hidden, 0.0))
        return put("attn", probs @ v[:, index])

    return compute


FAULTS = {
    "interleaved rope": ("_rope", interleaved_rope, "q_rope"),
    "rope with the other sign": ("_rope", lambda x, cos, sin, right=exact._rope: right(x, cos, -sin), "q_rope"),
    "eps ten times": ("_rms_norm", eps_times_ten, "ln1"),
    "last lanes skipped": ("_rms_norm", last_lanes_skipped, "ln1"),
    "last lanes not in the mean": ("_rms_norm", last_lanes_left_out_of_the_mean, "ln1"),
    "causal off by one, sees ahead": ("_attention", attention(diagonal=2), "probs"),
    "causal off by one, not itself": ("_attention", attention(diagonal=0), "probs"),
    "scale 5 % off": ("_attention", attention(scale=1.05), "scores"),
    "group map h % G": ("_attention", attention(group=lambda h, size, G: h % G), "scores"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen_at_its_stage_and_not_before(torch, name):
    target, function, stage = FAULTS[name]
    cases = list(layer.run(Options(config="gqa"), build=with_fault(target, function)))
    assert len(cases) == PER_LAYER
    by_stage = {case.name.removeprefix("gqa: "): case for case in cases}
    before = exact.LAYER_STAGES[: exact.LAYER_STAGES.index(stage)]
    assert all(by_stage[earlier].verdict in OK for earlier in before)
    assert by_stage[stage].failed and by_stage["output"].failed and by_stage["dx"].failed
    assert levels.exit_code(cases) == 1


def test_angles_in_float32_are_seen_far_out(torch):
    cases = list(layer.run(Options(), build=with_fault("rope_angles", float32_angles)))
    far = {case.name for case in failed(cases)}
    assert "gqa from 7 and 4095: q_rope" in far and "gqa from 7 and 4095: k_rope" in far


def changed_backward(change):
    class Faulty(Layer):
        def backward(self, dy, ctx, stages=None):
            dx, grads = super().backward(dy, ctx, stages)
            return change(dx, dict(grads))

    return Faulty


def scaled(name, factor):
    def change(dx, grads):
        return dx, grads | {name: (grads[name] * np.float32(factor)).astype(np.float32)}

    return change


def transposed(dx, grads):
    square = "self_attn.o_proj.weight"
    return dx, grads | {square: np.ascontiguousarray(grads[square].T)}


def residual_forgotten(dx, grads):
    return dx - probes.layer_input(CONFIG())[1], grads


def CONFIG():
    from ckernels.models import configs

    return configs.tiny


@pytest.mark.parametrize(
    "change, where",
    [
        (scaled("mlp.up_proj.weight", 1 + 3e-5), "d_mlp.up_proj.weight"),
        (scaled("input_layernorm.weight", 0), "d_input_layernorm.weight"),
        (transposed, "d_self_attn.o_proj.weight"),
        (residual_forgotten, "dx"),
    ],
)
def test_a_wrong_gradient_is_named_and_nothing_else(torch, change, where):
    cases = list(layer.run(Options(config="tiny"), build=changed_backward(change)))
    assert [case.name for case in failed(cases)] == [f"tiny: {where}"]


def test_what_is_not_there_is_unmeasured_and_fails(torch):
    class Silent(Layer):
        def forward(self, x, positions=None, stages=None):
            output, ctx = super().forward(x, positions, stages)
            if stages is not None:
                del stages["scores"]
                stages["up"] = stages["up"][:, :-1]
            return output, ctx

        def backward(self, dy, ctx, stages=None):
            dx, grads = super().backward(dy, ctx, stages)
            del grads["mlp.down_proj.weight"]
            if stages is not None:
                del stages["d_attn"]
            return dx, grads

    cases = list(layer.run(Options(config="tiny"), build=Silent))
    found = {case.name.removeprefix("tiny: "): case for case in failed(cases)}
    assert set(found) == {"scores", "up", "d_attn", "d_mlp.down_proj.weight"}
    assert {case.verdict for case in found.values()} == {levels.UNMEASURED}
    assert "shape (2, 16, 173) instead of (2, 17, 173)" in found["up"].note
    assert levels.exit_code(cases) == 1


def test_nan_and_a_crash_fail(torch):
    class NotANumber(Layer):
        def forward(self, x, positions=None, stages=None):
            output, ctx = super().forward(x, positions, stages)
            if stages is not None:
                stages["gate"][1, 3, 5] = np.nan
            return output, ctx

    class Crash(Layer):
        def forward(self, x, positions=None, stages=None):
            raise MemoryError("no room")

    assert [case.name for case in failed(layer.run(Options(config="tiny"), build=NotANumber))] == ["tiny: gate"]
    (crash,) = layer.run(Options(config="tiny"), build=Crash)
    assert crash.verdict == levels.ERROR and "MemoryError: no room" in crash.note


def test_capture_that_changes_a_bit_is_seen(torch):
    class Captured(Layer):
        def forward(self, x, positions=None, stages=None):
            output, ctx = super().forward(x, positions, stages)
            return (output, ctx) if stages is not None else (np.nextafter(output, np.float32(0)), ctx)

        def backward(self, dy, ctx, stages=None):
            dx, grads = super().backward(dy, ctx, stages)
            grads["mlp.gate_proj.weight"][3, 4] += np.float32(1e-3) * (stages is None)
            return dx, grads

    cases = failed(layer.run(Options(config="tiny"), build=Captured))
    assert [case.name for case in cases] == [
        "tiny: output with and without capture", "tiny: gradients with and without capture",
    ]  # fmt: skip


def test_a_ceiling_holds_beside_the_rule():
    """A peer that is as far off as ours makes the rule generous; the documented ceiling does not move."""
    right = np.linspace(0.5, 1, 1000).reshape(10, 100)
    off = (right + 2e-4 * (-1) ** np.arange(1000).reshape(10, 100)).astype(np.float32)
    case = layer.judge("layer", "tiny: output", off, right, (right - 2e-4).astype(np.float32))
    assert case.verdict is Verdict.EXCESS_DRIFT and "above 0.0001" in case.note


# --- level 4: a real model's logits ---------------------------------------------------------------------------------


def logits(seed=0, tokens=9, words=50):
    rng = np.random.default_rng(seed)
    right = rng.standard_normal((tokens, words)) * 4
    noise = [(right * (1 + 1e-7 * rng.standard_normal(right.shape))).astype(np.float32) for _ in range(2)]
    return right, *noise


def judged(right, ours, beside, **options):
    return {case.what: case for case in forward.judge("m", ours, right, beside, **options)}


def test_rounding_passes_with_its_figures():
    right, ours, beside = logits()
    cases = judged(right, ours, beside)
    assert [case.verdict in OK for case in cases.values()] == [True] * 3
    assert cases["top-1, top-5"].data["top1"] == 9 and cases["top-1, top-5"].data["positions"] == 9
    assert cases["logits"].data["positions"].startswith("0: ") and ", 8: " in cases["logits"].data["positions"]


def test_four_times_the_peers_error_fails():
    right, ours, beside = logits()
    off = (right + 4 * (ours - right) + 40e-7 * np.sign(right)).astype(np.float32)
    assert judged(right, off, beside)["logits"].verdict is Verdict.EXCESS_DRIFT


def test_one_wrong_logit_of_thousands_fails():
    right, ours, beside = logits(tokens=100, words=500)
    ours[50, 3] += 1e-4
    assert judged(right, ours, beside)["logits"].verdict is Verdict.EXCESS_DRIFT


def test_a_near_tie_is_named_and_passes_and_a_mismatch_fails():
    right, _, _ = logits()
    first, second = np.argsort(-right[4])[:2]
    right[4, second] = right[4, first] - 1e-7
    ours = right.astype(np.float32)
    ours[4, second] = np.nextafter(ours[4, first], np.float32(np.inf))
    case = judged(right, ours, right.astype(np.float32) + np.float32(1e-6), say="word {}".format)["top-1, top-5"]
    assert case.verdict is Verdict.WITHIN_BUDGET and case.data["ties_swapped"] == 1 and case.data["near_ties"] == 1
    assert f"tie at position 4: word {second} for word {first}" in case.note
    ours[4, np.argsort(-right[4])[7]] += 30
    case = judged(right, ours, right.astype(np.float32) + np.float32(1e-6))["top-1, top-5"]
    assert case.verdict is Verdict.STRUCTURAL and case.data["mismatches"] == 2 and case.data["top1"] == 8


def test_logits_of_the_position_before_fail_everywhere():
    right, ours, beside = logits()
    cases = judged(right, np.roll(ours, 1, axis=0), beside)
    assert all(case.failed for case in cases.values())


def test_nan_logits_fail_everywhere():
    right, ours, beside = logits()
    ours[3] = np.nan
    assert all(case.failed for case in judged(right, ours, beside).values())


def test_divergence_is_the_divergence_without_cancellation():
    right, _, _ = logits()
    other = right + np.random.default_rng(3).standard_normal(right.shape) * 0.3
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (right, other))
    direct = (p * np.log(p / q)).sum(-1)
    assert np.abs(forward.divergence(other, right) - direct).max() <= 50 * np.finfo(float).eps * np.abs(direct).max()
    # Half the variance of a small change, which the direct formula loses in rounding.
    change = (other - right) * 1e-7
    variance = (p * change**2).sum(-1) - (p * change).sum(-1) ** 2
    assert np.abs(forward.divergence(right + change, right) / (variance / 2) - 1).max() < 1e-6
    assert (forward.divergence(right + 3.0, right) < 1e-15).all()


def test_a_model_that_cannot_be_had_is_unmeasured_and_fails(monkeypatch, tmp_path):
    pytest.importorskip("transformers")
    import importlib

    def offline(name):
        raise OSError("no network")

    monkeypatch.setattr(importlib.import_module("ckernels.io.fetch"), "fetch", offline)
    (case,) = forward.run(Options())
    assert case.verdict == levels.UNMEASURED and "no network" in case.note and levels.exit_code([case]) == 1
    (case,) = forward.run(Options(model=str(tmp_path / "none.gguf")))
    assert case.verdict == levels.UNMEASURED and "no such file" in case.note
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    cases = list(forward.run(Options(model=str(tmp_path / "bad.gguf"))))
    assert [case.verdict for case in cases] == [levels.ERROR]


def test_an_empty_text_is_unmeasured_and_a_long_one_is_cut_and_says_so():
    texts = forward.texts_of(Options(text="x" * 600), lambda text: [7] * len(text))
    assert [(label, ids.size) for label, ids in texts] == [("the first 512 of 600 tokens", 512)]
    ((_, ids),) = forward.texts_of(Options(text=""), lambda text: [])
    assert ids.size == 0
    lengths = [ids.size for _, ids in forward.texts_of(Options(), lambda text: list(text.encode()))]
    assert lengths == list(forward.LENGTHS["default"]) and lengths[-1] == 200


def test_weights_that_differ_in_one_bit_are_seen(torch):
    class Model:
        params = {"a": np.ones((2, 3), np.float32), "b": np.zeros(2, np.float32)}

    weights = {name: torch.tensor(value) for name, value in Model.params.items()}
    assert forward._weights_case("m", Model, weights, 0.0).verdict is Verdict.EXACT
    weights["b"][0] = -0.0
    case = forward._weights_case("m", Model, weights, 0.0)
    assert case.verdict is Verdict.STRUCTURAL and "'b'" in case.note
    del weights["b"]
    assert forward._weights_case("m", Model, weights, 0.0).failed


# --- bits -----------------------------------------------------------------------------------------------------------


class Cache:
    def __init__(self, batch):
        self.seen = [[] for _ in range(batch)]

    def truncate(self, length):
        self.seen = [ids[:length] for ids in self.seen]


class Prefix:
    """A model whose logits are a function of each text's beginning alone, so that every promise of bits holds."""

    def __init__(self, config, params):
        rng = np.random.default_rng(0)
        self.config, self.params = config, {"w": rng.standard_normal((4, 11)).astype(np.float32)}
        self.table = rng.standard_normal((config.vocab_size, 4)).astype(np.float32)

    def one(self, prefix):
        state = np.zeros(4, np.float32)
        for token in prefix:
            state = np.tanh(state * np.float32(0.7) + self.table[token])
        return (state[:, None] * self.params["w"]).sum(0)

    def new_cache(self, capacity, batch=1):
        return Cache(batch)

    def __call__(self, ids, *, last_only=False, cache=None, counts=None):
        ids = np.asarray(ids)
        single, ids = ids.ndim == 1, np.atleast_2d(ids)
        seen = [[] for _ in ids] if cache is None else cache.seen
        counts = [ids.shape[1]] * len(ids) if counts is None else counts
        out = np.zeros((*ids.shape, 11), np.float32)
        for b, row in enumerate(ids):
            for t in range(int(counts[b])):
                seen[b].append(int(row[t]))
                out[b, t] = self.one(seen[b])
        out = out[:, -1:] if last_only else out
        return out[0] if single else out

    def loss_and_grads(self, ids, targets, reduction="mean", accumulate_into=None, recompute=False):
        logits = self(ids)
        grads = {"w": np.outer(np.ones(4), logits.sum((0, 1))).astype(np.float32)}
        if accumulate_into is not None:
            accumulate_into["w"] += grads["w"]
        return float(logits.sum()), accumulate_into or grads

    def trace(self, ids, targets=None):
        from ckernels.parity.trace import Trace

        arrays = {"logits": self(ids)}
        if targets is not None:
            loss, grads = self.loss_and_grads(ids, targets)
            arrays |= {"loss": np.float32(loss), "d_w": grads["w"]}
        return Trace({}, arrays)


class LosesOneKey(Prefix):
    def __call__(self, ids, *, cache=None, counts=None, **more):
        if cache is not None and any(len(seen) > 40 for seen in cache.seen):
            cache.seen = [seen[:-1] + [0] for seen in cache.seen]
        return super().__call__(ids, cache=cache, counts=counts, **more)


class ItemZerosLength(Prefix):
    def __call__(self, ids, *, cache=None, counts=None, **more):
        if counts is not None:
            counts = [counts[0]] * len(ids)
        return super().__call__(ids, cache=cache, counts=counts, **more)


class StaleAfterTruncate(Prefix):
    def new_cache(self, capacity, batch=1):
        cache = Cache(batch)
        cache.truncate = lambda length: None
        return cache


class Threads(Prefix):
    def one(self, prefix):
        import ckernels as ck

        return super().one(prefix) * np.float32(1 + 1e-7 * (ck.get_num_threads() == 7))


class Batch(Prefix):
    def __call__(self, ids, **more):
        out = super().__call__(ids, **more)
        return out * np.float32(1 + 1.2e-7) if np.ndim(ids) == 1 else out


class Capture(Prefix):
    def trace(self, ids, targets=None):
        trace = super().trace(ids, targets)
        trace.arrays["logits"] = np.nextafter(trace.arrays["logits"], np.float32(0))
        return trace


class Recomputed(Prefix):
    def loss_and_grads(self, ids, targets, recompute=False, **more):
        loss, grads = super().loss_and_grads(ids, targets, **more)
        return loss, {"w": grads["w"] * np.float32(1 + 1.2e-7 * recompute)}


class LastAddedFirst(Prefix):
    def loss_and_grads(self, ids, targets, accumulate_into=None, **more):
        loss, grads = super().loss_and_grads(ids, targets, **more)
        if accumulate_into is not None:
            grads = {"w": grads["w"] * np.float32(1 + 1.2e-7) + accumulate_into["w"]}
        return loss, grads


class Instructions(Prefix):
    def one(self, prefix):
        import ckernels as ck

        return super().one(prefix) * np.float32(1 + 1.2e-7 * (ck.isa() == "avx2"))


def test_a_model_that_keeps_every_promise_is_exact_everywhere():
    import ckernels as ck

    before = ck.get_num_threads(), ck.isa()
    cases = list(invariance.run(Options(level="invariance", quick=True), model=Prefix))
    assert not [case for case in failed(cases) if case.verdict != levels.NOT_MEASURED]
    names = {case.what for case in cases}
    assert {"one token at a time", "each item alone", "7 threads, decode", "with every stage captured"} <= names
    assert (ck.get_num_threads(), ck.isa()) == before
    few = list(invariance.run(Options(level="kv", quick=True), model=Prefix))
    assert len(few) == 14 and not failed(few) and {case.level for case in few} == {"kv"}


@pytest.mark.parametrize(
    "model, what",
    [
        (LosesOneKey, "one token at a time"),
        (ItemZerosLength, "items of different lengths in one cache"),
        (StaleAfterTruncate, "truncated and appended again"),
        (Threads, "7 threads, forward"),
        (Batch, "each item alone"),
        (Capture, "with every stage captured"),
        (Recomputed, "loss and gradients, layers recomputed"),
        (LastAddedFirst, "gradients accumulated, and added up in the same order"),
    ],
)
def test_a_broken_promise_is_named(model, what):
    cases = list(invariance.run(Options(level="invariance", quick=True, config="tiny"), model=model))
    assert what in [case.what for case in cases if case.failed]
    assert levels.exit_code(cases) == 1


def test_instruction_sets_that_differ_are_named_where_both_are_here():
    import ckernels as ck

    cases = list(invariance.run(Options(level="invariance", quick=True, config="tiny"), model=Instructions))
    (case,) = [case for case in cases if case.what == "avx2 and avx512"]
    both = {"avx2", "avx512"} <= set(ck.isas())
    assert case.failed if both else case.verdict == levels.NOT_MEASURED


# --- all levels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [layer, stages, forward, train])
def test_without_torch_a_level_says_so(monkeypatch, module):
    monkeypatch.setattr(peer, "missing", lambda *packages: "torch not installed")
    (case,) = module.run(Options())
    assert case.verdict == levels.NOT_MEASURED and "torch not installed" in case.note
    assert levels.exit_code([case]) == 3


def test_missing_names_what_is_missing():
    assert peer.missing("numpy") == ""
    assert peer.missing("numpy", "no_such_package_at_all").startswith("no_such_package_at_all not installed")


@pytest.mark.parametrize(
    "module, options, says",
    [
        (layer, Options(config="huge"), "no preset 'huge'"),
        (train, Options(config="huge"), "no preset 'huge'"),
        (invariance, Options(config="huge"), "no preset 'huge'"),
        (train, Options(optimizer="lion"), "no optimizer 'lion'"),
        (train, Options(steps=0), "steps=0"),
    ],
)
def test_an_option_that_names_nothing_is_refused(module, options, says):
    with pytest.raises(levels.OptionError, match=says):
        list(module.run(options))


@pytest.mark.parametrize("module", [layer, stages, forward, train, invariance])
def test_an_instruction_set_that_is_not_here_is_not_measured(module):
    (case,) = module.run(Options(isa="amx"))
    assert case.verdict == levels.NOT_MEASURED and case.isa in ("amx", "")


def test_probes_are_the_same_for_the_same_seed_and_other_for_another():
    config = CONFIG()
    one, two, other = probes.parameters(config, 1), probes.parameters(config, 1), probes.parameters(config, 2)
    assert all(one[name].tobytes() == two[name].tobytes() != other[name].tobytes() for name in one)
    assert all(value.dtype == np.float32 for value in one.values())
    batches = list(probes.training_batches(257, 6, 1))
    again = list(probes.training_batches(257, 6, 1))
    assert all((a[0] == b[0]).all() and (a[1] == b[1]).all() for a, b in zip(batches, again, strict=True))
    for ids, targets in batches:
        assert ids.shape == targets.shape and ids.shape[1] % 2 == 1 and (targets == -100).sum() == 2
        assert len(set(ids.ravel().tolist())) > 10, "the data must be mixed"
        kept = targets[:, :-1] >= 0
        assert (targets[:, :-1][kept] == ids[:, 1:][kept]).all(), "targets are the next ids"
    assert len(probes.text(5000)) == 5000 and probes.text(300, 3) != probes.text(300, 4)


# --- the code that ships ----------------------------------------------------------------------------------------------


def wrong(cases):
    return [case for case in failed(cases) if case.verdict != levels.NOT_MEASURED]


def test_our_layer_passes_level_2(torch):
    cases = list(layer.run(Options()))
    assert not wrong(cases), "\n".join(map(str, wrong(cases)))
    assert len(cases) == PER_LAYER + 3 * (3 + len(families))


@pytest.mark.parametrize("name", ["tiny", "gqa", "wide"])
def test_our_bits_are_equal(name):
    cases = list(invariance.run(Options(level="invariance", config=name)))
    assert not wrong(cases), "\n".join(map(str, wrong(cases)))
    assert sum(case.verdict is Verdict.EXACT for case in cases) >= 25


def test_a_real_models_layer_is_within_three_times_transformers_error(torch):
    cases = list(stages.run(Options(quick=True)))  # before the logits: they use the model that is read here
    assert not wrong(cases), "\n".join(map(str, wrong(cases)))
    assert [case.what for case in cases] == ["forward", "backward"]


def test_a_real_models_logits_are_within_three_times_transformers_error(torch):
    cases = list(forward.run(Options(quick=True)))
    assert not wrong(cases), "\n".join(map(str, wrong(cases)))
    assert [case.what for case in cases] == ["as read", *["logits", "KL", "top-1, top-5"] * 2]
