"""What ``ck compare``, ``ck diagnose`` and ``ck report`` do with traces and with reports."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import numpy as np

from .diagnose import diagnose
from .diff import diff
from .digests import differing
from .equations import split
from .trace import Trace

# Relative differences: below the first, two float32 runs agree; above the second, a stage is broken, as in compare().
_AGREE, _BROKEN = 1e-5, 0.1
_JUMP = 100  # a stage that differs so many times more than what came before it
_PARAMETER = (".weight", ".bias", ".sinks")


def is_trace(path):
    """Whether a folder holds the manifest of a trace."""
    return (Path(path) / "manifest.json").is_file()


def read_trace(path, error):
    """Load a trace; `error` is raised with its name where it cannot be read."""
    if not is_trace(path):
        raise error(f"{path}: no trace: a folder with manifest.json")
    try:
        return Trace.load(path)
    except (ValueError, OSError, ImportError) as reason:
        raise error(str(reason)) from None


def _model(arguments, traces, error, locate):
    """Configuration and parameters: from --model, or those that a trace brings with it; None where nobody has them."""
    path = getattr(arguments, "model", None)
    if path is None and not is_trace(arguments.reference if hasattr(arguments, "reference") else arguments.exact):
        path = arguments.reference
    if path is not None:
        from ckernels.models import load

        try:
            model = load(locate(path))
        except (ImportError, OSError, EOFError, OverflowError, MemoryError, ValueError) as reason:
            raise error(str(reason)) from None
        return model.config, model.params
    for trace in traces:
        params = {name: array for name, array in trace.inputs.items() if name.endswith(_PARAMETER)}
        if params:
            return trace.config, params
    return None


def diagnose_traces(arguments, error, locate):
    """``ck diagnose A B``.

    Parameters
    ----------
    arguments : argparse.Namespace
    error : type
        Raised for wrong usage.
    locate : callable
        Turns the name of a model into a file.

    Returns
    -------
    int
        The exit code.
    """
    candidate = read_trace(arguments.candidate, error)
    traces = [candidate]
    if is_trace(arguments.reference):
        traces.insert(0, read_trace(arguments.reference, error))
    elif not os.path.exists(arguments.reference) and Path(arguments.reference).suffix:
        raise error(f"{arguments.reference}: no such file or folder")
    model = _model(arguments, traces, error, locate)
    if model is None:
        raise error("neither trace has the parameters of the model among its inputs; give --model")
    if not candidate.arrays and candidate.hashes:
        raise error(f"{arguments.candidate}: holds hashes alone; ck compare says where two of them first differ")
    try:
        found = diagnose(
            candidate, model, names=arguments.names, dtype=arguments.dtype, assume=arguments.assume,
            progress=_progress if sys.stderr.isatty() else None,
        )  # fmt: skip
    except (ValueError, OSError) as reason:
        raise error(str(reason)) from None
    show(found.to_dict(), f"{found.diff}\n\n{found}" if found.findings else found, arguments.format, error)
    return found.exit_code


def show(document, text, form, error):
    """Print a document in the form asked for: text, json, html or markdown; `error` is raised where that cannot be."""
    from . import pages

    if form == "text":
        print(text)
    elif form == "json":
        print(json.dumps(document, indent=1, allow_nan=False))
    else:
        try:
            print((pages.to_html if form == "html" else pages.to_markdown)([document]))
        except pages.DocumentError as reason:
            raise error(str(reason)) from None


def promised(arguments, options, error):
    """``ck parity contracts`` and ``ck parity coverage``; the exit code. Without reports, level 1 is run for one."""
    from . import contracts, coverage, levels, machine, ops, pages
    from .report import Summary, to_json

    if arguments.level == "contracts":
        return contracts.command(options, arguments.format, error)
    facts = machine.machine()
    isas = [*dict.fromkeys([*facts["isas"], *facts["lacking"], "cuda"])]
    try:
        documents = [pages.read(path) for path in arguments.reports]
        if not documents:
            cases = list(ops.run(options))
            documents = [json.loads(to_json(cases, facts, options, Summary.of(cases, 0.0)))]
    except (pages.DocumentError, levels.OptionError) as reason:
        raise error(str(reason)) from None
    return coverage.command(documents, options.op, arguments.format, isas, error)


def report(arguments, error):
    """``ck report FILES``: one page out of saved reports; returns the exit code of the worst of them."""
    from . import pages

    try:
        documents = [pages.read(path) for path in arguments.files]
        found = pages.content(documents)
        text = (pages.to_html if arguments.format == "html" else pages.to_markdown)(documents)
    except pages.DocumentError as reason:
        raise error(str(reason)) from None
    if arguments.output:
        try:
            Path(arguments.output).write_text(text + "\n")
        except OSError as reason:
            raise error(f"{arguments.output}: {reason.strerror or reason}") from None
    else:
        print(text)
    return found["code"]


def _progress(name):
    print(f"\r\033[K{name}", end="\r", file=sys.stderr, flush=True)


def compare_traces(arguments, error, locate):
    """``ck compare A B`` of two traces: with parameters by recomputing, else by their differences alone."""
    if arguments.format == "junit":
        raise error("--format junit is for arrays; traces have text, json, html and markdown")
    a, b = (read_trace(path, error) for path in (arguments.actual, arguments.exact))
    model = _model(arguments, (b, a), error, locate)
    if model is not None and a.arrays:
        try:
            found = diff(a, model, names=arguments.names)
        except (ValueError, OSError) as reason:
            raise error(str(reason)) from None
        told, text, code = found.to_dict(), str(found), found.exit_code
    else:
        told, text, code = between(a, b)
    show(told, text, arguments.format, error)
    return code


def between(a, b):
    """Two traces without the parameters of their model: where they part, by the size of their differences.

    Nothing says here how much rounding a stage may cost, so small differences are UNDECIDED, never a pass.

    Returns
    -------
    dict, str, int
        For JSON, as text, and the exit code.
    """
    names = [name for name in b.hashes if name in a.hashes]
    missing = [name for name in (*b.hashes, *a.hashes) if name not in names]
    same = [name for name in names if name not in set(differing(a.hashes, b.hashes))]
    rows, first, last = [], None, 0.0
    for name in names:
        off = 0.0 if name in same else _difference(a, b, name)
        rows.append((name, off))
        before = max((d for other, d in rows[:-1] if d is not None and _feeds(other, name)), default=0.0)
        if first is None and off is not None and off > max(_AGREE, _JUMP * before):
            first, last = name, before
    wild = [name for name, off in rows if off is not None and off > _BROKEN]
    if missing or wild:
        verdict, code = ("UNMEASURED" if missing and not wild else "STRUCTURAL"), 1
    elif not names:
        verdict, code = "VACUOUS", 3
    else:
        verdict, code = ("EXACT", 0) if len(same) == len(names) else ("UNDECIDED", 2)
    text = [
        f"{name:24} {'same bits' if off == 0 else 'differs' if off is None else f'{off:9.2g}'}" for name, off in rows
    ]
    text += [f"{name:24} UNMEASURED: one trace does not have it" for name in missing]
    line = f"{verdict}: {len(same)} of {len(names)} stages have the same bits"
    if first:
        line += f"; the first whose inputs agree (to {last:.2g}) and whose output differs is {first} "
        line += f"({dict(rows)[first]:.2g})"
    elif len(same) < len(names):
        unlike = next(name for name in names if name not in same)
        line += f"; the first that differs by a bit is {unlike}"
    if verdict == "UNDECIDED":
        line += ". Without the parameters (--model) nothing says how much rounding may cost"
    told = {
        "schema": 1,
        "tool": "ck compare",
        "verdict": verdict,
        "first": first,
        "exit_code": code,
        "missing": missing,
        "stages": [{"name": name, "difference": off} for name, off in rows],
        "summary": line + ".",
    }
    return told, "\n".join([*text, line + "."]), code


def _difference(a, b, name):
    """Relative RMS difference; None where only hashes are left."""
    if name not in a.arrays or name not in b.arrays:
        return None
    x, y = (np.asarray(t.arrays[name], np.float64) for t in (a, b))
    if x.shape != y.shape:
        return 1e300
    size, off = (
        float(np.sqrt(np.mean(y * y))) if y.size else 0.0,
        float(np.sqrt(np.mean((x - y) ** 2))) if x.size else 0.0,
    )
    if not math.isfinite(off):
        return 1e300
    return off / size if size else (0.0 if off == 0 else 1e300)


def _feeds(other, name):
    """Whether a stage comes before another in the same layer, or is the output that the layer starts from."""
    (i, stage), (j, _) = split(other), split(name)
    return i == j or j is None or (i is not None and i < j and stage == "output") or other == "embedding"
