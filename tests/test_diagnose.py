"""diagnose(): mistakes of another implementation by their names, classes where inputs cannot tell, never a wrong name."""

import json

import numpy as np
import pytest

import ckernels as ck
from ckernels.parity import Trace, Verdict, acceptance, diagnose, probes
from ckernels.parity.acceptance import candidate, outcome
from ckernels.parity.arithmetic import Arithmetic
from ckernels.parity.backward import gradient_names
from ckernels.parity.equations import Equations, Weights, stage_names
from ckernels.parity.independent import CONFIG
from ckernels.parity.planted import FAULTS, FOREIGN
from ckernels.parity.settings import Settings

GQA = ck.models.configs.gqa

# One of each part; `python -m ckernels.parity.acceptance` tries all of them.
SOME = {
    "float32": ("rope interleaved", "rope base 26500", "rope q only", "norm eps 3e-6", "norm last lanes skipped",
                "attention window -1", "attention group map v", "attention no rescale", "attention last tile",
                "mlp gelu tanh", "linear K tail", "linear 16-bit sums", "residual normed", "kv stride",
                "kv layer ignored", "loss log(p + eps)"),
    "bfloat16": ("rope sign", "norm eps 1e-6", "norm 1+w", "attention scale x1.05", "attention sinks ignored",
                 "mlp gelu erf", "linear bias doubled", "kv layout", "loss ignored counted"),
}  # fmt: skip


@pytest.mark.parametrize(("dtype", "fault"), [(d, f) for d, faults in SOME.items() for f in faults])
def test_a_mistake_of_another_implementation_is_named(dtype, fault):
    result, names = outcome(fault, dtype)
    assert result in ("unique", "class of two"), (result, names)


@pytest.mark.parametrize("fault", FOREIGN)
def test_a_mistake_that_is_not_known_gets_no_name(fault):
    found = diagnose(*candidate(fault))
    assert f"layers.{found.layer}.{found.stage}" == FOREIGN[fault] and found.causes == []
    text = str(found)
    assert "none of the known mistakes explains it" in text and "of the result's size" in text


def test_what_is_known_about_it():
    assert "best scale" in str(diagnose(*candidate("mlp clipped"))) or "where it is large" in str(
        diagnose(*candidate("mlp clipped"))
    )
    trace, model = candidate()
    trace.arrays["layers.1.down"] = trace.arrays["layers.1.down"] * np.float32(0.7)
    found = diagnose(trace, model).findings[0]
    assert found.causes == [] and any("best scale 0.7" in line for line in found.known)
    trace.arrays["layers.1.down"] = np.roll(trace.arrays["layers.1.down"] / np.float32(0.7), 2, axis=1)
    assert any("shifted by +2 along the position" in line for line in diagnose(trace, model).findings[0].known)


def test_below_the_floor_nothing_is_named():
    """float32 angles at positions up to 40 in bfloat16 are far below its rounding."""
    assert outcome("rope float32 angles", "bfloat16") == ("below the floor", [])


def test_a_correct_run_has_no_cause():
    found = diagnose(*candidate())
    assert found.verdict.ok and found.stage is None and found.causes == [] and found.exit_code == 0


def test_two_mistakes_at_one_stage():
    trace, (config, params) = candidate()
    settings = Settings.of(config)
    edits = {"act": {"name": "gelu", "swapped": True}}
    g = Equations(settings, Weights(params), Arithmetic("float32"), trace.arrays, trace.inputs, edits)
    trace.arrays["layers.0.act"] = g.compute("layers.0.act").astype(np.float32)
    found = diagnose(trace, (config, params))
    ((name, _),) = found.causes
    assert "mlp: GELU (erf) for SiLU" in name and "mlp: gate and up swapped" in name


def test_two_mistakes_at_two_stages_are_two_findings():
    trace, model = candidate("mlp gelu sigmoid")
    other, _ = candidate("norm eps 1e-4")
    for name in ("layers.0.ln1", "layers.1.ln1"):
        trace.arrays[name] = other.arrays[name] if name == "layers.0.ln1" else trace.arrays[name]
    found = diagnose(trace, model)
    assert found.findings[0].names == ["norm: eps 0.0001"] and found.stage == "ln1"
    assert any(f.names == ["mlp: GELU (sigmoid) for SiLU"] and len(f.stages) == 2 for f in found.findings)


def test_positions_shifted_alike_are_equivalent_at_the_output():
    found = diagnose(*candidate("rope +1"))
    assert found.verdict == Verdict.EQUIVALENT_AT_OUTPUT and found.exit_code == 0
    assert "EQUIVALENT_AT_OUTPUT" in str(found)


def test_permuted_rows_with_the_other_convention_are_equivalent_too():
    """What GGUF does to q_proj and k_proj, with neighbours rotated: other q and k, the same scores."""
    reference = ck.models.Model(GQA, probes.parameters(GQA))
    trace = reference.trace(np.arange(23) * 7 % 257)
    for i in range(2):
        for name in ("q", "k", "q_rope", "k_rope"):
            x = trace.arrays[f"layers.{i}.{name}"]
            half = x.shape[-1] // 2
            trace.arrays[f"layers.{i}.{name}"] = np.stack((x[..., :half], x[..., half:]), -1).reshape(x.shape)
    found = diagnose(trace, reference)
    assert found.verdict == Verdict.EQUIVALENT_AT_OUTPUT
    assert found.causes[0][0] == "linear: rows permuted for the other rope convention" and len(found.findings) == 1


def test_interleaved_weights_with_half_split_rope_are_a_mistake():
    """The same weights rotated by halves: the permutation alone is named, and it is no symmetry."""
    trace, (config, params) = candidate()
    broken = dict(params)
    for i in range(2):
        for name in ("q", "k"):
            for kind in ("weight", "bias"):
                key = f"model.layers.{i}.self_attn.{name}_proj.{kind}"
                w = params[key].reshape(-1, 2, 8, *params[key].shape[1:])
                broken[key] = np.ascontiguousarray(np.swapaxes(w, 1, 2)).reshape(params[key].shape)
    from ckernels.parity.independent import Block

    arrays = Block(broken).forward(**trace.inputs)
    found = diagnose(Trace(config, dict(arrays), trace.inputs), (config, params))
    assert found.causes[0][0] == "linear: rows permuted for the other rope convention" and found.stage == "q"
    assert found.verdict != Verdict.EQUIVALENT_AT_OUTPUT and found.exit_code == 1


# --- backward ---------------------------------------------------------------------------------------------------------


def with_gradients(edits):
    """A float32 run of the equations with gradients; a mistake in the backward equations alone."""
    config, params = GQA, probes.parameters(GQA)
    rng = np.random.default_rng(3)
    ids, targets = rng.integers(0, 257, (2, 2, 21))
    ids[0, :5] = 7  # an id that repeats
    inputs = {"ids": ids, "targets": targets}
    g = Equations(Settings.of(config), Weights(params), Arithmetic("float32"), {}, inputs, edits)
    names = [*stage_names(g.settings, g.has), "loss"]
    names += gradient_names(g.settings, params, names)
    return Trace(config, {name: np.array(g(name), np.float32) for name in names}, inputs), (config, params)


@pytest.mark.parametrize(
    ("edits", "name"),
    [
        ({"d_scores": {"projection": False}}, "backward: a term of the softmax's Jacobian missing"),
        ({"d_residual1": {"projection": False}}, "backward: a term of the norm's Jacobian missing"),
        ({"d_k_rope": {"only": 0}, "d_v": {"only": 0}}, "backward: GQA sum missing (first head of a group)"),
        ({"d_q_proj.weight": {"transposed": True}}, "backward: dW transposed"),
        ({"d_up_proj.weight": {"gain": 2}}, "backward: gradient not zeroed (twice its value)"),
        ({"d_embed_tokens.weight": {"last": True}}, "backward: rows overwritten, not added"),
        ({"d_q": {"inverse": False}, "d_k": {"inverse": False}}, "backward: rope turned forward again"),
        ({"d_gate": {"whole": False}}, "backward: a term of the activation's derivative missing"),
    ],
)
def test_a_mistake_of_the_backward_pass_is_named(edits, name):
    found = diagnose(*with_gradients(edits))
    assert found.findings[0].names == [name], found


# --- the harness ------------------------------------------------------------------------------------------------------


def test_lie_a_name_without_evidence():
    """An error of the size of rounding may be explained by anything small, so it is explained by nothing."""
    trace, model = candidate()
    rng = np.random.default_rng(0)
    x = trace.arrays["layers.0.ln2"]
    trace.arrays["layers.0.ln2"] = (x * (1 + 2e-6 * rng.standard_normal(x.shape))).astype(np.float32)
    found = diagnose(trace, model)
    assert found.stage == "ln2" and found.causes == []


def test_lie_the_catalogue_and_the_planted_mistakes_share_their_code():
    """H3: the second implementation imports nothing of the equations."""
    import ast
    import inspect

    from ckernels.parity import independent

    tree = ast.parse(inspect.getsource(independent))
    modules = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert modules <= {"__future__", "math", "numpy"}


def test_lie_a_planted_mistake_that_changes_nothing():
    right = candidate()[0].arrays
    for fault in (*FAULTS, *FOREIGN):
        start = 4000 if fault == "rope float32 angles" else 0
        plain = candidate("", start=start)[0].arrays if start else right
        assert any(not np.array_equal(a, plain[n]) for n, a in candidate(fault, start=start)[0].arrays.items()), fault


def test_the_acceptance_program_counts_and_fails(monkeypatch, capsys):
    monkeypatch.setattr(acceptance, "FAULTS", {"rope sign": "rope: sign", "mlp no gate": "mlp: no gate"})
    monkeypatch.setattr(acceptance, "FOREIGN", {"mlp clipped": "layers.0.act"})
    assert acceptance.main(["--dtype", "float32", "--seeds", "1"]) == 0
    assert "2 of 2 mistakes named (2 uniquely), 0 wrong names; 1 of 1" in capsys.readouterr().out
    monkeypatch.setattr(acceptance, "FAULTS", {"rope sign": "rope: upside down"})
    assert acceptance.main(["--dtype", "float32", "--seeds", "1", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["float32"]["known"] == {"wrong name": 1}


def test_plain_values_for_json():
    told = json.loads(json.dumps(diagnose(*candidate("attention mask ignored")).to_dict(), allow_nan=False))
    assert told["causes"][0]["name"] == "attention: mask ignored" and told["stage"] == "probs" and told["layer"] == 0
    assert told["findings"][0]["fix"] and CONFIG["num_hidden_layers"] == len(told["findings"][0]["stages"])
