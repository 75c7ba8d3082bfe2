"""What a page shows, out of the documents: plain lists and numbers, in the order of the page."""

import re

from ..figures import ULP_EDGES

#: The schemas that are understood, by tool.
SCHEMAS = {"ck parity": 1, "ck compare": 1, "ck.parity.diff": 1, "ck.parity.diagnose": 1, "ck mutate": 1, "pytest": 1}
PASSING = ("EXACT", "WITHIN_BUDGET", "EQUIVALENT_AT_OUTPUT")
ULP_LABELS = ("0", *(f"<{edge:g}" for edge in ULP_EDGES), f"≥{ULP_EDGES[-1]:g}")
_WORDS = {0: "ok", 1: "failed", 2: "undecided", 3: "vacuous"}
_TITLES = {
    "ops": "Level 1: ops",
    "layer": "Level 2: the decoder layer",
    "stages": "Level 3: stages of a real model",
    "forward": "Level 4: logits of a real model",
    "train": "Level 5: training",
    "invariance": "Bits that must be equal",
    "kv": "Key-value caches",
    "compare": "Arrays",
    "tests": "Comparisons of a test session",
}


class DocumentError(ValueError):
    """A document cannot be read or shown; the text names it and says why."""


def content(documents):
    """Sort documents into the sections of a page.

    Parameters
    ----------
    documents : list of dict
        Parsed JSON of commands of this package.

    Returns
    -------
    dict
        ``word`` and ``code`` (of the worst document), ``documents``, ``levels``, ``failures``, ``maps`` (stage by
        layer), ``diagnoses``, ``histograms``, ``curves``, ``kills``, ``machines``, ``absent``.
    """
    if not documents:
        raise DocumentError("there is no report to show")
    for document in documents:
        _check(document)
    cases = [case for document in documents for case in document.get("cases", [])]
    diffs = [d["diff"] if "diff" in d else d for d in documents if "stages" in d.get("diff", d)]
    code = _worst(map(_code, documents))
    found = {
        "code": code,
        "word": _WORDS.get(code, "error"),
        "documents": [_headline(d) for d in documents],
        "levels": [_level(name, [c for c in cases if c["level"] == name]) for name in _names(cases)],
        "failures": [c for c in cases if not _fine(c) and c["verdict"] != "NOT_MEASURED"],
        "not_measured": [c for c in cases if c["verdict"] == "NOT_MEASURED"],
        "maps": [m for m in (*map(_map_of_diff, diffs), _map_of_layer(cases)) if m],
        "diagnoses": [d for d in documents if "findings" in d],
        "histograms": _histograms(cases),
        "curves": _curves(cases),
        "kills": [_kills(d) for d in documents if d["tool"] == "ck mutate"],
        "machines": [d["machine"] for d in documents if d.get("machine")],
        "ulp_labels": ULP_LABELS,
    }
    return found


def _fine(case):
    """A pass, or a failure that the test that made it was there to see."""
    return case["verdict"] in PASSING or case["data"].get("test") == "passed"


def _check(document):
    tool, schema = document.get("tool"), document.get("schema")
    if tool not in SCHEMAS:
        raise DocumentError(f"no report of this package: its tool is {tool!r}; known are {', '.join(SCHEMAS)}")
    if schema != SCHEMAS[tool]:
        raise DocumentError(f"a report of {tool} with schema {schema!r}; this version knows {SCHEMAS[tool]}")


def _code(document):
    """The exit code of the command that wrote a document; one that does not say has shown nothing."""
    summary = document.get("summary")
    return document.get("exit_code", summary.get("exit_code", 3) if isinstance(summary, dict) else 3)


def _worst(codes):
    """A failure comes before vacuous, vacuous before undecided."""
    return max(codes, key=lambda code: (0, 3, 1, 2)[code] if code in (0, 1, 2, 3) else 4)


def _headline(document):
    summary = document.get("summary")
    if isinstance(summary, dict):
        text = f"{summary['compared']} compared, {summary['passed']} within budget, {summary['failed']} failed"
        for key in ("undecided", "vacuous", "not_measured"):
            text += f", {summary[key]} {key.replace('_', ' ')}" if summary.get(key) else ""
        if summary.get("worst_margin") is not None:
            text += f"; worst margin {summary['worst_margin']:.2f} ({summary['worst']})"
        if summary.get("median_ratio") is not None:
            text += (
                f"; error over PyTorch's: median {summary['median_ratio']:.2f}, largest {summary['worst_ratio']:.2f}"
            )
        text += f"; {summary['seconds']:.0f} s"
    else:
        text = summary or document.get("text", "").partition("\n")[0]
    return {"tool": document["tool"], "text": text, "options": _asked(document.get("options") or {})}


def _asked(options):
    """The options that were given, as on the command line."""
    given = {k: v for k, v in options.items() if v not in (None, False) and not (k == "seed" and v == 0)}
    words = [given.pop("level", "")]
    words += [f"--{key}" if value is True else f"--{key} {value}" for key, value in given.items()]
    return " ".join(word for word in words if word not in ("", "all", "compare"))


def _names(cases):
    found = dict.fromkeys(case["level"] for case in cases)
    return sorted(found, key=lambda name: list(_TITLES).index(name) if name in _TITLES else len(_TITLES))


def _level(name, cases):
    """One level: counts, margins as points, and its grid: a row a result, a column where or how it was computed."""
    passed = [c for c in cases if c["verdict"] in PASSING]
    points = [(c["margin"], _fine(c), label(c)) for c in cases if c["margin"] is not None]
    shown = [c for c in cases if c["verdict"] != "NOT_MEASURED"]
    wide = name in ("ops", "kv", "invariance")
    columns = dict.fromkeys((_column(c) if wide else (c["what"],)) for c in shown)
    columns = sorted(columns, key=lambda c: (c[0], len(c) > 2)) if name == "ops" else list(columns)
    rows = {}
    for case in shown if name != "tests" else ():  # one of thousands says little: its points and failures are there
        key = " ".join(p for p in (case["name"], case["what"] if wide else "", "" if wide else case["isa"]) if p)
        rows.setdefault(key, {})[_column(case) if wide else (case["what"],)] = case
    return {
        "name": name,
        "title": _TITLES.get(name, name),
        "compared": len(shown),
        "passed": len(passed),
        "exact": sum(c["verdict"] == "EXACT" for c in cases),
        "failed": sum(not _fine(c) for c in shown),
        "worst": max((c for c in passed if c["margin"] is not None), key=lambda c: c["margin"], default=None),
        "points": points,
        "columns": [" ".join(c[:2]) or "margin" for c in columns],
        "rows": [(key, [found.get(column) for column in columns]) for key, found in rows.items()],
    }


def _column(case):
    """Dtype and backend; a pair of backends has a third part, so that it comes behind the single ones."""
    pair = len(case["data"].get("backends") or ()) == 2
    return (case["dtype"], case["isa"], "pair") if pair else (case["dtype"], case["isa"])


def label(case):
    """Name, pass, dtype and backend of a case."""
    return " ".join(p for p in (case["name"], case["what"], case["dtype"], case["isa"]) if p)


def _ordered(names):
    return list(dict.fromkeys(names))


def _map_of_diff(diff):
    """Stages down, layers across: own error over its budget, and what the inputs brought."""
    stages = [s for s in diff["stages"] if "margin" in s]
    layers = sorted({-1 if s["layer"] is None else s["layer"] for s in stages})
    cells = {(s["stage"], -1 if s["layer"] is None else s["layer"]): s for s in stages}
    rows = [(name, [cells.get((name, layer)) for layer in layers]) for name in _ordered(s["stage"] for s in stages)]
    return {
        "title": f"a trace in {diff.get('format', 'its dtype')}: {diff['verdict']}",
        "columns": ["model" if layer < 0 else f"layer {layer}" for layer in layers],
        "rows": rows,
        "inherited": True,
        "summary": diff.get("summary", ""),
    } if stages else None  # fmt: skip


def _map_of_layer(cases):
    """Level 2 and 3: stages down, configurations across."""
    chosen = [c for c in cases if c["level"] in ("layer", "stages") and ": " in c["name"] and c["margin"] is not None
              and c["what"] != "bits" and not c["name"].endswith(" arrays")]  # fmt: skip
    split = [(c["name"].rsplit(": ", 1), c) for c in chosen]
    columns = _ordered(left for (left, _), _ in split)
    cells = {(stage, left): case for (left, stage), case in split}
    rows = [(stage, [cells.get((stage, c)) for c in columns]) for stage in _ordered(stage for (_, stage), _ in split)]
    return {
        "title": "this package, against float64", "columns": columns, "rows": rows, "inherited": False, "summary": "",
    } if rows else None  # fmt: skip


def _histograms(cases):
    """Errors in ulp of all elements compared, by dtype."""
    sums = {}
    for case in cases:
        counts = case["data"].get("ulp_counts") or (case.get("report") or {}).get("ulp_counts")
        if counts and len(case["data"].get("backends") or ()) < 2:
            into = sums.setdefault(case["dtype"] or "float64", [0] * len(ULP_LABELS))
            into[:] = [a + b for a, b in zip(into, counts, strict=True)]
    return [{"dtype": dtype, "counts": counts} for dtype, counts in sums.items() if sum(counts)]


def _curves(cases):
    """Training: by run and quantity, the distance from float64 at each step, PyTorch's, and what is allowed."""
    runs = {}
    for case in cases:
        step = re.match(r"steps? (?:\d+-)?(\d+) (.+)", case["what"])
        if case["level"] == "train" and step and case["error"] is not None:
            at = case["data"].get("step", int(step[1]))  # of several steps, the worst
            runs.setdefault((case["name"], step[2]), {})[at] = case
    curves = []
    for (name, what), found in runs.items():
        if len(found) > 1:
            steps = sorted(found)
            limit = [found[s]["data"].get("limit") for s in steps]
            curves.append({
                "name": name, "what": what, "steps": steps, "ours": [found[s]["error"] for s in steps],
                "peer": [found[s]["peer_error"] for s in steps], "limit": limit,
                "limit_is": found[steps[-1]]["data"].get("limit_is", "three times the envelope of the twins"),
                "fine": all(found[s]["verdict"] in PASSING for s in steps),
            })  # fmt: skip
    return curves


def _kills(document):
    """Faults down, checks and dtypes across."""
    columns = _ordered((cell["check"], cell["dtype"]) for fault in document["faults"] for cell in fault["cells"])
    rows = []
    for fault in document["faults"]:
        cells = {(cell["check"], cell["dtype"]): cell for cell in fault["cells"]}
        rows.append((f"{fault['name']}: {fault['what']}", fault["killed"], [cells.get(column) for column in columns]))
    return {
        "checks": [" ".join(column) for column in columns], "rows": rows, "faults": len(rows),
        "killed": sum(killed for _, killed, _ in rows), "holes": document.get("holes", []),
    }  # fmt: skip
