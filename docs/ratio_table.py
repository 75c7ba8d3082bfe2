"""Write the table of docs/numerics.md from a run: ``ck parity ops --format json | python docs/ratio_table.py``."""

import json
import pathlib
import sys

START, END = "<!-- ratios: written by docs/ratio_table.py -->", "<!-- end of ratios -->"


def table(run):
    """Return the Markdown lines: a row for each output of a pass, a column for each instruction set."""
    measured = [c for c in run["cases"] if c["isa"] and c["error"] is not None]
    columns = list(dict.fromkeys(c["isa"] for c in measured))
    rows = {}
    for case in measured:
        rows.setdefault((case["name"], case["what"]), {})[case["isa"]] = case
    machine = run["machine"]
    yield (
        f"ckernels {machine['ckernels']}, {machine['compiler']}, {machine['cpu']}; PyTorch {machine['torch']}. "
        "A dash: neither has an error, or only bits are compared."
    )
    yield ""
    yield "| op | pass | " + " | ".join(columns) + " | worst margin |"
    yield "|---|---|" + "---|" * (len(columns) + 1)
    for (name, what), cases in rows.items():
        ratios = [cases[c]["ratio"] if c in cases else "" for c in columns]
        shown = ["–" if r is None else r if r == "" else f"{r:.2f}" for r in ratios]
        margin = max(c["margin"] for c in cases.values() if c["margin"] is not None)
        yield f"| {name} | {what} | " + " | ".join(shown) + f" | {margin:.2f} |"


def main():
    """Replace what stands between the marks."""
    page = pathlib.Path(__file__).parent / "numerics.md"
    before, _, rest = page.read_text().partition(START)
    _, _, after = rest.partition(END)
    page.write_text(before + "\n".join([START, "", *table(json.load(sys.stdin)), "", END]) + after)


if __name__ == "__main__":
    main()
