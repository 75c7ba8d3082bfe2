"""Write the table of docs/numerics.md from a run: ``ck parity ops --format json | python docs/ratio_table.py``."""

import json
import pathlib
import sys

START, END = "<!-- ratios: written by docs/ratio_table.py -->", "<!-- end of ratios -->"


def shown(case):
    """Write both ratios of a case: of the largest error and of the root mean square."""
    if case is None:
        return ""
    if case["ratio"] is None:
        return "–"
    return " ".join("∞" if r is None else f"{r:.2f}" for r in (case["data"]["ratio_max"], case["data"]["ratio_rms"]))


def counted(cases):
    """Say how many ratios there are, and how they spread."""
    ratios = sorted(c["ratio"] for c in cases if c["ratio"] is not None)
    within = sum(r < 1.005 for r in ratios)  # 1.00 as printed
    worst = max((c for c in cases if c["ratio"] is not None), key=lambda c: c["ratio"])
    return (
        f"{len(ratios)} ratios, of maximum or root mean square the larger: {within} at most 1, {len(ratios) - within} "
        f"above, none above {ratios[-1]:.2f} ({worst['name']} {worst['what']}, {worst['isa']}); median "
        f"{ratios[len(ratios) // 2]:.2f}."
    )


def table(run):
    """Yield the Markdown lines: for each dtype a row for each output of a pass, a column for each instruction set."""
    measured = [c for c in run["cases"] if c["isa"] and c["error"] is not None]
    machine = run["machine"]
    yield (
        f"ckernels {machine['ckernels']}, {machine['compiler']}, {machine['cpu']}; PyTorch {machine['torch']}. "
        "In each field: ratio of the largest errors, ratio of the root mean squares. "
        "A dash: neither has an error, or only bits are compared."
    )
    for dtype in dict.fromkeys(c["dtype"] for c in measured):
        chosen = [c for c in measured if c["dtype"] == dtype]
        columns = list(dict.fromkeys(c["isa"] for c in chosen))
        rows = {}
        for case in chosen:
            rows.setdefault((case["name"], case["what"]), {})[case["isa"]] = case
        yield from ["", f"### {dtype}", "", counted(chosen), ""]
        yield "| op | pass | " + " | ".join(columns) + " | worst margin |"
        yield "|---|---|" + "---|" * (len(columns) + 1)
        for (name, what), cases in rows.items():
            margin = max(c["margin"] for c in cases.values() if c["margin"] is not None)
            yield f"| {name} | {what} | " + " | ".join(shown(cases.get(c)) for c in columns) + f" | {margin:.2f} |"


def main():
    """Replace what stands between the marks."""
    page = pathlib.Path(__file__).parent / "numerics.md"
    before, _, rest = page.read_text().partition(START)
    _, _, after = rest.partition(END)
    page.write_text(before + "\n".join([START, "", *table(json.load(sys.stdin)), "", END]) + after)


if __name__ == "__main__":
    main()
