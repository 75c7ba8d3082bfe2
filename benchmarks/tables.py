"""The tables of docs/performance.md, from the lines of `ck bench --format json`."""
from statistics import median

SHORT = 20e-6  # seconds: calls below it are about calling, not about memory


def best_isa(lines):
    """Keep the lines of the best instruction set of each case: the first that there is."""
    seen, kept = set(), []
    for line in lines:
        key = line["op"], line["case"], line["dtype"], line["way"]
        if key not in seen:
            seen.add(key)
            kept.append(line)
    return kept


def limits(runs):
    """What the machine can do, from the least to the most that was measured in the run."""
    yield "| limit | lowest | median | highest |"
    yield "|---|---|---|---|"
    for name in runs[0]:
        if runs[0][name] is None:
            yield f"| {name} | not measured | | |"
            continue
        rates = sorted(run[name] / 1e9 for run in runs)
        unit = "GF/s" if name in ("fma", "amx") else "GB/s"
        yield f"| {name} | {rates[0]:.1f} | {median(rates):.1f} | {rates[-1]:.1f} {unit} |"


def begin(title, text, *columns):
    """The heading of a table."""
    return [f"## {title}", "", text, "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]


def share(x):
    """A percentage, or nothing."""
    return "" if x is None else f"{x:.0%}"


def ratio(x):
    """Two digits after the point where it matters."""
    return "" if x is None else f"{x:.2f}" if x < 10 else f"{x:.0f}"


def reached(line):
    """Shares of the limit: of the fastest calls, the median, and which limit."""
    if line["limit"] is None:
        return ""
    return f"{share(line['limit'])}, {share(line['limit_median'])} {line['limit_name']}"


def verdict(line):
    """Whether the aim of a line is reached; if not, what stands in the way."""
    short, faster = [], max(line["torch_best"] or 0, line["torch_median"] or 0)
    if line["aim"] and faster and faster < line["aim"]:
        short.append("PyTorch is nearer")
    if line["aim_limit"] and line["limit"] and max(line["limit"], line["limit_median"]) < line["aim_limit"]:
        short.append("below the limit")
    if short == ["PyTorch is nearer"] and (line["limit"] or 0) >= 0.8:
        return "at the machine's limit"
    return ", ".join(short) or "reached"


def aims(lines):
    """Aims beside what was measured."""
    yield from begin(
        "Aims",
        "Float32, best instruction set, the first case of an op. Ratios are of the fastest calls, then the median.",
        "op", "case", "ms", "x PyTorch: aim", "measured", "with `out=`", "limit: aim", "measured", "",
    )  # fmt: skip
    seen = set()
    for line in best_isa(lines):
        if (line["aim"] is None and line["aim_limit"] is None) or line["op"] in seen:
            continue
        seen.add(line["op"])
        out = "" if line["out_best"] is None else f"{ratio(line['out_best'])}, {ratio(line['out_median'])}"
        yield (f"| {line['op']} | {line['case']} | {line['best'] * 1e3:.2f} | {ratio(line['aim'])} | "
               f"{ratio(line['torch_best'])}, {ratio(line['torch_median'])} | {out} | {share(line['aim_limit'])} | "
               f"{reached(line)} | {verdict(line)} |")  # fmt: skip


def by(lines, *names):
    """Return {values of the fields: line}."""
    return {tuple(line[name] for name in names): line for line in lines}


def narrow(lines):
    """What 16 bits gain: time of float32 over time of the same elements in float16 and bfloat16."""
    found = by([line for line in best_isa(lines) if line["best"] >= SHORT], "op", "case", "dtype", "way")
    yield from begin(
        "16 bits",
        "Time in float32 over time in 16 bits, same elements, best instruction set; aim 1.6.",
        "op", "case", "float16", "bfloat16",
    )  # fmt: skip
    for (op, case, dtype, way), line in found.items():
        others = [found.get((op, case, name, way)) for name in ("float16", "bfloat16")]
        if dtype == "float32" and any(others):
            yield f"| {op} | {case} | " + " | ".join(ratio(o and line["best"] / o["best"]) for o in others) + " |"


def odd(lines):
    """How the other shapes do beside the first."""
    yield from begin(
        "Shapes",
        "GB/s of a shape over that of the op's first shape, in the same dtype, best instruction set; aim 0.8. Shapes "
        "that fit the caches are above 1.",
        "op", "shape", "float32", "float16", "bfloat16",
    )  # fmt: skip
    lines = [line for line in best_isa(lines) if line["unit"] == "GB/s" and line["best"] >= SHORT]
    found, first = by(lines, "op", "case", "dtype"), {}
    for line in lines:
        first.setdefault((line["op"], line["dtype"]), line)
    for op, case in dict.fromkeys((line["op"], line["case"]) for line in lines):
        shown = []
        for dtype in "float32", "float16", "bfloat16":
            line, round_one = found.get((op, case, dtype)), first.get((op, dtype))
            shown.append(ratio(line["rate"] / round_one["rate"]) if line and line is not round_one else "")
        if any(shown):
            yield f"| {op} | {case} | " + " | ".join(shown) + " |"


def tiny(lines):
    """Calls that are about calling."""
    yield from begin(
        "Tiny calls",
        "From Python, outputs made; best and median of a call, best instruction set; aim 1.5 us.",
        "op", "case", "dtype", "us", "median", "x PyTorch",
    )  # fmt: skip
    for line in best_isa(lines):
        if line["best"] < SHORT:
            yield (f"| {line['op']} | {line['case']} | {line['dtype']} | {line['best'] * 1e6:.2f} | "
                   f"{line['median'] * 1e6:.2f} | {ratio(line['torch_best'])} |")  # fmt: skip


def hidden(lines):
    """What a call takes beside its result."""
    yield from begin(
        "Memory",
        "The most that a call took from the arena beside its result, over all cases and dtypes: workspaces of threads, "
        "partial sums. Blocks of a megabyte and more are counted in pages of 2 MiB.",
        "op", "hidden", "in", "of bytes moved",
    )  # fmt: skip
    most = {}
    for line in lines:
        if line["hidden"] and line["hidden"] > most.get(line["op"], {"hidden": 0})["hidden"]:
            most[line["op"]] = line
    for op, line in most.items():
        moved = line["rate"] * 1e9 * line["best"] if line["unit"] == "GB/s" else 0
        of = share(line["hidden"] / moved) if moved else ""
        yield f"| {op} | {line['hidden'] / 1024:.0f} KiB | {line['case']}, {line['dtype']} | {of} |"


def all_lines(lines):
    """Every line of a bench, a table a dtype."""
    dtypes = list(dict.fromkeys(line["dtype"] for line in lines))
    for dtype in dtypes:
        own = [line for line in lines if line["dtype"] == dtype]
        beside = list(dict.fromkeys(name for line in own for name in line["beside"]))
        columns = ["op", "case", "isa", "time", "rate", "limit", "x PyTorch", "with `out=`"]
        columns += [f"x {name}" for name in beside]
        yield from [f"### {dtype}", ""] if len(dtypes) > 1 else []
        yield from [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        yield from (f"| {' | '.join(cells(line, beside))} |" for line in own)
        yield ""


def cells(line, beside):
    """A line's row."""
    clock = f"{line['best'] * 1e6:.2f} us" if line["best"] < 1e-4 else f"{line['best'] * 1e3:.3f} ms"
    yield from [f"{line['op']} {line['way']}".strip(), line["case"], line["isa"], clock]
    yield from [f"{line['rate']:.1f} {line['unit']}", reached(line)]
    for best, middle in ("torch_best", "torch_median"), ("out_best", "out_median"):
        yield "" if line[best] is None else f"{ratio(line[best])}, {ratio(line[middle])}"
    yield from (ratio(line["beside"].get(name)) for name in beside)
