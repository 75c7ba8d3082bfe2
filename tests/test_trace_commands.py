"""ck compare and ck diagnose on saved traces: what they say, and every exit code."""

import json
import struct

import numpy as np
import pytest

import ckernels as ck
from ckernels import cli
from ckernels.parity import Trace
from ckernels.parity.acceptance import candidate


@pytest.fixture
def folders(tmp_path):
    """Two traces, one with the mistake, and a reference that brings its parameters."""

    def make(fault="", name="a", params=False):
        trace, (config, weights) = candidate(fault, tokens=11)
        Trace(config, trace.arrays, trace.inputs | (weights if params else {})).save(tmp_path / name)
        return str(tmp_path / name)

    return make


def test_diagnose_names_the_mistake(folders, capsys):
    code = cli.main(["diagnose", folders("mlp gelu erf", "a"), folders("", "b", params=True)])
    out = capsys.readouterr().out
    assert code == 1
    assert "layers.0-1.act: mlp: GELU (erf) for SiLU.\n  fix: the activation is SiLU" in out
    assert out.index("layers.0.ln1") < out.index("STRUCTURAL: first at layers.0.act")


@pytest.mark.parametrize(
    ("fault", "code", "verdict"),
    [("", 0, "WITHIN_BUDGET"), ("rope +1", 0, "EQUIVALENT_AT_OUTPUT"), ("rope sign", 1, "STRUCTURAL")],
)
def test_exit_codes_and_json(folders, fault, code, verdict, capsys):
    assert cli.main(["diagnose", folders(fault), folders("", "b", params=True), "--format", "json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert (told["schema"], told["exit_code"], told["verdict"]) == (1, code, verdict)


def test_a_deviation_may_be_assumed(folders, capsys):
    arguments = ["diagnose", folders("rope sign"), folders("", "b", params=True), "--assume"]
    assert cli.main([*arguments, "rope: sign"]) == 0
    assert cli.main([*arguments, "rope: upside down"]) == 4
    assert "no hypothesis is called 'rope: upside down'" in capsys.readouterr().err


def test_a_run_that_shows_nothing_is_vacuous(folders, tmp_path):
    trace, (config, params) = candidate(tokens=11)
    Trace(config, {}, trace.inputs).save(tmp_path / "empty")
    assert cli.main(["diagnose", str(tmp_path / "empty"), folders("", "b", params=True)]) == 3


def test_wrong_usage(folders, tmp_path, capsys):
    a, b = folders(), folders("", "b")
    for arguments, says in (
        ([a, b], "neither trace has the parameters"),
        ([str(tmp_path), b], "no trace: a folder with manifest.json"),
        ([a, "nowhere.gguf"], "nowhere.gguf: no such file"),
        ([a, "nonsense"], "nonsense: no such file, and no model of that name"),
        ([a, b, "--model", "nonsense"], "no model of that name"),
    ):
        assert cli.main(["diagnose", *arguments]) == 4, says
        assert says in capsys.readouterr().err


def test_a_model_from_a_folder(tmp_path, capsys):
    """B as Hugging Face lays a model out, written here by hand."""
    config = ck.models.configs.tiny
    model = ck.models.Model(config, seed=3)
    from safetensors.numpy import save_file

    save_file(model.params, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
    model.trace(np.arange(9)).save(tmp_path / "trace")
    assert cli.main(["diagnose", str(tmp_path / "trace"), str(tmp_path)]) == 0
    assert "all within what float32 explains" in capsys.readouterr().out


def test_compare_two_traces_without_parameters(folders, capsys):
    """Inputs that agree and an output that differs: the stage is named, small differences are undecided."""
    a, b = folders("mlp gelu erf"), folders("", "b")
    assert cli.main(["compare", a, b]) == 1
    assert "the first whose inputs agree (to 0) and whose output differs is layers.0.act" in capsys.readouterr().out
    assert cli.main(["compare", a, b, "--format", "junit"]) == 4
    capsys.readouterr()
    assert cli.main(["compare", b, b]) == 0
    assert "EXACT" in capsys.readouterr().out
    trace = Trace.load(b)
    trace.arrays["layers.1.down"] = trace.arrays["layers.1.down"] * np.float32(1 + 1e-6)
    trace.save(a)
    assert cli.main(["compare", a, b, "--format", "json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] == "UNDECIDED" and "--model" in told["summary"]
    del trace.arrays["layers.1.down"]
    trace.save(a)
    assert cli.main(["compare", a, b]) == 1
    assert "UNMEASURED" in capsys.readouterr().out


def test_compare_two_traces_with_parameters_is_a_diff(folders, capsys):
    assert cli.main(["compare", folders("norm 1+w"), folders("", "b", params=True)]) == 1
    out = capsys.readouterr().out
    assert "The first is layers.0.ln1" in out and "inherited" in out


def test_a_trace_of_hashes(folders, tmp_path, capsys):
    right, wrong = Trace.load(folders("", "b")), Trace.load(folders("rope sign"))
    right.save(tmp_path / "right", hashes=True)
    wrong.save(tmp_path / "wrong", hashes=True)
    again = Trace.load(tmp_path / "right")
    assert again.arrays == {} and again.hashes == right.hashes and list(again.inputs) == list(right.inputs)
    again.save(tmp_path / "again")
    assert Trace.load(tmp_path / "again").hashes == right.hashes
    assert sum(p.stat().st_size for p in (tmp_path / "right").iterdir()) < 20_000
    assert cli.main(["compare", str(tmp_path / "right"), str(tmp_path / "b")]) == 0
    capsys.readouterr()
    assert cli.main(["compare", str(tmp_path / "wrong"), str(tmp_path / "right")]) == 2
    assert "the first that differs by a bit is layers.0.q_rope" in capsys.readouterr().out
    assert cli.main(["diagnose", str(tmp_path / "wrong"), folders("", "b", params=True)]) == 4
    assert "holds hashes alone" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "right" / "manifest.json").read_text())
    del manifest["hashes"]["logits"]["sha256"]
    (tmp_path / "right" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"hashes\['logits'\]: needs 'sha256'"):
        Trace.load(tmp_path / "right")


def test_bfloat16_in_the_folder_comes_as_float32(tmp_path):
    header = json.dumps({"logits": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    data = struct.pack("<Q", len(header)) + header + struct.pack("<2H", 0x3F80, 0xC040)
    (tmp_path / "arrays.safetensors").write_bytes(data)
    (tmp_path / "inputs.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    manifest = {"format": "ckernels-trace", "schema": 1, "config": {}, "inputs": {},
                "arrays": {"logits": {"shape": [2], "dtype": "bfloat16"}}}  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    logits = Trace.load(tmp_path).arrays["logits"]
    assert logits.dtype == np.float32 and logits.tolist() == [1.0, -3.0]
