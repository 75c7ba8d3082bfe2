"""What ``ck mutate`` prints: the table of faults, the survivors, the field's thresholds; as text, Markdown or JSON."""

from __future__ import annotations

import math

from . import mutate

_SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_LEGEND = (
    "K killed; = comes by and changes no bit that is compared; < changes less than rounding may (below the floor); "
    "! changes more and lives; · not come by"
)


def _columns(result):
    """Check and dtype of each column that something was measured in."""
    there = {(name, dtype) for _, name, dtype in result.cells}
    return [(name, dtype) for name in result.names for dtype in result.dtypes if (name, dtype) in there]


def _row(result, fault, columns):
    return [mutate._LETTERS[result.cell(fault, *column).state] for column in columns]


def text(result):
    """Lay everything out for a terminal.

    Parameters
    ----------
    result : mutate.Result

    Returns
    -------
    str
    """
    columns = _columns(result)
    width = max([len(name) for name in result.faults], default=5)
    heads = [" ".join(["fault".ljust(width), *(f"{name}" for name, _ in columns)])]
    heads = ["fault".ljust(width) + "".join(f" {name[:6]:>6}" for name, _ in columns),
             "".ljust(width) + "".join(f" {_SHORT[dtype]:>6}" for _, dtype in columns)]  # fmt: skip
    lines = [*heads]
    for fault, what in result.faults.items():
        cells = "".join(f" {letter:>6}" for letter in _row(result, fault, columns))
        lines.append(f"{fault.ljust(width)}{cells}  {what}")
    lines += ["", _LEGEND, ""]
    survivors = list(result.survivors())
    if survivors:
        lines.append("survivors:")
        lines += [f"  {fault} in {dtype}: {_why(state, change)}" for fault, dtype, state, change in survivors]
        lines.append("")
    for dtype in result.dtypes:
        rows = result.thresholds(dtype)
        if rows[0][2]:
            lines.append(
                f"the same {rows[0][2]} faults on the results of ops in {dtype}, and {rows[0][4]} correct results:"
            )
            for name, lives, faults, refused, correct in rows:
                lines.append(
                    f"  {name:24} lets {lives:3} of {faults} live, refuses {refused:4} of {correct} that are right"
                )
            lines.append("")
    for check, label, dtype, why in result.alarms:
        lines.append(f"FALSE ALARM: {check} {label} in {dtype}: {why}")
    for fault, dtype, why in result.holes():
        lines.append(f"HOLE: {fault}{' in ' + dtype if dtype else ''}: {why}")
    return "\n".join([*lines, summary(result)])


def _why(state, change):
    if state == mutate.SAME:
        return "no bit of a result changes"
    return f"below the floor, {change:.2g} of what is allowed"


def summary(result):
    """One line: how many of how many."""
    killed = {dtype: sum(result.killed(fault, dtype) for fault in result.faults) for dtype in result.dtypes}
    reached = {dtype: sum(result.reached(fault, dtype) for fault in result.faults) for dtype in result.dtypes}
    total = sum(result.killed(fault) for fault in result.faults)
    parts = ", ".join(f"{killed[d]} of {reached[d]} in {d}" for d in result.dtypes if reached[d])
    return (
        f"{total} of {len(result.faults)} faults killed ({parts}); {len(result.holes())} holes, "
        f"{len(result.alarms)} false alarms; {result.isa}, {result.seconds:.0f} s"
    )


def markdown(result):
    """The tables of docs/mutate.md."""
    lines = []
    dtypes = [dtype for dtype in result.dtypes if result.thresholds(dtype)[0][2]]
    counts = {dtype: result.thresholds(dtype) for dtype in dtypes}
    lines.append("| decides | " + " | ".join(f"{d}: live, of {counts[d][0][2]}" for d in dtypes) + " | "
                 + " | ".join(f"{d}: right ones refused, of {counts[d][0][4]}" for d in dtypes) + " |")  # fmt: skip
    lines.append("|---" * (1 + 2 * len(dtypes)) + "|")
    for i, (name, *_) in enumerate(counts[dtypes[0]] if dtypes else ()):
        cells = [str(counts[d][i][1]) for d in dtypes] + [str(counts[d][i][3]) for d in dtypes]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    columns = _columns(result)
    lines += ["", "| fault | what | " + " | ".join(f"{name} {_SHORT[d]}" for name, d in columns) + " |",
              "|---" * (2 + len(columns)) + "|"]  # fmt: skip
    for fault, what in result.faults.items():
        lines.append(f"| `{fault}` | {what} | " + " | ".join(_row(result, fault, columns)) + " |")
    lines += ["", _LEGEND + ".", "", "| survivor | dtype | why |", "|---|---|---|"]
    for fault, dtype, state, change in result.survivors():
        lines.append(f"| `{fault}` | {dtype} | {_why(state, change)} |")
    return "\n".join([*lines, "", summary(result) + "."])


def to_dict(result):
    """Everything as plain numbers and strings, for JSON; versioned."""
    faults = []
    for fault, what in result.faults.items():
        cells = [
            {"check": name, "dtype": dtype, "state": cell.state, "note": cell.note, "margin": cell.margin,
             "change": cell.change if math.isfinite(cell.change) else None,
             "thresholds_that_refuse": sorted(cell.refused) if cell.asked else None}
            for (f, name, dtype), cell in result.cells.items() if f == fault
        ]  # fmt: skip
        faults.append({"name": fault, "what": what, "killed": result.killed(fault), "cells": cells})
    keys = ("name", "live", "faults", "refused", "correct")
    return {
        "schema": mutate.SCHEMA,
        "tool": "ck mutate",
        "isa": result.isa,
        "faults": faults,
        "survivors": [dict(zip(("fault", "dtype", "state", "change"), s, strict=True)) for s in result.survivors()],
        "thresholds": {d: [dict(zip(keys, row, strict=True)) for row in result.thresholds(d)] for d in result.dtypes},
        "holes": [dict(zip(("fault", "dtype", "why"), hole, strict=True)) for hole in result.holes()],
        "false_alarms": [dict(zip(("check", "label", "dtype", "why"), a, strict=True)) for a in result.alarms],
        "seconds": result.seconds,
        "exit_code": result.exit_code,
        "summary": summary(result),
    }
