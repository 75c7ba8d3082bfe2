"""What each op promises, by which test or comparison each promise is proved, and which faults must be killed.

Nothing here is written a second time. Arguments and shapes come from the declaration in C (by the docstrings made from
it), dtypes, probes and bounds from the :class:`~ckernels.parity.specs.OpSpec`, ceilings from the comparison. The
equation out of the header, the tests that answer each question and the planted faults are in ``contracts.json``, which
``docs/contract_tables.py`` writes from the sources; a test holds it to them, and the tables of ``docs/ops`` too.
"""

import functools
import json
import math
import pathlib
import re

from ckernels import _ck

from .specs import SERVED, SPECS
from .tally import CEILING, NMSE_CEILING

#: What ``ck parity`` itself proves, by promise.
PROVED_BY_PARITY = {
    "forward": "ck parity ops",
    "gradient": "ck parity ops",
    "isa": "ck parity ops --backends avx512,avx2",
}
#: The promises, by name: what each says.
PROMISES = {
    "forward": "the result is within the rule",
    "gradient": "gradients are within the rule",
    "differences": "gradients are the differences of the op's own forward",
    "in place": "in place gives the bits of a new array",
    "threads": "same bits for any number of threads",
    "batch": "same bits for a row alone, in any batch, at any place",
    "isa": "same bits on avx2 and avx512",
    "extremes": "NaN, infinities and the largest numbers go where the arithmetic puts them",
    "sizes": "no rows, no columns: an empty result",
    "strides": "strided views are read as they lie",
    "refusals": "what does not fit is refused by its name",
    "memory": "without memory: MemoryError, and nothing half done",
}
RULE = "|ours - exact| <= 3 max|PyTorch - exact| + 2 ulp max|exact|, and the same for the root mean square"
_LINE = re.compile(r"^ {4}(\w+): (bool or )?(list of )?(\w+)(?:,? (?:broadcast to )?\[([^]]*)\])?(.*)$", re.M)


@functools.cache
def written():
    """Return what ``contracts.json`` holds, by family."""
    return json.loads((pathlib.Path(__file__).parent / "contracts.json").read_text())


def arguments(function):
    """Return the arguments of a function of ``_ck`` as declared in C, in order."""
    found = []
    for name, boolean, listed, kind, shape, rest in _LINE.findall(getattr(_ck, function).__doc__):
        found.append({
            "name": name, "type": ("bool or " if boolean else "") + kind, "shape": shape or None, "list": bool(listed),
            "written": "written" in rest, "optional": "or None" in rest or "not wanted" in rest,
        })  # fmt: skip
    return found


def contracts(op=None):
    """Return the contracts, one a family of ops.

    Parameters
    ----------
    op : str, optional
        A family, or an op in it by the name the user types.

    Returns
    -------
    list of dict
        ``family``, ``ops`` (of level 1), ``functions`` (each with its ``arguments``), ``equation``, ``saved``,
        ``in_place``, ``error`` (``rule``, ``bitwise``, ``bound``, ``ceilings``), ``dtypes``, ``float32_weights``,
        ``probes``, ``promises`` (name, text, tests), ``kills``.

    Raises
    ------
    KeyError
        There is none of that name.
    """
    found = [
        _contract(family, text)
        for family, text in written().items()
        if op in (None, family, *text["ops"], *(name for _, name in text["functions"]))
    ]
    if not found:
        raise KeyError(op)
    return found


def _contract(family, text):
    specs = [spec for spec in (*SPECS, *SERVED) if spec.name in text["ops"]]
    return {
        "family": family,
        "ops": text["ops"],
        "functions": [{"name": user, "c": c, "arguments": arguments(c)} for c, user in text["functions"]],
        "equation": text["equation"],
        "saved": text["saved"],
        "in_place": text["in_place"],
        "error": {
            "rule": RULE,
            "bitwise": sorted({f"{spec.name} {spec.what}" for spec in specs if spec.bitwise}),
            "bound": sorted({f"{spec.name} {spec.what}" for spec in specs if spec.bound is not None}),
            "ceilings": {
                d: {"error": None if math.isinf(CEILING[d]) else CEILING[d], "nmse": NMSE_CEILING[d]} for d in CEILING
            },
        },
        "dtypes": sorted({dtype for spec in specs for dtype in spec.dtypes}) or ["bfloat16", "float16", "float32"],
        "float32_weights": sorted({name for spec in specs for name in spec.weights}),
        "probes": {f"{spec.name} {spec.what}": [probe.label for probe in spec.probes] for spec in specs},
        "promises": [
            {"name": name, "text": PROMISES[name], "tests": tests} for name, tests in text["promises"].items()
        ],
        "kills": text["kills"],
    }


def table(contract):
    """Return a contract as a section of the op's page, in Markdown."""
    lines = ["## Contract", "", "| argument | | shape |", "|---|---|---|"]
    for function in contract["functions"]:
        lines.append(f"| **{function['name']}** | `{function['c']}` | |")
        for a in function["arguments"]:
            kind = ("list of " if a["list"] else "") + a["type"]
            how = ", ".join(w for w, is_so in (("written", a["written"]), ("optional", a["optional"])) if is_so)
            shape = f"`[{a['shape']}]`" if a["shape"] is not None else ""
            lines.append(f"| `{a['name']}` | {kind}{': ' + how if how else ''} | {shape} |")
    error, dtypes = contract["error"], ", ".join(contract["dtypes"])
    weights = ", ".join(f"`{name}`" for name in contract["float32_weights"])
    lines += ["", f"Dtypes: {dtypes}{f'; {weights} also float32 beside 16 bits' if weights else ''}."]
    if contract["saved"]:
        lines.append(f"Saved for backward: {contract['saved']}.")
    if error["bitwise"]:
        lines.append(f"Bit for bit: {', '.join(error['bitwise'])}.")
    lines += [f"Error: {error['rule']}.", "", "| promise | proved by |", "|---|---|"]
    for promise in contract["promises"]:
        proofs = [test.partition("::")[2].removeprefix("test_") for test in promise["tests"]]
        proofs += [PROVED_BY_PARITY[promise["name"]]] if promise["name"] in PROVED_BY_PARITY else []
        tests = ", ".join(f"`{proof}`" for proof in proofs)
        lines.append(f"| {promise['text']} | {tests or '**none: unproved**'} |")
    kills = contract["kills"]
    lines += ["", f"Faults it must kill: {'; '.join(kills) if kills else '**none is planted**'}."]
    return "\n".join(lines)


def to_text(found):
    """Return contracts for a reader: the tables, each below its equation."""
    parts = []
    for contract in found:
        parts += [
            f"# {contract['family']}: {', '.join(contract['ops'])}",
            "",
            contract["equation"],
            "",
            table(contract),
            "",
        ]
    return "\n".join(parts)


def command(options, form, error):
    """``ck parity contracts``: print them; returns the exit code."""
    try:
        found = contracts(options.op)
    except KeyError:
        raise error(f"no op is called '{options.op}'; there are {', '.join(written())}") from None
    if form == "json":
        document = {"schema": 1, "tool": "ck parity contracts", "contracts": found}
        print(json.dumps(document, indent=1, allow_nan=False))
    elif form in ("text", "markdown"):
        print(to_text(found))
    else:
        raise error(f"--format {form} is not for contracts: text, markdown or json")
    return 0
