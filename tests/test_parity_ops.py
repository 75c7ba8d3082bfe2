"""Level 1 of ``ck parity`` on a package made of PyTorch: right code passes every probe, planted faults turn it red."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ckernels.parity import Verdict, compare, levels, ops, tally
from ckernels.parity.specs import SPECS, Probe, names
from ckernels.parity.specs.spec import as_array


@pytest.fixture(autouse=True)
def every_dtype(monkeypatch):
    """PyTorch, who plays the package here, has all of them, whatever this build has."""
    monkeypatch.setattr(ops, "build_info", lambda: {"dtypes": ",".join(levels.DTYPES)})


class Pretender:
    """A package whose ops are PyTorch's, in 16 bits those of float64 and rounded once, with a fault where the test wants one.

    ``before(inputs)`` changes what an op computes with, ``after(output)`` what comes out of it.
    """

    def __init__(self, op=None, before=None, after=None, outputs=None):
        self.op, self.before, self.after, self.outputs = op, before, after, outputs
        self.current = "reference"
        self.optim = SimpleNamespace(
            SGD=self._optimizer("SGD"), AdamW=self._optimizer("AdamW"), clip_grad_norm=self._clip_grad_norm
        )
        for spec in SPECS:
            if spec.what == "forward":
                setattr(self, spec.name, self._forward(spec))
                setattr(self, f"{spec.name}_forward", self._with_context(spec))
            if spec.what == "backward":
                setattr(self, f"{spec.name}_backward", self._backward(spec))

        self.sample = self._draw

    def _draw(self, **inputs):
        """Draw ids; the spec's references are how often each is to come."""
        spec = next(s for s in SPECS if s.name == "sample")
        p = spec.exact(self._wrong("sample", inputs))["frequencies"]
        return np.random.default_rng(5).choice(p.size, len(inputs["logits"]), p=p)

    def isas(self):
        return ["reference"]

    def isa(self):
        return self.current

    @contextlib.contextmanager
    def use(self, isa):
        self.current = isa
        yield

    def _wrong(self, name, inputs):
        return self.before(dict(inputs)) if self.op == name and self.before else inputs

    def _finish(self, name, results):
        if self.op != name or not self.after:
            return results
        chosen = {k: v for k, v in results.items() if self.outputs in (None, k)}
        return results | {k: np.asarray(self.after(v.copy())).astype(v.dtype) for k, v in chosen.items()}

    def _forward(self, spec):
        def call(**inputs):
            inputs = {"interleaved": False, **inputs} if spec.name == "rope" else inputs
            chosen = self._pass(spec, inputs)
            results = tuple(self._finish(spec.name, self._compute(chosen, self._wrong(spec.name, inputs))).values())
            return results if len(results) > 1 else results[0]

        return call

    def _pass(self, spec, inputs):
        what = f"{spec.what} +lse" if inputs.get("return_lse") else spec.what
        return next(s for s in SPECS if (s.name, s.what) == (spec.name, what))

    def _compute(self, spec, inputs):
        # Tables must be better than PyTorch's, whose angles are float32; so must 16 bits, of which PyTorch sums some
        # in 16 bits: the gradient of an embedding row that occurs a thousand times is then off by a hundredth.
        dtypes = {k: spec.result_dtype(k, inputs) for k in spec.exact(inputs)}
        better = {k for k, dtype in dtypes.items() if spec.name == "rope_table" or dtype != "float32"}
        exact, peer = spec.exact(inputs), spec.peer(inputs)
        return {k: as_array(torch.from_numpy(exact[k]), dtypes[k]) if k in better else peer[k] for k in exact}

    def _with_context(self, spec):
        return lambda **inputs: (self._forward(spec)(**inputs), inputs)

    def _backward(self, spec):
        def call(dy, inputs):
            results = self._finish(spec.name, self._compute(self._pass(spec, inputs), self._wrong(spec.name, inputs)))
            return SimpleNamespace(**{k.removeprefix("d"): v for k, v in results.items()})

        return call

    def _optimizer(self, name):
        """Recompute all steps so far at every step: slow, and plainly torch's optimizer."""
        spec = next(s for s in SPECS if s.name == name)

        def make(params, **options):
            start, grads, state = {k: v.copy() for k, v in params.items()}, [], {}

            def step(given, max_norm=None):
                grads.append(given["weight"])
                limit = {} if max_norm is None else {"max_norm": max_norm}
                inputs = {"p0": start["weight"], "grads": grads, "options": options | limit}
                found = self._finish(name, self._compute(spec, self._wrong(name, inputs)))
                params["weight"][...] = found.pop("weight")
                state[0] = found

            return SimpleNamespace(step=step, state=state)

        return make

    def _clip_grad_norm(self, grads, max_norm):
        name = "clip_grad_norm"
        spec = next(s for s in SPECS if s.name == name)
        found = self._finish(name, self._compute(spec, self._wrong(name, grads | {"max_norm": max_norm})))
        for key, grad in grads.items():
            grad[...] = found[key]
        return float(found["norm"])


def cases(package, **options):
    return [c for c in ops.run(levels.Options(**options), package) if c.verdict != levels.NOT_MEASURED]


def test_right_code_passes_every_probe():
    found = cases(Pretender())
    assert {c.name for c in found} == set(names())
    assert [f"{c.name} {c.what}: {c.verdict}: {c.note}" for c in found if c.verdict not in levels.PASSING] == []
    # Two quantities under one name would hide one of them.
    assert len({(c.name, c.what, c.dtype, c.isa) for c in found}) == len(found)
    assert {(c.name, c.dtype) for c in found} == {(s.name, d) for s in SPECS for d in s.dtypes}
    # Ours is the peer here, but for the tables and for draws by chance, so the ratio says so wherever both have an error.
    others = [c for c in found if c.name not in ("rope_table", "sample") and c.dtype == "float32"]
    assert all(c.ratio in (None, 0.0) or c.ratio == pytest.approx(1.0) for c in others)
    assert all(c.ratio is None or c.ratio < 1.01 for c in found if c.name != "sample")


def test_references_give_the_same_bits_twice():
    for spec in SPECS:
        probe = spec.probes[0]
        first, second = (spec.exact(spec.inputs(probe)) for _ in range(2))
        for name, value in first.items():
            assert value.dtype in (np.float64, np.int64), f"{spec.name} {name}"  # int64: indices
            assert value.tobytes() == second[name].tobytes(), f"{spec.name} {name}"


def test_exact_gradients_are_finite_differences():
    """The float64 side has a second opinion: central differences of its own forward."""
    rng = np.random.default_rng(5)
    for spec in [s for s in SPECS if s.what == "backward" and s.name != "embedding"]:
        forward = next(s for s in SPECS if s.name == spec.name and s.what == "forward")
        inputs = {
            k: v.astype(np.float64) if isinstance(v, np.ndarray) and v.dtype.kind == "f" else v
            for k, v in spec.inputs(spec.probes[0]).items()
        }
        outputs = forward.exact(inputs)
        cotangents = ops_cotangents(outputs)
        for name, gradient in spec.exact(inputs).items():
            key = name.removeprefix("d")
            direction = rng.standard_normal(gradient.shape)
            h = 1e-6
            values = []
            for sign in (1, -1):
                moved = forward.exact(inputs | {key: inputs[key] + sign * h * direction})
                values.append(sum(np.vdot(cotangents[k], moved[k]) for k in outputs))
            numeric, analytic = (values[0] - values[1]) / (2 * h), np.vdot(gradient, direction)
            # Truncation h^2 and rounding 1e-16/h of a sum of this size.
            scale = np.linalg.norm(gradient) * np.linalg.norm(direction)
            assert abs(numeric - analytic) < 1e-7 * scale, f"{spec.name} {name}"


def ops_cotangents(outputs):
    from ckernels.parity.specs.spec import _cotangents

    return dict(zip(outputs, _cotangents([np.asarray(v) for v in outputs.values()]), strict=True))


def _with(**changes):
    return lambda inputs: inputs | {k: v(inputs) if callable(v) else v for k, v in changes.items()}


def _zero_tail(y):
    if y.ndim:
        y[..., y.shape[-1] // 16 * 16 :] = 0
    return y


def _ungrouped(inputs):
    """Query head h reads kv head h % G instead of h // (H / G)."""
    heads = np.arange(inputs["q"].shape[1]) % inputs["k"].shape[1]
    return inputs | {"k": inputs["k"][:, heads], "v": inputs["v"][:, heads]}


def _last_query_unfinished(y):
    y[..., -1, :] = 0
    return y


def _widened(inputs, name):
    """Partial width ignored: the table is stretched over all lanes."""
    rows, width = inputs[name].shape
    return np.resize(inputs[name], (rows, max(width, inputs["x"].shape[-1] // 2)))


def _one_wrong_element(y):
    flat = y.reshape(-1)
    flat[flat.size // 2] += np.float32(1e-4) * (1 + abs(flat[flat.size // 2]))
    return y


def _changed_options(**changes):
    return lambda inputs: inputs | {"options": inputs["options"] | changes}


FAULTS = {
    "interleaved for half-split rope": ("rope", {"before": _with(interleaved=lambda i: not i["interleaved"])}),
    "rope turns the other way": ("rope", {"before": _with(sin=lambda i: -i["sin"])}),
    "rope turns too wide": (
        "rope",
        {"before": _with(cos=lambda i: _widened(i, "cos"), sin=lambda i: _widened(i, "sin"))},
    ),
    "eps ten times too large": ("rms_norm", {"before": _with(eps=lambda i: 10 * i.get("eps", 1e-6))}),
    "eps dropped": ("rms_norm", {"before": _with(eps=0.0)}),
    "norm offset forgotten": ("rms_norm", {"before": _with(offset=0.0)}),
    "norm over a constant n": ("rms_norm", {"after": lambda y: y * np.float32(1.001)}),
    "last lanes skipped": ("rms_norm", {"after": _zero_tail}),
    "last lanes of add skipped": ("add", {"after": _zero_tail}),
    "alpha ignored": ("add", {"before": _with(alpha=1.0)}),
    "residual forgotten": ("add_rms_norm", {"before": _with(residual=lambda i: 0 * i["residual"])}),
    "causal off by one": (
        "scaled_dot_product_attention",
        {"before": lambda i: i | {"q_offset": i.get("q_offset", 0) + 1} if i.get("is_causal") else i},
    ),
    "kv head h % G": ("scaled_dot_product_attention", {"before": _ungrouped}),
    "scale five percent off": (
        "scaled_dot_product_attention",
        {"before": _with(scale=lambda i: 1.05 * (i.get("scale") or i["q"].shape[-1] ** -0.5))},
    ),
    "window one too wide": (
        "scaled_dot_product_attention",
        {"before": lambda i: i | {"window": (i["window"][0] + 1, i["window"][1])} if i.get("window") else i},
    ),
    "softcap ignored": ("scaled_dot_product_attention", {"before": _with(softcap=None)}),
    "sinks ignored": ("scaled_dot_product_attention", {"before": lambda i: {k: i[k] for k in i if k != "sinks"}}),
    "mask ignored": ("scaled_dot_product_attention", {"before": _with(attn_mask=None)}),
    "last query never run": ("scaled_dot_product_attention", {"after": _last_query_unfinished, "outputs": "y"}),
    "one wrong element of an attention": ("scaled_dot_product_attention", {"after": _one_wrong_element}),
    "softmax scale ignored": ("softmax", {"before": _with(scale=1.0)}),
    "softmax mask ignored": ("softmax", {"before": _with(mask=None)}),
    "bias forgotten": ("linear", {"before": _with(bias=None), "outputs": "y"}),
    "bias doubled": ("linear", {"before": lambda i: i | {"bias": 2 * i["bias"]} if "bias" in i else i}),
    "last of K dropped": (
        "linear",
        {"before": _with(x=lambda i: np.where(np.arange(i["x"].shape[-1]) % 96 == 95, 0, i["x"]))},
    ),
    "dW doubled": ("linear", {"after": lambda d: 2 * d, "outputs": "dweight"}),
    "b not transposed back": ("matmul", {"after": lambda d: d[..., ::-1].copy(), "outputs": "db"}),
    "gate and up swapped": ("swiglu", {"before": lambda i: {"gate": i["up"], "up": i["gate"]} if "up" in i else i}),
    "silu two thousandths off": ("silu", {"after": lambda y: y * np.float32(1.002)}),
    "ignored targets counted": (
        "cross_entropy",
        {"before": _with(ignore_index=-1, target=lambda i: i["target"].clip(0))},
    ),
    "mean for sum": ("cross_entropy", {"before": _with(reduction="mean"), "outputs": "loss"}),
    "table off by two ulp": ("rope_table", {"after": lambda t: t + np.float32(2e-7)}),
    "wrong rope base": ("rope_table", {"before": _with(base=20000.0)}),
    "an embedding of the next id": ("embedding", {"before": _with(ids=lambda i: i["ids"] - 1)}),
    "embedding gradient halved": ("embedding", {"after": lambda d: d / 2, "outputs": "dweight"}),
    "top_p ignored": ("sample", {"before": _with(top_p=1.0)}),
    "the temperature ignored": ("sample", {"before": _with(temperature=1.0)}),
    "nesterov ignored": ("SGD", {"before": _changed_options(nesterov=False)}),
    "decay ignored": ("SGD", {"before": _changed_options(weight_decay=0.0)}),
    "dampening ignored": ("SGD", {"before": _changed_options(dampening=0.0)}),
    "decay of AdamW ignored": ("AdamW", {"before": _changed_options(weight_decay=0.0)}),
    "eps of AdamW ignored": ("AdamW", {"before": _changed_options(eps=0.0)}),
    "amsgrad ignored": ("AdamW", {"before": _changed_options(amsgrad=False)}),
    "state of AdamW halved": ("AdamW", {"after": lambda a: a / 2, "outputs": "exp_avg_sq"}),
    "clipped by half": ("clip_grad_norm", {"before": _with(max_norm=lambda i: i["max_norm"] / 2)}),
}


# An error of 0.2 % is half a step of eight bits, and nobody can see it in them.
TOO_FINE = {("silu two thousandths off", "bfloat16")}


def first_failure(fault, dtype):
    op, plan = FAULTS[fault]
    # The first failure is enough: the level yields its cases one by one.
    return next((c for c in ops.run(levels.Options(op=op, dtype=dtype), Pretender(op, **plan)) if c.failed), None)


@pytest.mark.parametrize("dtype", levels.DTYPES)
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(fault, dtype):
    if dtype not in next(s.dtypes for s in SPECS if s.name == FAULTS[fault][0]):
        assert first_failure(fault, "float32")  # a table is float32 whatever the dtype
        return
    caught = first_failure(fault, dtype)
    if (fault, dtype) in TOO_FINE:
        assert caught is None and first_failure(fault, "float32")
        return
    assert caught is not None, f"{fault} survives"
    assert levels.exit_code([caught]) == 1


def test_a_result_of_another_dtype_is_an_error():
    """However exact it is: the caller asked for 16 bits."""
    package = Pretender()
    right = package.silu
    package.silu = lambda x: right(x=x).astype(np.float32)
    found = {c.dtype: c for c in cases(package, op="silu") if c.what.startswith("forward")}
    assert {d: c.verdict for d, c in found.items()} == {
        "float32": found["float32"].verdict, "float16": levels.ERROR, "bfloat16": levels.ERROR
    }
    assert found["float32"].verdict in levels.PASSING
    assert "the result 'y' is float32, not bfloat16" in found["bfloat16"].note


def test_inputs_are_rounded_to_the_dtype_of_the_call_but_for_those_that_stay_float32():
    for spec in SPECS:
        for dtype in spec.dtypes:
            inputs = spec.inputs(spec.probes[0], dtype=dtype, weights="float32" if spec.weights else None)
            for key, value in inputs.items():
                if isinstance(value, np.ndarray) and value.dtype.kind not in "iub":
                    expected = "float32" if key in (*spec.floats, *spec.weights) else dtype
                    assert value.dtype.name == expected, f"{spec.name} {key}"
    rope = next(s for s in SPECS if s.name == "rope")
    assert rope.inputs(rope.probes[0], dtype="float16")["cos"].dtype == np.float32


def test_ratios_of_the_maximum_and_of_the_mean_are_both_given():
    found = cases(Pretender(), op="linear", dtype="float16")
    for case in found:
        both = case.data["ratio_max"], case.data["ratio_rms"]
        assert case.ratio == max(both)
        assert (min(both) > 0) == (max(both) > 0)  # neither where there is no error at all: a residual's gradient
    assert any(case.ratio for case in found)


def _broken(name, replacement):
    package = Pretender()
    setattr(package, name, replacement)
    return package


def test_a_missing_op_is_unmeasured_and_fails():
    package = Pretender()
    del package.silu
    found = cases(package, op="silu")
    assert [c.verdict for c in found if c.what == "forward"] == [levels.UNMEASURED] * 3
    assert levels.exit_code(found) == 1


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (lambda x: x * np.float32(np.nan), Verdict.STRUCTURAL),
        (lambda x: x[..., :-1], levels.ERROR),
        (lambda x: np.zeros_like(x), Verdict.STRUCTURAL),
        (lambda x: 1 / 0, levels.ERROR),
        (lambda x: x.fill(0) or x, levels.ERROR),  # the input is modified
    ],
    ids=["NaN", "wrong shape", "zeros", "raises", "modifies its input"],
)
def test_an_op_that_breaks_is_named(answer, verdict):
    found = cases(_broken("silu", answer), op="silu", dtype="float32")
    found = [c for c in found if c.what.startswith("forward")]
    assert [c.verdict for c in found] == [verdict]
    assert found[0].note


def test_the_instruction_set_named_is_the_one_that_ran():
    package = Pretender()
    package.use = lambda isa: contextlib.nullcontext()
    package.current = "avx2"
    found = cases(package, op="silu")
    assert {c.verdict for c in found} == {levels.ERROR}
    assert "ran on avx2" in found[0].note


def test_an_output_that_is_the_input_proves_nothing():
    """A rope probe at position 0 would pass with no rotation at all: the comparison says so."""
    from ckernels.parity.specs.rotary import _rope_inputs

    spec = next(s for s in SPECS if s.name == "rope" and s.what == "forward")
    inputs = _rope_inputs(np.random.default_rng(0), 2, 3, 1, 64, start=0)
    report = compare(inputs["x"].copy(), spec.exact(inputs)["y"], spec.peer(inputs)["y"], trivial=inputs["x"])
    assert report.verdict is Verdict.VACUOUS


def test_documented_ceilings():
    assert tally.CEILING["float32"] == 1e-5
    assert tally.NMSE_CEILING == {"float32": 1e-7, "float16": 1e-6, "bfloat16": 1e-4}


def test_unknown_names_are_refused():
    for options in ({"op": "nonsense"}, {"isa": "mmx"}):
        with pytest.raises(levels.OptionError, match="nonsense|mmx"):
            cases(Pretender(), **options)


def test_the_ceiling_holds_where_the_rule_would_not_notice():
    """A peer that errs as much would let an error through; the documented ceiling does not, but for extreme probes."""
    exact = np.random.default_rng(0).standard_normal(1000)
    bad = (exact * (1 + 3e-5)).astype(np.float32)
    report = compare(bad, exact, bad.copy())
    assert report.ok
    for extreme, verdict in ((False, Verdict.EXCESS_DRIFT), (True, Verdict.WITHIN_BUDGET)):
        found = tally.Tally("float32")
        found.add(report, Probe("a label", None, extreme=extreme))
        assert found.verdict is verdict
    # What is drawn by chance has a bound of its own: deviations of a count.
    others = [s for s in SPECS if s.name != "sample"]
    assert {p.label for s in others for p in s.probes if p.extreme is True} == {"scores of ±200"}
