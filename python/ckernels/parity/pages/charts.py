"""Charts as SVG text: no script, no file; a title on every mark for who points at it."""

import math

from markupsafe import Markup, escape

_WIDTH = 480


def short(value):
    """Write a figure in four characters or so."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    return f"{value:.2f}" if 0.005 <= abs(value) < 100 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def shade(margin, fine=True):
    """Return the class of a cell: how much of what is allowed was used."""
    if not fine or (margin is not None and margin > 1):
        return "bad"
    if margin is None:
        return "none"
    return (
        "m0" if margin == 0 else "m1" if margin <= 0.1 else "m2" if margin <= 0.34 else "m3" if margin <= 0.7 else "m4"
    )


def _svg(height, parts, title):
    body = "".join(parts)
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}" '
        f'preserveAspectRatio="xMidYMid meet">{body}</svg>'
    )


def _text(x, y, text, anchor="middle", css=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{escape(text)}</text>'


def _point(x, y, css, title):
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="{css}"><title>{escape(title)}</title></circle>'


def strip(points):
    """Draw margins as points along a logarithmic axis, a line at 1: to its left is within budget.

    Parameters
    ----------
    points : list of (margin, fine, label)
    """
    low, high, top, bottom = -3.0, 2.0, 10, 64

    def at(margin):
        exponent = low if margin <= 0 else min(max(math.log10(margin), low), high)
        return 24 + (exponent - low) / (high - low) * (_WIDTH - 48)

    parts = [f'<rect x="24" y="{top}" width="{at(1) - 24:.1f}" height="{bottom - top}" class="within"/>']
    for exponent in range(int(low), int(high) + 1):
        x = at(10.0**exponent)
        parts.append(
            f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}" class="{"one" if exponent == 0 else "grid"}"/>'
        )
        name = "≤0.001" if exponent == low else "≥100" if exponent == high else f"{10.0**exponent:g}"
        parts.append(_text(x, bottom + 16, name))
    columns = {}
    for margin, fine, label in sorted(points, key=lambda p: p[1], reverse=True):
        x = at(margin)
        level = columns[round(x / 4)] = columns.get(round(x / 4), -1) + 1
        y = bottom - 5 - 4 * (level % 12)
        css = "fine" if fine else "red"
        parts.append(_point(x, y, css, f"{label}: {short(margin)}"))
    return _svg(bottom + 24, parts, f"{len(points)} margins on a logarithmic axis, allowed up to 1")


def bars(counts, labels):
    """Draw a histogram, the share on each bar; what is not nothing has a height."""
    total, top, bottom = sum(counts), 26, 150
    most = max(counts)
    step = (_WIDTH - 20) / len(counts)
    parts = []
    for i, (count, label) in enumerate(zip(counts, labels, strict=True)):
        height = max((bottom - top) * count / most, 1.0 if count else 0.0) if most else 0.0
        x = 10 + i * step
        share = f"{100 * count / total:.1f}%" if count * 1000 >= total else "<0.1%"
        parts.append(
            f'<rect x="{x + 3:.1f}" y="{bottom - height:.1f}" width="{step - 6:.1f}" height="{height:.1f}" class="bar">'
            f"<title>{escape(label)} ulp: {count} of {total}, {share}</title></rect>"
        )
        if count:
            parts.append(_text(x + step / 2, bottom - height - 5, share))
        parts.append(_text(x + step / 2, bottom + 17, label))
    return _svg(bottom + 26, parts, "errors by their size in ulp")


def curve(found):
    """Draw the distance from float64 over the steps of a training run: ours, PyTorch's, and what is allowed."""
    steps = found["steps"]
    values = [
        v for key in ("ours", "peer", "limit") for v in found[key] if v is not None and v > 0 and math.isfinite(v)
    ]
    if not values:
        return Markup("<p>All distances are 0.</p>")
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    low, high = max(low, high - 12), max(high, low + 1)
    left, right, top, bottom = 56, _WIDTH - 12, 12, 190

    def x(step):
        return left + (step - steps[0]) / max(1, steps[-1] - steps[0]) * (right - left)

    def y(value):
        exponent = low if not value or value <= 0 else min(max(math.log10(value), low), high)
        return bottom - (exponent - low) / (high - low) * (bottom - top)

    def line(key):
        return " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(steps, found[key], strict=True) if v is not None)

    parts = []
    limit = [(s, v) for s, v in zip(steps, found["limit"], strict=True) if v is not None and math.isfinite(v)]
    if limit:
        edge = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in limit)
        area = f"{x(limit[0][0]):.1f},{bottom} {edge} {x(limit[-1][0]):.1f},{bottom}"
        parts += [f'<polygon points="{area}" class="within"/>', f'<polyline points="{edge}" class="limit"/>']
    for exponent in range(low, high + 1, max(1, (high - low) // 6)):
        at = y(10.0**exponent)
        parts += [
            f'<line x1="{left}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}" class="grid"/>',
            _text(left - 6, at + 4, f"1e{exponent}", "end"),
        ]
    for step in sorted({steps[0], steps[len(steps) // 2], steps[-1]}):
        parts.append(
            _text(
                x(step),
                bottom + 18,
                f"step {step}",
                "start" if step == steps[0] else "end" if step == steps[-1] else "middle",
            )
        )
    parts += [f'<polyline points="{line("peer")}" class="peer"/>', f'<polyline points="{line("ours")}" class="ours"/>']
    for step, value in zip(steps, found["ours"], strict=True):
        parts.append(_point(x(step), y(value), "fine" if found["fine"] else "red", f"step {step}: {short(value)}"))
    return _svg(bottom + 28, parts, f"{found['name']}, {found['what']}: distance from float64 by step")
