"""Lines of a table, and the same as JSON, version 1."""

import json
from dataclasses import asdict, dataclass, field

__all__ = ["Line", "ending", "heading", "line", "listed", "to_json"]

VERSION = 1


@dataclass
class Line:
    """What was measured of a case: seconds, bytes (or operations) a second, shares of the limit, ratios."""

    op: str
    case: str
    dtype: str
    isa: str
    way: str
    threads: int
    best: float
    median: float
    unit: str = ""
    rate: float = 0.0
    limit: float | None = None
    limit_median: float | None = None
    limit_name: str = ""
    torch_best: float | None = None
    torch_median: float | None = None
    out_best: float | None = None
    out_median: float | None = None
    hidden: int | None = None
    beside: dict = field(default_factory=dict)
    aim: float | None = None
    aim_limit: float | None = None


def _time(seconds):
    return f"{seconds * 1e6:.2f} us" if seconds < 1e-4 else f"{seconds * 1e3:.3f} ms"


def _size(n):
    return "" if n is None else f"{n / 2**20:.1f}M" if n >= 2**20 else f"{n / 1024:.0f}K"


def _ratios(best, median):
    return "" if best is None else f"{best:.2f} {median:6.2f}"


COLUMNS = (
    f"{'op':24} {'case':22} {'dtype':8} {'isa':8} {'time':>10} {'GB/s':>7} {'limit':>16} {'x torch: best median':>20} "
    f"{'with out=':>14} {'hidden':>7}"
)


def row(line):
    """Write a line of the table."""
    limit = "" if line.limit is None else f"{line.limit:.0%} {line.limit_median:4.0%} {line.limit_name}"
    name = f"{line.op} {line.way}".strip()
    text = (
        f"{name:24} {line.case:22} {line.dtype:8} {line.isa:8} {_time(line.best):>10} {line.rate:7.1f} {limit:>16} "
        f"{_ratios(line.torch_best, line.torch_median):>20} {_ratios(line.out_best, line.out_median):>14} "
        f"{_size(line.hidden):>7}"
    )
    return "  ".join([text, *(f"x {name}: {ratio:.2f}" for name, ratio in line.beside.items())]).rstrip()


def limits_text(rates):
    """Write what the machine can do at most."""
    names = [name for name in rates if name not in ("fma", "amx")]
    tiles = "not measured" if rates["amx"] is None else f"{rates['amx'] / 1e9:.0f} GF/s"
    return (
        "limits: " + ", ".join(f"{name} {rates[name] / 1e9:.1f}" for name in names) + " GB/s; "
        f"fused multiply-adds {rates['fma'] / 1e9:.0f} GF/s; AMX, bfloat16: {tiles}"
    )


def heading(session):
    """Print the machine, its limits and the columns."""
    from ckernels.parity import machine

    for text in machine.header(session.facts):
        print(text)
    print(limits_text(session.limits))
    from . import inputs

    if inputs.torch is None:
        print("x torch: not measured, PyTorch is not installed")
    print(f"\n{COLUMNS}", flush=True)


def line(found):
    """Print a line of the table."""
    print(row(found), flush=True)


def listed(session, case, dtype):
    """Print a case that was not run."""
    if session.options.format == "json":
        print(json.dumps({"op": case.op, "case": case.case, "dtype": dtype, "limit": case.limit}))
    else:
        print(f"{case.op:24} {case.case:22} {dtype:8} {case.limit}")


def ending(session):
    """Print how many lines there are, and the limits again: they drift."""
    from . import limits

    print(f"\n{limits_text(limits.measure())} (at the end)")
    print(f"{len(session.lines)} lines, {session.options.threads} threads")


def to_json(session):
    """Return the whole run as one object."""
    return json.dumps(
        {
            "format": "ckernels bench",
            "version": VERSION,
            "machine": getattr(session, "facts", {}),
            "limits": session.limits,
            "lines": [asdict(found) for found in session.lines],
            "failures": session.failures,
        },
        indent=1,
    )
