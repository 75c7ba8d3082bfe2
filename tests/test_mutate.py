"""``ck mutate``: the library has none of the faults, the test build has them all, the checks see them and nothing else."""

import json
import re
import subprocess

import pytest

import ckernels as ck
import native
from ckernels import _ck, cli
from ckernels.parity import mutate, mutate_build, mutate_checks, mutate_report, mutate_wiring

FAULTS = mutate_build.listed(native.ROOT)
ISA = next(isa for isa in ck.isas() if isa not in ("amx", "reference"))


@pytest.fixture(scope="module")
def kept():
    """A cache folder that lasts from run to run: the test build, of float32 kernels, is compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CK_CACHE_DIR", str(native.ROOT / "build" / "tests" / "cache"))
        yield


@pytest.fixture(scope="module")
def folder(kept):
    return mutate_build.made(native.ROOT, ISA, ("float32",))


def run(**options):
    return mutate.run(**({"dtypes": ("float32",), "names": ("ops",), "source": native.ROOT} | options))


# ---- the two builds ----


def test_every_fault_stands_in_the_sources_and_the_reverse():
    sources = [path for path in (native.ROOT / "csrc").rglob("*.[ch]") if path.stem != "faults"]
    asked = {name for path in sources for name in re.findall(r"CK_FAULT\((\w+)\)", path.read_text())}
    assert asked == set(FAULTS) and len(set(FAULTS.values())) == len(FAULTS)
    assert len(mutate.catalogue(native.ROOT)) >= 80


def test_the_library_has_none_of_them(folder):
    """No function, no symbol, no string, although the test build has all three."""
    library, planted = (open(path, "rb").read() for path in (_ck.__file__, folder / "_ck.so"))
    words = [b"ck_fault", *(what.encode() + b"\0" for what in FAULTS.values())]  # a name may be an op's: gelu_tanh
    assert [word for word in words if word not in planted] == []
    assert [word for word in words if word in library] == []
    assert not {"plant", "asked", "faults"} & set(dir(_ck))
    symbols = subprocess.run(["nm", "-a", _ck.__file__], capture_output=True, text=True).stdout
    assert "ck_fault" not in symbols


@pytest.mark.parametrize("family", ["rope", "attention", "kv", "loss", "memory"])
def test_every_line_of_faults_has_its_names(family):
    assert sum(name.startswith(family) for name in FAULTS) > 5


# ---- what the checks see ----


@pytest.fixture(scope="module")
def some(folder):
    """One run for the tests that follow: faults of five ops, under two checks."""
    faults = ["rope_sign", "rope_float_angles", "norm_eps_tenfold", "norm_cast_early", "norm_after_rope", "mlp_swapped",
              "memory_read_past", "memory_write_past", "memory_unwritten", "memory_input_modified", "norm_widened"]  # fmt: skip
    ops = ("rope", "rope_table", "rms_norm", "qk_norm_rope", "swiglu", "add")
    return run(faults=faults, names=("ops", "memory"), of=ops)


def test_faults_are_killed_and_right_code_is_not(some):
    assert not some.alarms and not some.holes(), mutate_report.text(some)
    assert all(some.killed(fault) for fault in some.faults)
    assert some.exit_code == 0
    assert some.cell("norm_eps_tenfold", "ops", "float32").note.startswith("rms_norm")


def test_a_check_that_compares_a_thing_with_itself_sees_a_symmetry(some):
    assert some.cell("rope_sign", "memory", "float32").state == mutate.SAME
    assert some.cell("rope_sign", "ops", "float32").state == mutate.KILLED
    assert some.cell("memory_write_past", "memory", "float32").state == mutate.KILLED
    assert some.cell("mlp_swapped", "train", "float32").state == mutate.UNREACHED


def test_thresholds_are_asked_about_the_same_faults(some):
    rows = {name: rest for name, *rest in some.thresholds("float32")}
    live, faults, refused, correct = rows["the three-party rule"]
    assert live == 0 and refused == 0 and faults >= 8 and correct > 50
    assert rows["correlation >= 0.99"][0] > 0, "which sees next to nothing"
    assert rows["NMSE <= 5e-4"][0] >= rows["allclose 1e-5"][0]


def test_reports_say_the_same(some):
    text, table, told = mutate_report.text(some), mutate_report.markdown(some), mutate_report.to_dict(some)
    assert told["schema"] == 1 and told["summary"] in text and told["summary"] in table
    assert json.loads(json.dumps(told, allow_nan=False))["exit_code"] == 0
    for fault in some.faults:
        assert f"| `{fault}` |" in table and f"\n{fault} " in text
    assert text.splitlines()[2].split()[:5] == ["rope_sign", "K", "=", "rope:", "the"]


# ---- holes, crashes, and what is missing ----


def told(fault, **fields):
    return {"fault": fault, "killed": "", "margin": 0.1, "change": 0.0, "refused": [], "check": "ops",
            "dtype": "float32", "label": "rms_norm forward"} | fields  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "state", "code"),
    [
        ({"change": 30.0}, mutate.HOLE, 1),
        ({"change": None}, mutate.HOLE, 1),
        ({"change": 0.5}, mutate.FLOOR, 1),
        ({}, mutate.SAME, 1),
        ({"killed": "off"}, mutate.KILLED, 0),
    ],
)
def test_what_lives_everywhere_is_a_hole(seen, state, code):
    result = mutate.Result({"a": "what"}, ("ops",), ("float32",))
    mutate._add(result, told("a", **seen))
    assert result.cell("a", "ops", "float32").state == state
    assert result.exit_code == code and bool(result.holes()) == bool(code)
    assert ("HOLE: a" in mutate_report.text(result)) == bool(code)


def test_a_survivor_of_one_dtype_is_explained_by_size():
    result = mutate.Result({"a": "what"}, ("ops",), ("float32", "bfloat16"))
    mutate._add(result, told("a", killed="off"))
    mutate._add(result, told("a", dtype="bfloat16", change=0.3))
    assert list(result.survivors()) == [("a", "bfloat16", mutate.FLOOR, 0.3)] and result.exit_code == 0
    mutate._add(result, told("a", dtype="bfloat16", change=3.0))
    assert result.holes() == [("a", "bfloat16", "changes more than rounding may, and no check notices")]


def test_a_fault_that_nothing_comes_by_is_a_hole_and_nothing_planted_is_vacuous():
    result = mutate.Result({"a": "what"}, ("ops",), ("float32",))
    assert result.holes() == [("a", "", "no check comes by it")] and result.exit_code == 1
    assert mutate.Result({}, ("ops",), ("float32",)).exit_code == 3


def test_a_false_alarm_fails_the_run():
    result = mutate.Result({"a": "what"}, ("ops",), ("float32",))
    mutate._add(result, told("a", killed="off"))
    clean = {"clean": "y: too far", "check": "ops", "label": "x", "dtype": "float32", "results": 4, "refusals": {}}
    mutate._clean(result, clean)
    assert result.exit_code == 1 and "FALSE ALARM: ops x in float32: y: too far" in mutate_report.text(result)


def test_a_fault_that_crashes_is_killed_and_the_others_are_still_asked(tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import json, os, sys\n"
        "job = json.loads(sys.stdin.readline())\n"
        "say = lambda **told: print(json.dumps(told), flush=True)\n"
        "say(total=1)\n"
        "say(begin=0, check='ops', label='rms_norm forward', dtype='float32')\n"
        "for fault in job['faults']:\n"
        "    if fault in job['skip']: continue\n"
        "    say(fault=fault)\n"
        "    if fault == 'b': os.abort()\n"
        f"    say(cell={told('?')!r} | {{'fault': fault, 'killed': 'off'}})\n"
        "say(done=True)\n"
    )
    result = mutate.Result(dict.fromkeys("abc", "what"), ("ops",), ("float32",))
    job = {"faults": list("abc"), "from": 0, "skip": []}
    assert mutate._attend(job, result, lambda *told: None, worker)
    assert job["skip"] == ["a", "b"] and "crashed (signal 6)" in result.cell("b", "ops", "float32").note
    assert not mutate._attend(job, result, lambda *told: None, worker)
    assert [len(result.cells), result.exit_code] == [3, 0]


def test_what_is_missing_is_said(tmp_path, monkeypatch, capsys):
    assert cli.main(["mutate", "--source", str(tmp_path)]) == 1
    assert "no checkout of the sources" in capsys.readouterr().err
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("CK_CACHE_DIR", str(tmp_path))
    assert cli.main(["mutate", "--source", str(native.ROOT)]) == 1
    assert "no compiler: no-such-compiler is not on the path" in capsys.readouterr().err
    for wrong in ["--check", "nothing"], ["--fault", "nothing"], ["--op", "nothing"], ["--correct", "0"]:
        assert cli.main(["mutate", "--source", str(native.ROOT), *wrong]) == 4
        assert "nothing" in capsys.readouterr().err or wrong[1] == "0"


def test_the_list(capsys):
    assert cli.main(["mutate", "--list", "--source", str(native.ROOT)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(mutate.catalogue(native.ROOT)) and lines[0].startswith("rope_interleaved")


def test_correct_code_raises_no_alarm_and_wrong_code_does(capsys, monkeypatch):
    command = ["mutate", "--correct", "2", "--check", "ops", "--op", "rms_norm", "--dtype", "float32"]
    assert cli.main(command) == 0
    assert capsys.readouterr().out == "0 false alarms in 4 checks of correct runs, 2 seeds\n"
    with mutate_wiring.planted("norm_widened"):
        assert cli.main([*command, "--format", "json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["false_alarms"]) == 2
    assert ck.rms_norm is mutate_wiring.WIRING["norm_widened"][1]()[0].owner.rms_norm, "and is itself again"


def test_thresholds_are_what_their_names_say():
    import numpy as np

    right = np.linspace(1, 2, 100)
    assert mutate_checks.refusing(right, right) == set()
    assert mutate_checks.refusing(2 * right, right) == {
        "NMSE <= 5e-4", "allclose 1e-2", "allclose 1e-3", "allclose 1e-5"}  # fmt: skip
    assert mutate_checks.refusing(-right, right) == set(mutate_checks.THRESHOLDS)
    assert mutate_checks.refusing(right + 2e-4, right) == {"allclose 1e-5"}
    assert mutate_checks.refusing(np.full(100, np.nan), right) == set(mutate_checks.THRESHOLDS)
    assert mutate_checks.refusing(np.full(3, -np.inf), np.full(3, -np.inf)) == set()
