"""A report as Markdown: the comment below a pull request."""

from .content import content, label

_MARKS = {"ok": "✅", "failed": "❌"}
_LISTED = 20


def to_markdown(documents):
    """Return documents as GitHub's Markdown: the verdict, a line a level, failures first, the rest folded.

    Parameters
    ----------
    documents : list of dict
        As of :func:`ckernels.parity.pages.to_html`.
    """
    found = content(documents)
    lines = [f"## {_MARKS.get(found['word'], '⚠️')} ckernels parity: {found['word']}", ""]
    for document in found["documents"]:
        asked = f" `{document['options']}`" if document["options"] else ""
        lines += [f"**{document['tool']}**{asked}: {_cell(document['text'])}", ""]
    if found["levels"]:
        lines += ["| level | compared | within budget | exact | failed | worst margin |", "|---|--:|--:|--:|--:|---|"]
        for level in found["levels"]:
            worst = level["worst"]
            told = f"{worst['margin']:.2f} {_cell(label(worst))}" if worst else "–"
            counts = (level["compared"], level["passed"], level["exact"], level["failed"])
            lines.append(f"| {level['title']} | {' | '.join(map(str, counts))} | {told} |")
        lines.append("")
    lines += _failures(found["failures"])
    for diagnosis in found["diagnoses"]:
        lines += [
            f"### Diagnosis: {diagnosis['verdict']}",
            "",
            "```",
            diagnosis["text"].replace("```", "'''"),
            "```",
            "",
        ]
    for kills in found["kills"]:
        lines += [f"**Planted faults**: {kills['killed']} of {kills['faults']} killed.", ""]
    lines += _closest(found["levels"])
    if found["not_measured"]:
        listed = "; ".join(f"{_cell(label(c))}: {_cell(c['note'])}" for c in found["not_measured"][:_LISTED])
        lines += [f"Not measured here: {listed}", ""]
    for machine in found["machines"][:1]:
        lines += [f"<sub>{_cell(machine.get('cpu'))}, {', '.join(machine.get('isas') or [])}, "
                  f"{_cell(machine.get('compiler'))}, PyTorch {machine.get('torch')}</sub>", ""]  # fmt: skip
    return "\n".join(lines)


def _failures(cases):
    if not cases:
        return []
    lines = ["### What failed", "", "| | dtype | where | verdict | margin | why |", "|---|---|---|---|--:|---|"]
    for case in cases[:_LISTED]:
        margin = "" if case["margin"] is None else f"{case['margin']:.3g}"
        name = f"{case['name']} {case['what']}"
        cells = (name, case["dtype"], case["isa"], case["verdict"], margin, case["note"])
        lines.append(f"| {' | '.join(_cell(c) for c in cells)} |")
    more = [f"and {len(cases) - _LISTED} more", ""] if len(cases) > _LISTED else []
    return [*lines, "", *more]


def _closest(levels):
    """The margins nearest to 1, folded."""
    points = sorted((p for level in levels for p in level["points"] if p[1]), key=lambda p: p[0], reverse=True)[:10]
    if not points:
        return []
    rows = [f"| {margin:.2f} | {_cell(name)} |" for margin, _, name in points]
    return [
        "<details><summary>margins nearest to 1</summary>",
        "",
        "| margin | |",
        "|--:|---|",
        *rows,
        "",
        "</details>",
        "",
    ]


def _cell(text):
    """Text that stays in its cell and is no markup."""
    return str(text if text is not None else "").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
