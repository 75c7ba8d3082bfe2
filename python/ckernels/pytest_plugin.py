"""The pytest plugin that comes with the package: a fixture, and a report of every comparison of a session.

``assert_parity`` as an argument of a test is :func:`ckernels.parity.assert_parity`. ``--ck-report=FILE`` writes each
comparison that :func:`ckernels.parity.compare` or ``assert_parity`` made during the session, with the test that made
it, and how every test ended: as JSON, as a page or as Markdown, by the suffix .json, .html or .md. ``ck report`` and
``ck parity coverage`` read the JSON.
"""

import importlib
import json
import pathlib
import time

import pytest

SUFFIXES = (".json", ".html", ".md")


def pytest_addoption(parser):
    """Add the option."""
    parser.getgroup("ckernels").addoption(
        "--ck-report", metavar="FILE", help=f"write every comparison of the session to FILE: {', '.join(SUFFIXES)}"
    )


def pytest_configure(config):
    """Listen, where somebody wants to know."""
    path = config.getoption("--ck-report")
    if path is None:
        return
    if pathlib.Path(path).suffix not in SUFFIXES:
        raise pytest.UsageError(f"--ck-report={path}: the suffix must be one of {', '.join(SUFFIXES)}")
    if config.getoption("numprocesses", None):
        raise pytest.UsageError("--ck-report does not gather what other processes compare: run without -n")
    config.pluginmanager.register(Session(path), "ckernels-report")


@pytest.fixture
def assert_parity():
    """:func:`ckernels.parity.assert_parity`: raise AssertionError with the report's text unless a comparison passes."""
    from ckernels.parity import assert_parity

    return assert_parity


class Session:
    """Everything that was compared in a session, and how its tests ended.

    Parameters
    ----------
    path : str
        Where to write it at the end.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path).absolute()
        self.cases, self.tests, self._test, self._made = [], {}, "", 0
        self._start = time.perf_counter()
        # The module: the package has a function of that name.
        self._listeners = importlib.import_module("ckernels.parity.compare").LISTENERS
        self._listeners.append(self._compared)

    def _compared(self, report):
        from ckernels.parity import levels

        self._made += 1
        what = f"{self._made}: {report.name}" if report.name else str(self._made)
        case = levels.case_of("tests", self._test or "outside of tests", what, report)
        case.data["ulp_counts"] = report.ulp_counts
        if report.ok:
            case.report = None  # its elements would fill the memory of a long session
        self.cases.append(case)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        """Know whose comparisons these are."""
        before = self._test, self._made
        self._test, self._made = item.nodeid, 0
        try:
            return (yield)
        finally:
            self._test, self._made = before

    def pytest_runtest_logreport(self, report):
        """Remember the worst of setup, call and teardown."""
        known = self.tests.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0})
        known["seconds"] += report.duration
        if report.outcome != "passed" and known["outcome"] != "failed":
            known["outcome"] = report.outcome

    def document(self):
        """Return the session as plain values, of the form of ``ck parity --format json``."""
        from ckernels.parity import levels, machine, report

        for case in self.cases:
            case.data["test"] = self.tests.get(case.name, {}).get("outcome", "failed")
        # A test that passed has seen what it was to see, also where that was a failure.
        counted = [c for c in self.cases if c.verdict in levels.PASSING or c.data["test"] != "passed"]
        summary = report.Summary.of(counted, time.perf_counter() - self._start)
        failed = any(test["outcome"] == "failed" for test in self.tests.values())
        summary.exit_code = 1 if failed else 0 if self.cases else 3
        text = report.to_json(self.cases, machine.machine(), levels.Options(level="tests"), summary)
        tests = [{"name": name, **how} for name, how in self.tests.items()]
        return json.loads(text) | {"tool": "pytest", "tests": tests}

    def pytest_sessionfinish(self):
        """Write the report."""
        from ckernels.parity import pages

        if self._compared in self._listeners:
            self._listeners.remove(self._compared)
        document = self.document()
        text = {
            ".json": lambda: json.dumps(document, indent=1, allow_nan=False),
            ".html": lambda: pages.to_html([document]),
            ".md": lambda: pages.to_markdown([document]),
        }[self.path.suffix]()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(text + "\n")

    def pytest_terminal_summary(self, terminalreporter):
        """Say where it is."""
        made = f"{len(self.cases)} comparisons" if self.cases else "VACUOUS: no comparison was made"
        terminalreporter.write_line(f"ckernels: {made}; {self.path}")
