"""probe(): inputs that tell mistakes apart. shrink(): the smallest input with the same mistake, as one pytest file."""

import sys
import types

import numpy as np
import pytest

from ckernels.parity import Trace, diagnose, probe, shrink
from ckernels.parity.acceptance import candidate, rerun


def test_a_probe_tells_what_the_first_inputs_did_not():
    """With 11 tokens the pads of tiles of 8 and of 16 are alike."""
    trace, model = candidate("attention key tail", tokens=11)
    first = diagnose(trace, model)
    assert first.findings[0].names == ["attention: key tail not masked (tiles of 8 or 16)"]
    chosen = probe(first, model)
    assert len(chosen.told) == 1 and not chosen.left and "tells" in str(chosen)
    again = diagnose(rerun("attention key tail", chosen.inputs), model)
    assert again.findings[0].names == ["attention: key tail not masked (tiles of 16)"]


def test_a_probe_for_a_class_of_eps():
    """Rows of ordinary size leave all small eps alike; words of small RMS show most of them."""
    _, model = candidate()
    large = np.argsort(-np.linalg.norm(model[1]["model.embed_tokens.weight"], axis=1))[:20].reshape(2, 10)
    first = diagnose(rerun("norm eps 1e-4", {"ids": large}, "bfloat16"), (model[0], candidate("", "bfloat16")[1][1]))
    assert first.verdict.ok  # below the floor there
    first = diagnose(rerun("norm eps dropped", {"ids": large}), model)
    assert len(first.findings[0].names) > 2
    chosen = probe(first, model)
    assert "small" in chosen.why and len(chosen.told) > len(chosen.left)
    names = diagnose(rerun("norm eps dropped", chosen.inputs), model).findings[0].names
    assert "norm: eps dropped" in names and len(names) <= 2


def test_mistakes_that_are_the_same_stay_a_class_and_it_is_said():
    trace, model = candidate("attention scale 1/D")
    chosen = probe(diagnose(trace, model), model)
    assert not chosen.told and "may be one and the same" in str(chosen)
    assert probe(diagnose(*candidate("rope sign")), model) is None


def test_shrink_keeps_the_mistake_and_little_else(tmp_path):
    _, model = candidate()
    ids = np.random.default_rng(1).integers(0, 101, (2, 9))
    small = shrink(lambda inputs: rerun("attention mask ignored", inputs), model, {"ids": ids})
    assert small.inputs["ids"].tolist() == [[0, 0, 0]]  # with two, a mask that is off by one would do as well
    assert small.diagnosis.causes[0][0] == "attention: mask ignored" and "1 x 3 tokens" in str(small)


def test_shrink_refuses_a_run_that_is_right():
    _, model = candidate()
    with pytest.raises(ValueError, match="there is nothing to shrink"):
        shrink(lambda inputs: rerun("", inputs), model, {"ids": np.arange(4)})


def case(path, monkeypatch, run, model):
    """The test function of a written file, whose port is a module that is not there."""
    port = types.ModuleType("port")
    port.run, port.model = run, lambda: model
    monkeypatch.setitem(sys.modules, "port", port)
    names = {}
    exec(compile(path.read_text(), path.name, "exec"), names)
    (test,) = (value for name, value in names.items() if name.startswith("test_"))
    return test


def test_the_file_fails_until_the_mistake_is_mended(tmp_path, monkeypatch):
    _, model = candidate()
    small = shrink(lambda inputs: rerun("mlp no gate", inputs), model, {"ids": np.arange(3)})
    path = tmp_path / "test_case.py"
    small.write(path, "port:run", "port:model")
    assert path.read_text().startswith('"""mlp: no gate."""')
    with pytest.raises(AssertionError, match=r"layers\.0\.act +STRUCTURAL"):
        case(path, monkeypatch, lambda inputs: rerun("mlp no gate", inputs), model)()
    case(path, monkeypatch, lambda inputs: rerun("", inputs), model)()
    # H2: a candidate that no longer has the stage is no pass.
    with pytest.raises(AssertionError, match="no longer has the stages"):
        case(path, monkeypatch, lambda inputs: Trace(model[0], {}, inputs), model)()
    with pytest.raises(ValueError, match="must be of the form 'module:function'"):
        small.write(path, "port.run", "port:model")
