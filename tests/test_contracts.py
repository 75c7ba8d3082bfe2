"""Contracts: out of the sources and nothing else, on every page of an op; and what of them a run has proved."""

import importlib.util
import json
import re

import pytest

import native
from ckernels import cli
from ckernels.parity import contracts, coverage
from ckernels.parity.specs import names

ROOT = native.ROOT
BEST = ["avx2", "reference"]


def generator():
    spec = importlib.util.spec_from_file_location("contract_tables", ROOT / "docs/contract_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parity(*cases):
    return {"schema": 1, "tool": "ck parity", "cases": [
        {"level": "ops", "name": name, "what": what, "dtype": dtype, "isa": isa, "verdict": verdict, "data": data}
        for name, what, dtype, isa, verdict, data in cases]}  # fmt: skip


def session(**outcomes):
    return {"schema": 1, "tool": "pytest", "tests": [
        {"name": f"tests/test_rms_norm.py::test_rms_norm_{name}[{ids}]", "outcome": outcome}
        for name, (ids, outcome) in outcomes.items()]}  # fmt: skip


def row(rows, **wanted):
    (found,) = [r for r in rows if all(r[key] == value for key, value in wanted.items())]
    return found


def test_the_file_is_what_the_sources_say():
    """Run docs/contract_tables.py after a change of headers, tests or planted faults: it takes in what is new."""
    collected, written = json.loads(json.dumps(generator().collect())), contracts.written()
    assert list(collected) == list(written)
    for family, told in written.items():
        now = collected[family]
        for key in ("ops", "functions", "equation", "saved", "in_place"):
            assert told[key] == now[key], f"{family}: {key}; run docs/contract_tables.py"
        assert set(told["kills"]) <= set(now["kills"]), f"{family}: a fault is planted no more"
        for name, tests in told["promises"].items():
            assert set(tests) <= set(now["promises"][name]), f"{family}: a test of '{name}' is there no more"


def test_the_tables_of_the_pages_are_what_the_generator_prints():
    for page, text in generator().pages():
        assert page.read_text() == text, page.name


def test_every_op_has_one_and_every_function_stands_in_one():
    found = contracts.contracts()
    assert sorted({name for c in found for name in c["ops"]} - {"kv_cache_append", "paged_varlen_attn"}) == sorted(
        names()
    )
    listed = {f["c"] for c in found for f in c["functions"]}
    declared = set(re.findall(r"^CK_(?:OP|LAYER)\((\w+), ", (ROOT / "csrc/ops.def").read_text(), re.M))
    assert {name for name in declared - listed if not name.startswith(("probe_", "decoder_"))} == set()
    pages = {path.stem for path in (ROOT / "docs/ops").glob("*.md")}
    assert {c["family"] for c in found} == pages


@pytest.mark.parametrize("contract", contracts.contracts(), ids=lambda c: c["family"])
def test_a_contract_says_all_it_is_to_say(contract):
    assert contract["equation"]
    for function in contract["functions"]:
        assert any(a["written"] for a in function["arguments"]) or function["name"].startswith(
            ("optim", "SGD", "AdamW")
        )
        assert len({a["name"] for a in function["arguments"]}) == len(function["arguments"])
    promised = {p["name"] for p in contract["promises"]}
    assert promised <= set(contracts.PROMISES) and {"forward", "threads", "isa", "refusals", "sizes"} <= promised
    backward = any(f["c"].endswith("_bwd") for f in contract["functions"])
    assert backward == ("gradient" in promised) == ("differences" in promised)
    for promise in contract["promises"]:
        for test in promise["tests"]:
            file, _, name = test.partition("::")
            assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.M), test


def test_arguments_are_those_of_the_declaration():
    by_name = {a["name"]: a for a in contracts.arguments("rms_norm_bwd")}
    assert list(by_name) == ["dx", "dweight", "dy", "x", "weight", "rstd", "offset", "accumulate"]
    assert by_name["dweight"] == {"name": "dweight", "type": "weight", "shape": "C", "list": False, "written": True,
                                  "optional": True}  # fmt: skip
    assert by_name["rstd"]["type"] == "float" and by_name["x"]["shape"] == "R* C" and by_name["offset"]["shape"] is None
    (contract,) = contracts.contracts("rms_norm")
    assert "y[r,c]     = x[r,c] * rstd[r] * w[c]" in contract["equation"] and contract["saved"] == "rstd"
    assert "norm: eps times ten" in contract["kills"] and contract["float32_weights"] == ["weight"]
    assert contract["error"]["ceilings"]["float32"] == {"error": 1e-5, "nmse": 1e-7}


def test_printed(capsys):
    assert cli.main(["parity", "contracts", "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["tool"]) == (1, "ck parity contracts")
    assert {c["family"] for c in document["contracts"]} == set(contracts.written())
    assert cli.main(["parity", "contracts", "--op", "geglu"]) == 0
    assert capsys.readouterr().out.startswith("# glu: swiglu, geglu, reglu")
    assert cli.main(["parity", "contracts", "--op", "nonsense"]) == 4
    assert "no op is called 'nonsense'" in capsys.readouterr().err
    assert cli.main(["parity", "contracts", "--format", "junit"]) == 4


# ---- coverage ----


def test_what_no_report_speaks_of_is_not_measured_and_a_promise_without_a_test_is_unproved():
    rows = coverage.rows_of([parity()], BEST, "rms_norm")
    assert {r["status"] for r in rows if r["check"] == "exact"} == {"not measured"}
    assert {r["status"] for r in rows if r["check"] != "exact"} == {"unproved"}
    assert len([r for r in rows if r["check"] == "exact"]) == 2 * 3 * 2  # passes, dtypes, instruction sets
    assert coverage.summary_of(rows)["exit_code"] == 3


def test_each_place_has_its_own_status():
    found = parity(
        ("rms_norm", "forward y", "float32", "avx2", "EXACT", {}),
        ("rms_norm", "backward dx", "float32", "avx2", "EXACT", {}),
        ("rms_norm", "backward dweight", "float32", "avx2", "EXCESS_DRIFT", {}),
        ("rms_norm", "forward y", "bfloat16", "avx512", "NOT_MEASURED", {}),
        ("rms_norm", "forward y", "float32", "avx2 ~ avx512", "EXACT", {"backends": ["avx2", "avx512"]}),
    )
    rows = coverage.rows_of([found], ["avx512", "avx2"], "rms_norm")
    at = {"op": "rms_norm", "dtype": "float32", "isa": "avx2", "check": "exact"}
    assert row(rows, **at, **{"pass": "forward"})["status"] == "passed"
    assert row(rows, **at, **{"pass": "backward"})["status"] == "failed"
    assert row(rows, **at | {"dtype": "bfloat16", "isa": "avx512"}, **{"pass": "forward"})["status"] == "not measured"
    assert row(rows, check="isa")["status"] == "passed"
    assert coverage.summary_of(rows)["exit_code"] == 1
    assert "FAILED: rms_norm backward float32 avx2 exact" in coverage.to_text(rows)


def test_tests_prove_promises_where_they_ran():
    ran = session(
        in_place=("avx2-float32", "passed"),
        bits_do_not_depend_on_threads_or_batch=("avx2-bfloat16-7", "failed"),
        of_extremes=("reference", "skipped"),
    )
    elsewhere = {"name": "tests/test_l2_norm.py::test_rms_norm_of_nothing[avx2]", "outcome": "passed"}
    ran["tests"].append(elsewhere)
    every = "tests/test_memory_faults.py::test_every_allocation_may_fail"
    ran["tests"] += [{"name": f"{every}[l2_norm_fwd-1-all]", "outcome": "passed"}]
    rows = coverage.rows_of([ran], BEST, "rms_norm")
    assert row(rows, check="in place") == {"op": "rms_norm", "pass": "", "check": "in place", "dtype": "float32",
                                           "isa": "avx2", "status": "passed", "proofs": 1}  # fmt: skip
    assert row(rows, check="threads")["status"] == row(rows, check="batch")["status"] == "failed"
    for unproved in ("extremes", "sizes", "memory"):  # skipped, another op's file, another op's parameter
        assert row(rows, check=unproved)["status"] == "unproved"
    ran["tests"] += [{"name": f"{every}[rms_norm_bwd-1-all]", "outcome": "passed"}]
    assert row(coverage.rows_of([ran], BEST, "rms_norm"), check="memory")["status"] == "passed"


def test_exit_codes_and_formats(tmp_path, capsys):
    good = parity(*(("add", f"{what} y", dtype, "avx2", "EXACT", {}) for what in ("forward", "backward")
                    for dtype in ("float32", "float16", "bfloat16")))  # fmt: skip
    (tmp_path / "good.json").write_text(json.dumps(good))
    command = ["parity", "coverage", "--op", "add", "--from", str(tmp_path / "good.json")]
    assert cli.main(command) == 2  # promises without a test
    assert "UNPROVED: " in capsys.readouterr().out
    tests = [{"name": f"{test}[add_fwd]", "outcome": "passed"} for promise in contracts.written()["add"]["promises"].values()
             for test in promise]  # fmt: skip
    (tmp_path / "tests.json").write_text(json.dumps({"schema": 1, "tool": "pytest", "tests": tests}))
    assert cli.main([*command, "--from", str(tmp_path / "tests.json"), "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["tool"]) == (1, "ck parity coverage")
    assert document["summary"]["unproved"] == 0 and document["summary"]["failed"] == 0
    assert set(document["rows"][0]) == {"op", "pass", "dtype", "isa", "check", "status", "proofs"}
    assert cli.main([*command, "--format", "html"]) == 4
    assert cli.main(["parity", "coverage", "--from", str(tmp_path / "none.json")]) == 4
    assert cli.main(["parity", "coverage", "--op", "nonsense", "--from", str(tmp_path / "good.json")]) == 4


def test_without_a_report_level_1_is_run(capsys):
    assert cli.main(["parity", "coverage", "--op", "relu", "--quick"]) == 2
    out = capsys.readouterr().out
    assert "0 failed" in out and re.search(r"^relu forward +\+", out, re.M)
