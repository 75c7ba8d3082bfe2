"""Print the cases of a run: tables for a reader, JSON and JUnit for machines."""

import dataclasses
import json
import math
import statistics
import sys
import xml.etree.ElementTree as ElementTree

from . import levels
from .compare import Verdict

#: Raised by one whenever a field of the JSON form changes its meaning or goes away.
SCHEMA = 1

_COLUMNS = ("name", "pass", "dtype", "isa", "error", "peer's", "ratio", "nmse", "margin", "verdict")
_RIGHT = {"error", "peer's", "ratio", "nmse", "margin"}
_STYLES = {
    Verdict.EXACT: "green",
    Verdict.WITHIN_BUDGET: "green",
    Verdict.EQUIVALENT_AT_OUTPUT: "green",
    Verdict.UNDECIDED: "yellow",
    Verdict.VACUOUS: "yellow",
    levels.NOT_MEASURED: "dim",
}


def _figure(value, digits=2):
    return "" if value is None else f"{value:.{digits}e}"


def _short(value):
    if value is None:
        return ""
    return f"{value:.2f}" if value < 1000 else f"{value:.1e}"


def _row(case):
    return {
        "name": case.name,
        "pass": case.what,
        "dtype": case.dtype,
        "isa": case.isa,
        "error": _figure(case.error),
        "peer's": _figure(case.peer_error),
        "ratio": _short(case.ratio),
        "nmse": _figure(case.nmse, 1),
        "margin": _short(case.margin),
        "verdict": str(case.verdict),
    }


@dataclasses.dataclass
class Summary:
    """A run in numbers. ``exit_code`` is what ``ck parity`` returns."""

    compared: int
    passed: int
    exact: int
    failed: int
    undecided: int
    vacuous: int
    not_measured: int
    worst_margin: float | None
    worst: str
    median_ratio: float | None
    above_peer: int
    worst_ratio: float | None
    worst_ratio_of: str
    seconds: float
    exit_code: int

    @classmethod
    def of(cls, cases, seconds):
        """Count a list of cases."""
        passed = [c for c in cases if c.verdict in levels.PASSING]
        margins = [c for c in passed if c.margin is not None]
        worst = max(margins, key=lambda c: c.margin, default=None)
        ratios = [c for c in cases if c.ratio is not None and math.isfinite(c.ratio)]
        largest = max(ratios, key=lambda c: c.ratio, default=None)
        return cls(
            compared=sum(c.verdict not in (levels.NOT_MEASURED, levels.UNMEASURED) for c in cases),
            passed=len(passed),
            exact=sum(c.verdict == Verdict.EXACT for c in cases),
            failed=sum(c.failed for c in cases),
            undecided=sum(c.verdict == Verdict.UNDECIDED for c in cases),
            vacuous=sum(c.verdict == Verdict.VACUOUS for c in cases),
            not_measured=sum(c.verdict == levels.NOT_MEASURED for c in cases),
            worst_margin=worst.margin if worst else None,
            worst=_label(worst) if worst else "",
            median_ratio=statistics.median(c.ratio for c in ratios) if ratios else None,
            above_peer=sum(c.ratio > 1 for c in ratios),
            worst_ratio=largest.ratio if largest else None,
            worst_ratio_of=_label(largest) if largest else "",
            seconds=seconds,
            exit_code=levels.exit_code(cases),
        )

    def __str__(self):
        parts = [
            f"{self.compared} compared",
            f"{self.passed} within budget ({self.exact} exact)",
            f"{self.failed} failed",
        ]
        parts += [
            f"{count} {what}" for what, count in (("undecided", self.undecided), ("vacuous", self.vacuous)) if count
        ]
        if self.not_measured:
            parts.append(f"{self.not_measured} not measured here")
        text = ", ".join(parts)
        if self.worst_margin is not None:
            text += f"; worst margin {self.worst_margin:.2f} ({self.worst})"
        if self.median_ratio is not None:
            text += f"; error over PyTorch's: median {self.median_ratio:.2f}, above 1 in {self.above_peer}"
            text += f", largest {self.worst_ratio:.2f} ({self.worst_ratio_of})"
        word = {0: "ok", 1: "FAILED", 2: "UNDECIDED", 3: "VACUOUS"}[self.exit_code]
        return f"{word}: {text}; {self.seconds:.0f} s"


def _label(case):
    dtype = "" if case.dtype == "float32" else case.dtype
    return " ".join(part for part in (case.name, case.what, dtype, case.isa) if part)


class TextReport:
    """Tables: with colours and a progress line on a terminal, plain and aligned in a pipe.

    Parameters
    ----------
    stream : text file
    """

    def __init__(self, stream=None):
        self.stream = stream or sys.stdout
        self.console = self._status = None
        if self.stream.isatty():
            try:
                from rich.console import Console
            except ImportError:
                pass
            else:
                self.console = Console(file=self.stream, highlight=False)

    def _print(self, text="", style=None):
        if self.console is not None:
            self.console.print(text, style=style, markup=False, soft_wrap=True)
        else:
            print(text, file=self.stream, flush=True)

    def begin(self, lines):
        """Print the machine."""
        for line in lines:
            self._print(line, "dim")

    def progress(self, text):
        """Show what is being worked on, on a terminal."""
        if self.console is not None:
            if self._status is None:
                self._status = self.console.status("")
                self._status.start()
            self._status.update(text)

    def stop(self):
        """Take the progress line away."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def level(self, title, cases, seconds):
        """Print the table of one level."""
        self.stop()
        self._print()
        self._print(f"{title} ({seconds:.1f} s)", "bold")
        beside = [c for c in cases if c.data.get("backends") is not None]
        shown = [c for c in cases if c.verdict != levels.NOT_MEASURED and not c.data.get("matrix") and c not in beside]
        self._matrix([c for c in cases if c.data.get("matrix")])
        self._backends(beside)
        rows = [_row(c) for c in shown]
        columns = [c for c in _COLUMNS if c == "verdict" or any(row[c] for row in rows)]
        if rows:
            self._table(columns, rows, shown)
        for case in cases:
            if case.verdict == levels.NOT_MEASURED:
                self._print(f"not measured: {_label(case)}: {case.note}", "dim")

    def _matrix(self, cases):
        """Print cases as cells, by name and pass: ``=`` for equal bits, a margin, or the verdict of a failure."""
        groups = {}  # the rows that have the same columns make a table
        for case in cases:
            groups.setdefault((case.name, case.dtype, case.isa), {})[case.what] = case
        tables = {}
        for row, cells in groups.items():
            tables.setdefault(tuple(cells), []).append((row, cells))
        for columns, rows in tables.items():
            heads = [" ".join(part for part in row if part) for row, _ in rows]
            first = max(map(len, heads))
            self._print(" " * first + "  " + "  ".join(columns), "underline")
            for head, (_, cells) in zip(heads, rows, strict=True):
                found = [self._cell(cells[column]).rjust(len(column)) for column in columns]
                failed = any(case.failed for case in cells.values())
                self._print(head.ljust(first) + "  " + "  ".join(found), "bold red" if failed else "green")
                for case in filter(lambda case: case.note, cells.values()):
                    self._print(f"    {case.what}: {case.verdict}: {case.note}", "bold red" if case.failed else "dim")

    def _backends(self, cases):
        """Print op-diff: the margin of each backend, the NMSE of each pair, ``=`` for equal bits."""
        columns = dict.fromkeys(tuple(c.data["backends"]) for c in cases if len(c.data["backends"]) in (1, 2))
        columns = sorted(columns, key=len)
        columns = [c for c in columns if len(columns) > 1]
        groups = {}
        for case in cases:
            groups.setdefault((case.name, case.what, case.dtype), {})[tuple(case.data["backends"])] = case
        heads = [["~".join(c) for c in columns]]
        if not groups:
            return
        lefts = [max(len(key[i]) for key in groups) for i in range(3)]
        widths = [max(len(head), 7) for head in heads[0]]

        def line(left, cells):
            parts = [text.ljust(width) for text, width in zip(left, lefts, strict=True)]
            parts += [text.rjust(width) for text, width in zip(cells, widths, strict=True)]
            return "  ".join(parts).rstrip()

        if columns:
            self._print(
                "each backend: margin against float64; each pair: NMSE of the first in the second; =: same bits"
            )
            self._print(line(("name", "pass", "dtype"), heads[0]), "underline")
        for key, found in groups.items():
            cells = [self._beside(found.get(c)) for c in columns]
            failed = [c for c in found.values() if c.verdict not in levels.PASSING]
            self._print(line(key, cells), "bold red" if failed else "green")
            for case in found.values():
                if case.note:
                    self._print(f"    {case.isa}: {case.verdict}: {case.note}", "bold red" if case in failed else "dim")

    @staticmethod
    def _beside(case):
        if case is None:
            return ""
        if case.verdict not in levels.PASSING:
            return "RED"
        if len(case.data["backends"]) == 1:
            return "loose" if case.margin is None else _short(case.margin)
        return "=" if case.verdict == Verdict.EXACT else _figure(case.nmse, 1)

    @staticmethod
    def _cell(case):
        if case.verdict == Verdict.EXACT:
            return "="
        return _short(case.margin) if case.verdict in levels.PASSING else "RED"

    def _table(self, columns, rows, cases):
        widths = {c: max(len(c), *(len(row[c]) for row in rows)) for c in columns}

        def line(row):
            cells = (row[c].rjust(widths[c]) if c in _RIGHT else row[c].ljust(widths[c]) for c in columns)
            return "  ".join(cells).rstrip()

        self._print(line({c: c for c in columns}), "underline")
        for row, case in zip(rows, cases, strict=True):
            style = _STYLES.get(case.verdict, "bold red")
            self._row(line(row), row["verdict"], style)
            if case.note:
                self._print(f"    {case.note}", "dim" if case.verdict in levels.PASSING else style)

    def _row(self, text, verdict, style):
        """Print a line whose last word, the verdict, has a colour; lines are never cut to the terminal's width."""
        if self.console is None:
            self._print(text)
            return
        from rich.text import Text

        line = Text(text.removesuffix(verdict))
        line.append(verdict, style)
        self.console.print(line, soft_wrap=True)

    def end(self, summary):
        """Print the summary line."""
        self.stop()
        self._print()
        self._print(str(summary), {0: "bold green", 1: "bold red"}.get(summary.exit_code, "bold yellow"))


def _plain_value(value):
    """Make a figure fit for JSON: no NaN, no infinity, no NumPy types."""
    if isinstance(value, dict):
        return {str(k): _plain_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(v) for v in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    elif hasattr(value, "tolist"):
        return _plain_value(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, str) else value


def case_to_dict(case):
    """Return a case as plain values. Figures that are NaN or infinite become None; the verdict says what they mean."""
    fields = {f.name: getattr(case, f.name) for f in dataclasses.fields(case) if f.name != "report"}
    result = _plain_value(fields)
    if case.report is not None and hasattr(case.report, "to_dict"):
        result["report"] = _plain_value(case.report.to_dict())
    return result


def to_json(cases, facts, options, summary):
    """Return a run as JSON, schema 1: ``schema``, ``tool``, ``machine``, ``options``, ``summary``, ``cases``."""
    asked = {f.name: getattr(options, f.name) for f in dataclasses.fields(options) if f.name != "progress"}
    return json.dumps(
        {
            "schema": SCHEMA,
            "tool": "ck parity",
            "machine": _plain_value(facts),
            "options": _plain_value(asked),
            "summary": _plain_value(dataclasses.asdict(summary)),
            "cases": [case_to_dict(c) for c in cases],
        },
        indent=1,
        allow_nan=False,
    )


def to_junit(cases, summary):
    """Return a run as JUnit XML, one suite a level. Undecided and vacuous cases are failures: nothing else fits."""
    root = ElementTree.Element("testsuites", name="ck parity", time=f"{summary.seconds:.3f}")
    for level in dict.fromkeys(c.level for c in cases):
        chosen = [c for c in cases if c.level == level]
        suite = ElementTree.SubElement(root, "testsuite", name=level, tests=str(len(chosen)))
        bad = skipped = 0
        for case in chosen:
            element = ElementTree.SubElement(
                suite, "testcase", classname=f"parity.{level}", name=_label(case), time=f"{case.seconds:.6f}"
            )
            if case.verdict == levels.NOT_MEASURED:
                ElementTree.SubElement(element, "skipped", message=case.note)
                skipped += 1
            elif case.verdict not in levels.PASSING:
                failure = ElementTree.SubElement(element, "failure", type=str(case.verdict), message=_xml(case.note))
                failure.text = _xml(str(case.report) if case.report is not None else case.note)
                bad += 1
        suite.set("failures", str(bad))
        suite.set("skipped", str(skipped))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def _xml(text):
    """Drop the control characters that XML cannot hold."""
    return "".join(ch for ch in text if ch in "\t\n" or ord(ch) >= 32)
