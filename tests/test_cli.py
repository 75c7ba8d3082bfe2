"""The command line: every exit code, every format, and what it says to wrong usage."""

import io
import json
import os
import subprocess
import sys
import types
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from safetensors.numpy import save_file

from ckernels import cli
from ckernels.parity import compare, levels, report

COMMANDS = ["parity", "compare", "diagnose", "report", "bench", "generate", "fetch", "doctor"]


@pytest.fixture
def level(monkeypatch):
    """Put a level of one's own in the place of "ops"; returns a function that sets its cases."""
    module = types.ModuleType("ckernels.parity.planted")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(levels.LEVELS, "ops", (module.__name__, "planted"))

    def plant(*cases):
        def run(options):
            for case in cases:
                if isinstance(case, BaseException):
                    raise case
                yield case

        module.run = run

    return plant


def case(verdict, name=None, **others):
    return levels.Case("ops", name or f"thing {verdict}", "forward", "float32", "avx2", verdict, **others)


@pytest.mark.parametrize("arguments", [[], *([c] for c in COMMANDS)])
def test_help_is_complete(arguments, capsys):
    assert cli.main([*arguments, "--help"]) == 0
    text = capsys.readouterr().out
    assert "usage: ck" in text
    if not arguments:
        assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage"),
        (["nonsense"], "invalid choice"),
        (["parity", "nonsense"], "invalid choice"),
        (["parity", "--quick", "--full"], "not allowed with"),
        (["parity", "--steps", "0"], "not 1 or more"),
        (["parity", "--steps", "x"], "invalid"),
        (["parity", "--lr", "-1"], "positive"),
        (["parity", "--seed", "-1"], "negative"),
        (["parity", "ops", "--op", "nonsense"], "no op is called 'nonsense'"),
        (["parity", "ops", "--isa", "mmx"], "no instruction set is called 'mmx'"),
        (["parity", "--format", "pdf"], "invalid choice"),
        (["report"], "required"),
        (["report", "/nowhere/a.json"], "No such file"),
        (["compare", "only-one"], "required"),
        (["compare", "/nowhere/a.npy", "/nowhere/b.npy"], "no such file"),
        (["generate", "/nowhere/model.gguf", "hello"], "no such file"),
        (["generate", "smollm2-135m", "hello", "--top-p", "1.5"], "at most 1"),
        (["generate", __file__, "hello"], "test_cli.py"),
        (["fetch", "nonsense"], "smollm2-135m"),
    ],
)
def test_wrong_usage_exits_with_4(arguments, message, capsys):
    assert cli.main(arguments) == 4
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        (["EXACT", "WITHIN_BUDGET", "NOT_MEASURED"], 0),
        (["EXACT", "EXCESS_DRIFT"], 1),
        (["EXACT", "STRUCTURAL", "VACUOUS", "UNDECIDED"], 1),
        (["EXACT", "REFERENCE_WRONG"], 1),
        (["EXACT", "UNMEASURED"], 1),
        (["EXACT", "ERROR"], 1),
        (["EXACT", "UNDECIDED"], 2),
        (["UNDECIDED"], 2),
        (["EXACT", "VACUOUS"], 3),
        (["NOT_MEASURED"], 3),
    ],
)
def test_exit_codes(level, verdicts, code, capsys):
    level(*(case(v, note=f"number {i}") for i, v in enumerate(verdicts)))
    assert cli.main(["parity", "ops"]) == code
    out = capsys.readouterr().out
    assert all(v in out for v in verdicts if v != "NOT_MEASURED")
    assert all(f"number {i}" in out for i in range(len(verdicts)))


def test_a_level_that_yields_nothing_fails(level, capsys):
    level()
    assert cli.main(["parity", "ops"]) == 1
    assert "UNMEASURED" in capsys.readouterr().out


def test_a_level_that_crashes_fails_and_the_others_run(level, capsys):
    level(case("EXACT"), RuntimeError("planted crash"))
    assert cli.main(["parity", "ops"]) == 1
    out = capsys.readouterr().out
    assert "planted crash" in out and "EXACT" in out


def test_two_results_under_one_name_fail(level, capsys):
    level(case("EXACT", "one"), case("WITHIN_BUDGET", "one"))
    assert cli.main(["parity", "ops"]) == 1
    assert "'one forward float32 avx2' is there 2 times" in capsys.readouterr().out


def test_a_missing_level_is_unmeasured(monkeypatch, capsys):
    monkeypatch.setitem(levels.LEVELS, "ops", ("ckernels.parity.absent", "absent"))
    assert cli.main(["parity", "ops"]) == 1
    assert "UNMEASURED" in capsys.readouterr().out


def test_an_internal_error_exits_with_5(monkeypatch, capsys):
    monkeypatch.setattr("ckernels.parity.machine.machine", lambda: 1 / 0)
    assert cli.main(["parity", "ops"]) == 5
    error = capsys.readouterr().err
    assert error == "ck parity: ZeroDivisionError: division by zero\n"
    assert cli.main(["--debug", "parity", "ops"]) == 5
    assert "Traceback" in capsys.readouterr().err
    assert cli.main(["parity", "ops", "--debug"]) == 5
    assert "Traceback" in capsys.readouterr().err


def test_json(level, capsys):
    found = compare(np.float32([1, 2, np.nan]), np.array([1, 2, 3.0]))
    level(levels.case_of("ops", "thing", "forward", found, isa="avx2"), case("WITHIN_BUDGET", margin=float("inf")))
    assert cli.main(["parity", "ops", "--format", "json", "--seed", "3"]) == 1
    document = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert document["schema"] == report.SCHEMA == 1
    assert set(document) == {"schema", "tool", "machine", "options", "summary", "cases"}
    assert document["summary"]["exit_code"] == 1 and document["options"]["seed"] == 3
    first = document["cases"][0]
    fields = "level name what dtype isa verdict margin error peer_error ratio nmse note seconds data report"
    assert set(first) == set(fields.split())
    assert first["verdict"] == "STRUCTURAL" and first["margin"] is None


def test_junit(level, capsys):
    level(case("EXACT"), case("EXCESS_DRIFT", note="<too> much\x07"), case("NOT_MEASURED", note="no such device"))
    assert cli.main(["parity", "ops", "--format", "junit"]) == 1
    suite = ElementTree.fromstring(capsys.readouterr().out.encode()).find("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    failure = suite.find("testcase/failure")
    assert failure.get("message") == "<too> much" and failure.get("type") == "EXCESS_DRIFT"


def test_save(level, tmp_path, capsys):
    level(case("WITHIN_BUDGET", margin=0.5))
    assert cli.main(["parity", "ops", "--save", str(tmp_path / "new")]) == 0
    assert json.loads((tmp_path / "new" / "report.json").read_text())["summary"]["passed"] == 1
    assert (tmp_path / "new" / "report.txt").read_text() == capsys.readouterr().out


def test_a_download_that_fails_exits_with_1(monkeypatch, capsys):
    def offline(name):
        raise OSError("no network: try again")

    monkeypatch.setattr("ckernels.io.fetch.fetch", offline)
    for arguments in (["fetch", "smollm2-135m"], ["generate", "smollm2-135m", "hello"]):
        assert cli.main(arguments) == 1
        assert "no network" in capsys.readouterr().err


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "ckernels.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        **options,
    )


def test_a_pipe_gets_neither_colours_nor_progress():
    done = run("parity", "ops", "--op", "rms_norm", "--quick")
    assert done.returncode in (0, 3), done.stdout + done.stderr  # 3: no PyTorch here
    assert "\x1b" not in done.stdout and "\r" not in done.stdout
    assert done.stderr == ""


def test_a_reader_that_leaves_makes_no_traceback():
    done = subprocess.run(
        f"{sys.executable} -m ckernels.cli doctor | true", shell=True, capture_output=True, text=True, timeout=100
    )
    assert done.stderr == ""


def test_doctor():
    done = run("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "self-test:" in done.stdout and "instruction sets:" in done.stdout and "CUDA:" in done.stdout


def test_doctor_finds_a_wrong_op(monkeypatch, capsys):
    import ckernels as ck

    right = ck.add
    monkeypatch.setattr(ck, "add", lambda x, y: right(x, y) * np.float32(1 + 1e-6))
    assert cli.main(["doctor"]) == 1
    assert "self-test FAILED: add" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["ckernels", "ckernels.parity", "ckernels.cli", "ckernels.parity.specs"])
def test_importing_brings_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == 0


# ck compare


@pytest.fixture
def arrays(tmp_path):
    rng = np.random.default_rng(1)
    exact = rng.standard_normal((5, 7))
    np.save(tmp_path / "exact.npy", exact)
    np.save(tmp_path / "right.npy", exact.astype(np.float32))
    np.save(tmp_path / "near.npy", (exact * (1 + 1e-6)).astype(np.float32))
    np.save(tmp_path / "wrong.npy", (exact + 1).astype(np.float32))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["right.npy", "exact.npy"], 0),
        (["near.npy", "exact.npy"], 2),
        (["near.npy", "exact.npy", "--bound", "1e-5"], 0),
        (["near.npy", "exact.npy", "--bound", "1e-9"], 1),
        (["near.npy", "exact.npy", "--peer", "right.npy"], 1),
        (["wrong.npy", "exact.npy"], 1),
        (["right.npy", "right.npy", "--bitwise"], 0),
        (["right.npy", "near.npy", "--bitwise"], 1),
        (["exact.npy", "right.npy", "--bitwise"], 1),
        (["right.npy", "exact.npy", "--peer", "wrong.npy", "--bound", "1e-6"], 1),
    ],
)
def test_compare_arrays(arrays, arguments, code, monkeypatch, capsys):
    monkeypatch.chdir(arrays)
    assert cli.main(["compare", *arguments]) == code, capsys.readouterr().out


def test_compare_by_name(arrays, capsys):
    exact = np.load(arrays / "exact.npy")
    np.savez(arrays / "a.npz", x=exact.astype(np.float32), y=exact[1:].astype(np.float32), extra=exact)
    np.savez(arrays / "b.npz", x=exact, y=exact, absent=exact)
    assert cli.main(["compare", str(arrays / "a.npz"), str(arrays / "b.npz"), "--format", "json"]) == 1
    verdicts = {c["name"]: c["verdict"] for c in json.loads(capsys.readouterr().out)["cases"]}
    assert verdicts == {"x": "EXACT", "y": "STRUCTURAL", "absent": "UNMEASURED", "extra": "UNMEASURED"}


def test_compare_folders(arrays):
    for name, side in (("one", "right"), ("two", "exact")):
        (arrays / name).mkdir()
        os.link(arrays / f"{side}.npy", arrays / name / "x.npy")
    assert cli.main(["compare", str(arrays / "one"), str(arrays / "two")]) == 0


def test_compare_safetensors(arrays):
    save_file({"x": np.load(arrays / "right.npy")}, arrays / "x.safetensors")
    assert cli.main(["compare", str(arrays / "x.safetensors"), str(arrays / "exact.npy")]) == 0


@pytest.mark.parametrize(
    "name", ["broken.npy", "broken.npz", "broken.safetensors", "other.txt", "folder", "pickled.npy"]
)
def test_compare_refuses_what_it_cannot_read(arrays, name, capsys):
    if name == "folder":
        (arrays / name).mkdir()
    elif name == "pickled.npy":
        np.save(arrays / name, np.array([{}], object), allow_pickle=True)
    else:
        (arrays / name).write_bytes(b"not an array file")
    assert cli.main(["compare", str(arrays / name), str(arrays / "exact.npy")]) == 4
    assert name in capsys.readouterr().err


def test_a_terminal_gets_colours_and_whole_lines(level, monkeypatch):
    """No cell is cut to the width of the terminal: the name and the verdict are what is looked for."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    long = "a_name_that_is_much_longer_than_any_column_of_a_narrow_terminal_would_be"
    output = report.TextReport(stream)
    output.progress("working")
    output.level("title", [case("EXACT", long, error=1e-7), case("EXCESS_DRIFT", note="why")], 1.0)
    output.end(report.Summary.of([case("EXACT")], 1.0))
    text = stream.getvalue()
    assert "\x1b[32mEXACT" in text and "EXCESS_DRIFT" in text and "why" in text
    assert any(long in line and "1.00e-07" in line and "EXACT" in line for line in text.splitlines())


def test_generate_prints_text_as_it_comes(monkeypatch, tmp_path, capsys):
    import ckernels.models
    from ckernels.io.tokenizer import Tokenizer
    from test_tokenizer import small

    tokenizer = small()
    asked = {}

    class Model:
        def generate(self, ids, **options):
            asked.update(options, ids=list(ids))
            yield from tokenizer.encode("é ab")
            yield tokenizer.eos
            pytest.fail("nothing comes after the end of the text")

    monkeypatch.setattr(Tokenizer, "from_gguf", classmethod(lambda cls, path: tokenizer))
    monkeypatch.setattr(ckernels.models, "load", lambda path: Model())
    (tmp_path / "some.gguf").touch()
    assert cli.main(["generate", str(tmp_path / "some.gguf"), "ab ", "-n", "9", "--top-k", "3", "--seed", "4"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "ab é ab\n"
    assert "tokens/s" in captured.err
    assert asked["ids"] == tokenizer.encode("ab ")
    assert (asked["max_new_tokens"], asked["temperature"], asked["top_k"], asked["seed"]) == (9, 0.0, 3, 4)
    assert cli.main(["generate", str(tmp_path / "some.gguf"), ""]) == 4
    assert cli.main(["generate", str(tmp_path), "a folder"]) == 4


@pytest.mark.parametrize("level", ["layer", "stages", "forward", "train", "invariance"])
def test_a_level_without_the_dtype_is_not_measured_and_no_pass(level, capsys):
    assert cli.main(["parity", level, "--dtype", "bfloat16,float16"]) == 3
    assert "this level runs in float32, not in float16, bfloat16" in capsys.readouterr().out


def test_a_dtype_without_kernels_is_not_measured_and_no_pass(monkeypatch, capsys):
    monkeypatch.setattr("ckernels.parity.ops.build_info", lambda: {"dtypes": "float32,float16"})
    assert cli.main(["parity", "ops", "--dtype", "bfloat16"]) == 3
    assert "no kernels for bfloat16 in this build" in capsys.readouterr().out


def test_several_dtypes_may_be_asked_for(capsys):
    assert cli.main(["parity", "ops", "--op", "add", "--dtype", "bfloat16, float32", "--format", "json"]) == 0
    cases = json.loads(capsys.readouterr().out)["cases"]
    assert {c["dtype"] for c in cases if c["isa"] == "reference"} == {"float32", "bfloat16"}


def test_an_unknown_dtype_is_wrong_usage(capsys):
    assert cli.main(["parity", "ops", "--dtype", "float23"]) == 4
    assert "no dtype is called 'float23'; there are float32, float16, bfloat16" in capsys.readouterr().err
