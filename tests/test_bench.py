"""`ck bench`: every op has cases; text and JSON; exit codes; without PyTorch; what a call hides in memory."""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

import ckernels as ck
import native
from ckernels import cli
from ckernels.bench import inputs, limits, options, report, session, timing

OPS = dict(re.findall(r'^CK_(?:OP|LAYER)\((\w+), "(\w+)"\)', (native.ROOT / "csrc/ops.def").read_text(), re.M))


def chosen(*arguments):
    """Return the options of a command line."""
    return options.add_options(argparse.ArgumentParser()).parse_args(arguments)


def listed(capsys, *arguments):
    """Return the rows of ``ck bench --list``."""
    assert cli.main(["bench", "--list", *arguments]) == 0
    return [re.split(r"\s{2,}|(?<=\w) (?=float|bfloat)", row.strip()) for row in capsys.readouterr().out.splitlines()]


@pytest.fixture
def benches(monkeypatch, tmp_path):
    """Put bench files of one's own in place of the checkout's; returns the function that writes one."""

    def write(name, text):
        path = tmp_path / f"bench_{name}.py"
        path.write_text(textwrap.dedent(text))
        files = {p.stem.removeprefix("bench_"): p for p in sorted(tmp_path.glob("bench_*.py"))}
        monkeypatch.setattr(session, "find_benches", lambda: files)

    monkeypatch.setattr(limits, "measure", lambda: {"copy, plain": 1e10, "fma": 1e11, "amx": None})
    return write


ADD = """
    import ckernels as ck
    from ckernels.bench import normal, pair, torch
    for R, C in (64, 100), (1, 16):
        pair("add", f"{R}x{C}", lambda rng, dtype: [normal(rng, (R, C), dtype)] * 2, lambda x, y: x + y,
             moves=(3 * R * C, 3 * R * C), peer_out=lambda out, x, y: torch.add(x, y, out=out), aims=((2, 0.5), (3, None)))
"""


def test_every_op_has_a_case(capsys):
    ops = {row[0] for row in listed(capsys)}
    for called in OPS.values():
        alike = {
            "rope_table": "rope",
            "pack": "linear",
            "scaled_dot_product_attention": "attention",
            "scaled_dot_product_attention_backward": "attention_backward",
            "matmul_backward": "matmul",
            "linear_cross_entropy_backward": "linear_cross_entropy",
        }.get(called, called)
        assert any(op == alike or op.startswith(alike + " ") for op in ops), f"no bench has a case of {called}"


def test_every_bench_file_has_a_case(capsys):
    for op in session.find_benches():
        assert listed(capsys, "--op", op), op


def test_text(benches, capsys):
    benches("add", ADD)
    assert cli.main(["bench", "--seconds", "0.01"]) == 0
    out = capsys.readouterr().out
    heading, *rows = out[out.index("op   ") :].splitlines()
    rows = rows[: rows.index("")]
    vector = len(ck.isas()) - 1
    kinds = len(session.built_dtypes())
    assert len(rows) == kinds * (2 * vector + 2)  # forward and backward: every set for the first case, one for the other
    assert "limits: copy, plain 10.0 GB/s; fused multiply-adds 100 GF/s" in out and "x torch" in heading
    assert re.match(r"add +64x100 +float32 +\w+ +[\d.]+ us +[\d.]+ ", rows[0])


def test_json(benches, capsys):
    benches("add", ADD)
    isa = ck.isas()[0]
    assert cli.main(["bench", "--seconds", "0.01", "--format", "json", "--isa", isa, "--dtype", "float32"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["version"], found["failures"]) == ("ckernels bench", 1, [])
    assert found["limits"] == {"copy, plain": 1e10, "fma": 1e11, "amx": None} and found["machine"]["cpu"]
    assert [(line["op"], line["case"]) for line in found["lines"]] == [
        ("add", "64x100"), ("add_backward", "64x100"), ("add", "1x16"), ("add_backward", "1x16")]  # fmt: skip
    first = found["lines"][0]
    assert 0 < first["best"] <= first["median"] < 1 and first["unit"] == "GB/s" and first["isa"] == isa
    assert first["rate"] == pytest.approx(12 * 6400 / first["best"] / 1e9)
    assert (first["aim"], first["aim_limit"]) == (2, 0.5)
    if inputs.torch:
        assert all(first[name] > 0 for name in ("torch_best", "torch_median", "out_best", "out_median"))


def test_a_case_of_a_megabyte_is_measured_against_a_probe_of_its_size():
    case = session_case(lambda s: ck.add(s, s), nbytes=12 << 18)
    (line,) = session.measure(case, "float32", [ck.isas()[0]], 0.01)
    assert line.limit > 0 and line.limit_name == "copy"


def session_case(call, **arguments):
    """Make a case of a square of floats."""
    from ckernels.bench.cases import Case

    return Case("add", "512x512", lambda rng: inputs.normal(rng, (512, 512)), {"": call}, **arguments)


def test_products_are_measured_against_multiply_adds():
    case = session_case(lambda s: ck.matmul(s, s), flops=2 * 512**3, limit="fma")
    (line,) = session.measure(case, "float32", [ck.isas()[0]], 0.01)
    assert 0 < line.limit < 2 and line.unit == "GF/s"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "nonsense"], "no op is called 'nonsense'; there are"),
        (["--isa", "mmx"], "no instruction set is called 'mmx'"),
        (["--dtype", "float64"], "no dtype is called 'float64'"),
        (["--threads", "0"], "not 1 to 64"),
        (["--seconds", "-1"], "not a positive number"),
        (["--format", "html"], "invalid choice"),
    ],
)
def test_wrong_usage_exits_with_4(benches, capsys, arguments, message):
    benches("add", ADD)
    assert cli.main(["bench", "--list", *arguments]) == 4
    assert message in capsys.readouterr().err


def test_no_case_of_that_text_exits_with_3(benches, capsys):
    benches("add", ADD)
    assert cli.main(["bench", "--case", "no such case"]) == 3
    assert "nothing was measured" in capsys.readouterr().err


def test_without_a_checkout_it_says_where_the_cases_are(monkeypatch, capsys):
    monkeypatch.setattr(session, "find_benches", dict)
    assert cli.main(["bench"]) == 1
    assert "source checkout" in capsys.readouterr().err


def test_a_bench_that_breaks_exits_with_1_and_the_others_run(benches, capsys):
    benches("add", ADD)
    benches("broken", "raise RuntimeError('planted')")
    benches(
        "half",
        """
        from ckernels.bench import run
        run("half", "broken", lambda rng: None, lambda s: 1 / 0, nbytes=4)
        run("half", "whole", lambda rng: None, lambda s: None, nbytes=4)
        """,
    )
    assert cli.main(["bench", "--quick", "--seconds", "0.01", "--dtype", "float32"]) == 1
    got = capsys.readouterr()
    assert "FAILED bench_broken.py: RuntimeError: planted" in got.err
    assert "FAILED half broken float32: ZeroDivisionError" in got.err
    assert re.search(r"^add +64x100", got.out, re.M)


def test_an_op_of_a_file_can_be_chosen(benches, capsys):
    benches("add", ADD)
    rows = listed(capsys, "--op", "add_backward", "--dtype", "float32", "--case", "1x16")
    assert [row[:2] for row in rows] == [["add_backward", "1x16"]]


def test_without_torch_its_columns_are_empty_and_it_says_so(benches, capsys, monkeypatch):
    monkeypatch.setattr(inputs, "torch", None)
    monkeypatch.setattr(inputs, "F", None)
    benches("add", ADD)
    assert cli.main(["bench", "--seconds", "0.01", "--format", "json", "--dtype", "float32"]) == 0
    lines = json.loads(capsys.readouterr().out)["lines"]
    assert lines and all(line["torch_best"] is line["out_best"] is None for line in lines)
    assert cli.main(["bench", "--quick"]) == 0
    assert "x torch: not measured, PyTorch is not installed" in capsys.readouterr().out


def test_every_bench_file_loads_without_torch():
    code = """
        import sys
        sys.modules["torch"] = None
        from ckernels import cli
        sys.exit(cli.main(["bench", "--list"]))
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], text=True, capture_output=True)
    assert run.returncode == 0, run.stderr
    assert {row.split()[0] for row in run.stdout.splitlines()} >= {"add", "rms_norm", "softmax", "linear", "sgd"}


def test_a_bench_file_runs_by_itself():
    path = session.find_benches()["add"]
    command = [sys.executable, str(path), "--quick", "--seconds", "0.01", "--case", "1x576", "--format", "json"]
    run = subprocess.run(command, text=True, capture_output=True)
    assert run.returncode == 0, run.stderr
    assert {line["op"] for line in json.loads(run.stdout)["lines"]} == {"add", "add_backward"}
    nothing = subprocess.run([*command[:3], "--case", "no such"], text=True, capture_output=True)
    assert nothing.returncode == 3


def test_choice_and_threads_are_put_back(benches, capsys):
    benches("add", ADD)
    before = ck.isa(), ck.get_num_threads()
    assert cli.main(["bench", "--seconds", "0.01", "--threads", "1"]) == 0
    assert (ck.isa(), ck.get_num_threads()) == before


def test_the_page_is_made_of_such_runs(benches, capsys, monkeypatch):
    benches("add", ADD)
    assert cli.main(["bench", "--seconds", "0.01", "--format", "json"]) == 0
    run = json.loads(capsys.readouterr().out)
    monkeypatch.syspath_prepend(str(native.ROOT / "benchmarks"))
    import page

    text = "\n".join(page.page({"add": run}, [0.5, 2.0], 60))
    for heading in "## The machine of these tables", "## Aims", "## 16 bits", "## Shapes", "## Tiny calls", "## Memory", "## add":
        assert heading in text.splitlines()
    aims = [row for row in text.splitlines() if row.startswith(("| add | 64x100 |", "| add_backward | 64x100 |"))]
    assert any(re.search(r"\| (reached|PyTorch is nearer)", row) for row in aims)
    assert "- load before the run 0.5, after it 2.0" in text


# ---- parts ----


def test_inputs_are_random_and_of_the_dtype(rng):
    for name, dtype in inputs.DTYPES.items():
        x, y = inputs.normal(rng, (300, 7), dtype), inputs.uniform(rng, 5, dtype)
        assert x.dtype == y.dtype == dtype and x.shape == (300, 7)
        wide = x.astype(np.float64)
        assert abs(wide.mean()) < 0.2 and 0.8 < wide.std() < 1.2 and len(np.unique(wide[:, 0])) > 100
        assert (0.5 <= y.astype(np.float64)).all() and (y.astype(np.float64) <= 1.5).all()
        if inputs.torch:
            t = inputs.tensor(x)
            assert str(t.dtype) == f"torch.{name}" and t.data_ptr() == x.ctypes.data


def test_alternate_gives_each_call_its_turn():
    seen = []
    calls = [(lambda: seen.append("before"), lambda x: seen.append(x)), (lambda: None, lambda x: seen.append(-x))]
    times = timing.alternate(calls, [1, 2, 3, 4], 1e-3)
    assert len(times[0]) == len(times[1]) >= 5 and {abs(x) for x in seen if x != "before"} == {1, 2, 3, 4}


def test_rest_waits_for_a_thread_that_works():
    def work():  # without the interpreter's lock
        hashlib.pbkdf2_hmac("sha256", b"", b"", 30000)

    thread = threading.Thread(target=work)
    took = timing.seconds_of(work)
    thread.start()
    assert timing.seconds_of(timing.rest) > min(took, 0.05) / 4
    thread.join()
    assert timing.seconds_of(timing.rest) < 0.05


def test_calls_are_timed_at_rest(monkeypatch):
    seen = []
    monkeypatch.setattr(timing, "rest", lambda: seen.append("rest"))

    def call(x):
        time.sleep(1e-4)  # a shorter one is called several times
        seen.append(x)

    timing.alternate([(lambda: seen.append("before"), call)], [1], 0)
    assert seen == ["before", 1, 1] + ["before", "rest", 1] * (len(seen) // 3 - 1)


def test_ratios():
    assert timing.ratios([1.0, 2.0, 4.0], [3.0, 8.0, 12.0]) == (3.0, 3.0)


def test_limits_move_what_they_say():
    for limit in "copy", "update", "read":
        for call, moved in limits.memory(limit, 8 << 20).values():
            assert moved == 8 << 20 and call(None) is None
    (call, flops) = limits.fma()["fma"]
    assert flops > 0
    call(None)


def test_the_limit_of_bfloat16_is_that_of_a_matrix_unit_where_there_is_one():
    with ck.use("baseline"):
        assert limits.amx() == {} and list(limits.arithmetic("bfloat16")) == ["fma"]
    text = report.limits_text({"copy, plain": 2e9, "fma": 3e9, "amx": None})
    assert text == "limits: copy, plain 2.0 GB/s; fused multiply-adds 3 GF/s; AMX, bfloat16: not measured"
    assert report.limits_text({"fma": 3e9, "amx": 5e12}).endswith("AMX, bfloat16: 5000 GF/s")


@pytest.mark.parametrize("wrong", [{"nbytes": 1, "limit": "nonsense"}, {}, {"nbytes": 1, "flops": 1}])
def test_run_refuses_what_makes_no_sense(wrong):
    from ckernels.bench import run

    with pytest.raises(ValueError, match=r"^run\(\): "):
        run("add", "case", lambda rng: None, lambda s: None, **wrong)


def test_a_row_of_the_table():
    line = report.Line("add", "1x1", "float32", "avx2", "", 2, 1.5e-6, 2e-6, "GB/s", 3.0, 0.5, 0.4, "copy", 2.0, 1.0)
    assert report.row(line).split() == "add 1x1 float32 avx2 1.50 us 3.0 50% 40% copy 2.00 1.00".split()


class Weighed(session.Session):
    """Of each case of a few megabytes, how much its calls take from the arena beside their results."""

    def take(self, case):
        """Weigh instead of timing."""
        for dtype in set(case.dtypes) & {"float32", "bfloat16"}:
            if 1 << 20 <= case.moved(dtype) < 32 << 20:
                given = case.inputs(dtype, 0)
                for call in case.ours.values():
                    rows = [row_bytes(part) for part in results(call(given))]
                    self.lines.append((case, dtype, session.hidden_bytes(call, given), max(rows, default=0)))


class Called(session.Session):
    """Every call of each case of less than a few megabytes, once in each dtype; what breaks, by name."""

    def take(self, case):
        """Call instead of timing."""
        self.ops.add(case.op)
        for dtype in case.dtypes:
            if not case.flops and case.moved(dtype) < 3 << 20 and dtype in self.dtypes:
                given = case.inputs(dtype, 0)
                theirs = [case.theirs, case.theirs_out, *case.beside.values()] if inputs.torch else []
                for call in [*case.ours.values(), case.ours_out, *theirs]:
                    if call is not None:
                        call(given)
                self.lines.append((case.op, dtype))


def test_every_call_of_a_small_case_runs():
    called = Called(chosen())
    session.run_files(called, {op: path for op, path in session.find_benches().items() if op != "model"})
    assert called.failures == []
    bound_by_memory = {op for op in called.ops if not op.startswith(("linear", "attention", "matmul"))}
    without = bound_by_memory - {op for op, _ in called.lines}
    assert {op.split(" ")[0].removesuffix("_backward") for op in without} <= LARGE_ALONE


#: What has no case below three megabytes in every variant.
LARGE_ALONE = {"adamw", "sgd", "gelu", "relu", "sigmoid", "tanh", "softcap", "swiglu", "geglu", "reglu", "sample",
               "embedding", "argmax", "topk", "rope", "heads_to_tokens", "kv", "kv_quantize", "kv_dequantize"}  # fmt: skip


def results(found):
    """Yield the arrays of a result."""
    if isinstance(found, np.ndarray):
        yield found
    elif isinstance(found, tuple):
        for part in found:
            yield from results(part)


def row_bytes(array):
    """Return the size of a row in float32."""
    return 4 * array.shape[-1] if array.ndim else 0


def test_no_call_hides_more_than_a_few_rows_a_thread(monkeypatch):
    for name in "harness", "openblas":
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(inputs, "torch", None)
    ck.set_num_threads(2)
    weighed = Weighed(chosen())
    session.run_files(weighed, session.find_benches())
    for name in "harness", "openblas":  # these know no PyTorch
        sys.modules.pop(name, None)
    assert weighed.failures == [] and len({case.op for case, *_ in weighed.lines}) >= 10
    for case, dtype, hidden, row in weighed.lines:
        # Rows of the threads, one partial row for a block of at least 32 rows, and what rounding up to pages adds.
        bound = 8 * row * ck.get_num_threads() + case.moved(dtype) // 32 + (4 << 20)
        assert hidden <= bound, f"{case.op} {case.case} {dtype} hides {hidden} bytes, more than {bound}"


def test_hidden_bytes_are_seen():
    hidden = session.hidden_bytes(lambda s: ck.empty(s) is ck.empty(1), (64 << 20,))
    assert hidden >= 64 << 20  # the outputs were given back before the call ended
    assert session.hidden_bytes(lambda s: ck.empty(s), 64 << 20) == 0
