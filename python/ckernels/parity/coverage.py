"""What is proved of what is promised: op × pass × dtype × instruction set × check, out of reports of runs.

The rule (``exact``) is proved by ``ck parity ops``, equal bits of avx2 and avx512 by its pairs too, and everything else
by the tests that a contract names, as ``pytest --ck-report`` recorded them. A place that no report speaks of is
"not measured"; a promise without a single test that ran is "unproved".
"""

import collections
import json
import re

from . import contracts
from .levels import DTYPES, PASSING
from .specs import SERVED, SPECS

PASSED, FAILED, NOT_MEASURED, UNPROVED = "passed", "failed", "not measured", "unproved"
_MARKS = {PASSED: "+", FAILED: "X", NOT_MEASURED: ".", None: ""}
_ISAS = ("amx", "avx512", "avx2", "baseline", "reference", "openblas", "cuda")


def rows_of(documents, isas, op=None):
    """Return the rows of a coverage: dicts of ``op pass dtype isa check status proofs``.

    Parameters
    ----------
    documents : list of dict
        Parsed reports of ``ck parity`` and of pytest.
    isas : list of str
        The instruction sets that must be there: those of the build, whether this CPU has them or not.
    op : str, optional
        An op or family.
    """
    cases = [c for d in documents if d["tool"] == "ck parity" for c in d["cases"] if c["level"] == "ops"]
    tests = [t for d in documents if d["tool"] == "pytest" for t in d["tests"]]
    chosen = contracts.contracts(op)
    places = collections.defaultdict(list)
    for case in cases:
        places[case["name"], case["dtype"], case["isa"]].append(case)
    rows = []
    for contract in chosen:
        rows += _exact(contract, places, isas)
        for promise in contract["promises"]:
            rows += _promise(contract, promise, tests, cases)
    return rows


def _exact(contract, places, isas):
    """The rule, on every instruction set, in every dtype and pass."""
    rows = []
    for spec in (*SPECS, *SERVED):
        if spec.name not in contract["ops"]:
            continue
        for dtype in spec.dtypes:
            for isa in isas:
                found = [c for c in places[spec.name, dtype, isa] if c["what"].startswith(spec.what)]
                rows.append({
                    "op": spec.name, "pass": spec.what, "dtype": dtype, "isa": isa, "check": "exact",
                    "status": _status([_of_case(c) for c in found]), "proofs": len(found),
                })  # fmt: skip
    return rows


def _of_case(case):
    return NOT_MEASURED if case["verdict"] == "NOT_MEASURED" else PASSED if case["verdict"] in PASSING else FAILED


def _status(found):
    """One failure fails; without one, one pass passes."""
    return FAILED if FAILED in found else PASSED if PASSED in found else NOT_MEASURED


def _promise(contract, promise, tests, cases):
    """A promise, by dtype and instruction set as far as its tests' parameters tell; one row if nothing ran."""
    found = collections.defaultdict(list)
    functions = {function["c"] for function in contract["functions"]}
    for test in tests:
        name, _, parameters = test["name"].partition("[")
        words = set(re.split(r"[-\]]", parameters))
        of_all = name.partition("::")[0].removeprefix("tests/test_").removesuffix(".py") in (
            "bindings",
            "memory_faults",
        )
        if not any(name.endswith(proof) for proof in promise["tests"]) or (of_all and not words & functions):
            continue
        status = {"passed": PASSED, "failed": FAILED}.get(test["outcome"], NOT_MEASURED)
        dtype = next((d for d in DTYPES if d in words), "")
        isa = next((i for i in _ISAS if i in words), "")
        found[dtype, isa].append(status)
    for case in cases:
        pair = set(case["data"].get("backends") or ())
        if case["name"] in contract["ops"] and _proves(promise["name"], case, pair):
            found[case["dtype"], case["isa"]].append(_of_case(case))
    base = {"op": contract["family"], "pass": "", "check": promise["name"]}
    if not any(status in (PASSED, FAILED) for statuses in found.values() for status in statuses):
        return [base | {"dtype": "", "isa": "", "status": UNPROVED, "proofs": 0}]
    return [
        base | {"dtype": dtype, "isa": isa, "status": _status(statuses), "proofs": len(statuses)}
        for (dtype, isa), statuses in sorted(found.items())
    ]


def _proves(promise, case, pair):
    """Whether a case of level 1 is a proof of a promise."""
    if promise == "isa":
        return pair == {"avx2", "avx512"}
    backward = case["what"].startswith("backward")
    return len(pair) < 2 and ((promise == "forward" and not backward) or (promise == "gradient" and backward))


def summary_of(rows):
    """Count rows by status, and say the exit code: 1 a failure, 3 nothing measured, 2 a promise unproved, 0."""
    counts = collections.Counter(row["status"] for row in rows)
    code = 1 if counts[FAILED] else 3 if not counts[PASSED] else 2 if counts[UNPROVED] else 0
    return {"exit_code": code, **{s.replace(" ", "_"): counts[s] for s in (PASSED, FAILED, NOT_MEASURED, UNPROVED)}}


def to_text(rows):
    """Return the rows as tables: + passed, X failed, . not measured; then each promise that is not proved."""
    exact = [row for row in rows if row["check"] == "exact"]
    dtypes, isas = (list(dict.fromkeys(row[key] for row in exact)) for key in ("dtype", "isa"))
    cells = {(r["op"], r["pass"], r["dtype"], r["isa"]): r["status"] for r in exact}
    names = list(dict.fromkeys((row["op"], row["pass"]) for row in exact))
    width = max((len(" ".join(name)) for name in names), default=0)
    lines = [f"+ {PASSED}, X {FAILED}, . {NOT_MEASURED}", "", "within the rule of float64 and PyTorch"]
    for dtype in dtypes:
        lines += ["", f"{dtype:{width}}  " + "  ".join(isas)]
        for name in (n for n in names if any((*n, dtype, isa) in cells for isa in isas)):
            marks = (_MARKS[cells.get((*name, dtype, isa))].center(len(isa)) for isa in isas)
            lines.append(f"{' '.join(name):{width}}  " + "  ".join(marks).rstrip())
    families = list(dict.fromkeys(row["op"] for row in rows if row["check"] != "exact"))
    checks = list(dict.fromkeys(row["check"] for row in rows if row["check"] != "exact"))
    width = max(map(len, families), default=0)
    lines += ["", "promises: how many tests and comparisons prove each, ? for none that ran", ""]
    lines.append(f"{'':{width}}  " + "  ".join(checks))
    for family in families:
        marks = []
        for check in checks:
            mine = [row for row in rows if (row["op"], row["check"]) == (family, check)]
            status = [row["status"] for row in mine]
            told = "X" if FAILED in status else "?" if UNPROVED in status else str(sum(r["proofs"] for r in mine) or "")
            marks.append(told.center(len(check)))
        lines.append(f"{family:{width}}  " + "  ".join(marks).rstrip())
    for row in rows:
        if row["status"] == FAILED:
            where = " ".join(row[key] for key in ("op", "pass", "dtype", "isa", "check") if row[key])
            lines.append(f"FAILED: {where}")
    found = summary_of(rows)
    word = {0: "ok", 1: "FAILED", 2: "UNPROVED", 3: "VACUOUS"}[found["exit_code"]]
    told = ", ".join(f"{found[key]} {key.replace('_', ' ')}" for key in list(found)[1:])
    return "\n".join([*lines, "", f"{word}: {told}"])


def command(documents, op, form, isas, error):
    """``ck parity coverage``: print the coverage; returns the exit code."""
    try:
        rows = rows_of(documents, isas, op)
    except KeyError:
        raise error(f"no op is called '{op}'; there are {', '.join(contracts.written())}") from None
    if form == "json":
        document = {"schema": 1, "tool": "ck parity coverage", "summary": summary_of(rows), "rows": rows}
        print(json.dumps(document, indent=1, allow_nan=False))
    elif form == "text":
        print(to_text(rows))
    elif form == "markdown":
        print(f"```\n{to_text(rows)}\n```")
    else:
        raise error(f"--format {form} is not for coverage: text, markdown or json")
    return summary_of(rows)["exit_code"]
