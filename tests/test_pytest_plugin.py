"""The pytest plugin: the fixture, and the report of everything a session compared."""

import json
import tomllib

import pytest

import native
from ckernels import cli
from ckernels.parity.compare import LISTENERS

pytest_plugins = ["pytester"]

TESTS = """
    import numpy as np
    import pytest
    from ckernels.parity import compare

    EXACT = np.array([1.0, 2.0, 3.0])

    def test_right(assert_parity):
        assert_parity(EXACT.astype("f4"), EXACT, name="y")
        assert_parity(EXACT.astype("f4") * np.float32(1 + 2e-7), EXACT, bound=1e-5, name="z")

    def test_sees_a_fault():
        assert not compare(np.float32([1, 2, 4]), EXACT, bound=1e-5).ok

    @pytest.mark.parametrize("n", [1, 2])
    def test_nothing(n):
        pass
"""
WRONG = """
    def test_wrong(assert_parity):
        assert_parity(np.float32([1, 2, 4]), EXACT, bound=1e-5, name="y")

    def test_skipped():
        pytest.skip("planted")
"""


def run(pytester, *arguments):
    return pytester.runpytest_inprocess("-p", "ckernels.pytest_plugin", *arguments)


def test_every_comparison_is_in_the_report(pytester):
    pytester.makepyfile(test_ours=TESTS)
    before = list(LISTENERS)
    done = run(pytester, "--ck-report=deep/report.json")
    done.assert_outcomes(passed=4)
    done.stdout.fnmatch_lines(["ckernels: 3 comparisons; *report.json"])
    assert LISTENERS == before
    found = json.loads((pytester.path / "deep" / "report.json").read_text())
    assert (found["schema"], found["tool"], found["summary"]["exit_code"]) == (1, "pytest", 0)
    made = [(c["name"], c["what"], c["verdict"], c["data"]["test"]) for c in found["cases"]]
    assert made == [
        ("test_ours.py::test_right", "1: y", "EXACT", "passed"),
        ("test_ours.py::test_right", "2: z", "WITHIN_BUDGET", "passed"),
        ("test_ours.py::test_sees_a_fault", "1", "STRUCTURAL", "passed"),
    ]
    assert {t["name"].partition("::")[2]: t["outcome"] for t in found["tests"]} == dict.fromkeys(
        ["test_right", "test_sees_a_fault", "test_nothing[1]", "test_nothing[2]"], "passed"
    )
    assert found["summary"]["failed"] == 0  # a fault that a test was there to see
    assert (
        cli.main(["report", str(pytester.path / "deep" / "report.json"), "--output", str(pytester.path / "p.html")])
        == 0
    )
    assert "What failed" not in (pytester.path / "p.html").read_text()


@pytest.mark.parametrize("suffix", ["html", "md"])
def test_a_failure_is_on_the_page(pytester, suffix):
    pytester.makepyfile(test_ours=TESTS + WRONG)
    done = run(pytester, f"--ck-report=report.{suffix}")
    done.assert_outcomes(passed=4, failed=1, skipped=1)
    text = (pytester.path / f"report.{suffix}").read_text()
    assert "What failed" in text and "test_wrong" in text and "STRUCTURAL" in text and "failed" in text
    assert text.count("test_sees_a_fault") <= 1  # among the margins, not among the failures


def test_outcomes_of_tests_that_fail_or_do_not_run(pytester):
    pytester.makepyfile(test_ours=TESTS + WRONG)
    assert run(pytester, "--ck-report=r.json").ret == 1
    found = json.loads((pytester.path / "r.json").read_text())
    outcomes = {t["name"].partition("::")[2]: t["outcome"] for t in found["tests"]}
    assert (outcomes["test_wrong"], outcomes["test_skipped"], outcomes["test_right"]) == ("failed", "skipped", "passed")
    assert found["summary"]["exit_code"] == 1 and found["summary"]["failed"] == 1
    (bad,) = [c for c in found["cases"] if c["data"]["test"] == "failed"]
    assert bad["report"]["worst"][0]["index"] == [2]


def test_a_session_that_compared_nothing_is_vacuous(pytester):
    pytester.makepyfile("def test_nothing(): pass")
    done = run(pytester, "--ck-report=r.json")
    done.stdout.fnmatch_lines(["ckernels: VACUOUS: no comparison was made; *"])
    assert json.loads((pytester.path / "r.json").read_text())["summary"]["exit_code"] == 3
    assert cli.main(["report", str(pytester.path / "r.json"), "--format", "markdown"]) == 3


def test_wrong_usage_is_refused(pytester):
    pytester.makepyfile("def test_nothing(): pass")
    done = run(pytester, "--ck-report=r.pdf")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["*--ck-report=r.pdf: the suffix must be one of .json, .html, .md*"])


def test_without_the_option_nobody_listens(pytester):
    pytester.makepyfile(test_ours=TESTS)
    before = list(LISTENERS)
    run(pytester).assert_outcomes(passed=4)
    assert LISTENERS == before and not list(pytester.path.glob("*.json"))


def test_it_is_found_by_pytest_itself():
    project = tomllib.loads((native.ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"ckernels.pytest_plugin": "ckernels.pytest_plugin"}
