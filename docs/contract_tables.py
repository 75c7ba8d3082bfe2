"""Write contracts.json out of headers, tests and planted faults, and the table of each page of docs/ops out of that.

PYTHONPATH=python:tests python docs/contract_tables.py
"""

import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parent.parent
START, END = "<!-- contract: written by docs/contract_tables.py -->", "<!-- end of contract -->"
FILE = ROOT / "python/ckernels/parity/contracts.json"

# Tests of a family beside tests/test_<family>.py.
BESIDE = {
    "rope": ("rope_scaling", "mrope"),
    "kv_cache": ("kv_attend", "kv_formats", "kv_paged", "kv_random"),
    "linear": ("linear_bits", "gemm_tiles"),
}
# Which tests answer a question, by words in their names.
ANSWERS = {
    "forward": r"match\w*_(torch|the_formula|numpy|transformers)|torch_and_autograd|is_the_(first|beginning)|draws_what"
    r"|is_attention_over|behind_its_own_length|rounded_once|against_float64|over_the_values_held",
    "gradient": r"autograd|backward_joins|backward_undoes",
    "differences": r"differences|backward_joins|backward_undoes|is_linear_in_each",
    "in place": r"in_place|over_its_incoming",
    "threads": r"on_threads|any_number_of_threads|or_threads|isa_threads|threads_give_the_same",
    "batch": r"or_batch|on_its_batch|append_n_is_n_times|batched_append_is|bits_it_has_alone|whichever_way",
    "isa": r"avx2_and_avx512|depend_on_isa",
    "extremes": r"extreme|nan_and_inf|a_nan|not_finite|neither_overflows|minus_infinity",
    "sizes": r"of_nothing|of_empty",
    "strides": r"strided|views|isa_strides",
    "refusals": r"refus",
    "memory": r"lack_of_memory|without_memory|out_of_blocks",
}
# Tests that ask every function of the extension the same, and are parametrised by it.
OF_EVERY_OP = {
    "refusals": ("tests/test_bindings.py::test_every_op_refuses_what_does_not_fit",),
    "memory": ("tests/test_memory_faults.py::test_every_allocation_may_fail",),
}
# Headers of kernels that several families share.
SHARED = {
    "norm": ("rms_norm", "layer_norm", "l2_norm", "add_rms_norm", "qk_norm_rope"),
    "rows": ("softmax", "log_softmax"),
    "sum_columns": ("rms_norm", "layer_norm", "add_rms_norm", "qk_norm_rope"),
    "gemm": ("linear", "matmul"),
    "kv_encode": ("kv_cache",),
    "kv_decode": ("kv_cache",),
    "kv_store": ("kv_cache",),
    "rope_table": ("rope",),
}
# Families whose results are of all elements together: there is no row that could stand alone.
WITHOUT_ROWS = ("sgd", "adamw", "clip_grad_norm", "kl_div", "mse_loss")
# Caches have no spec of level 1; op-diff compares what is made of them.
SERVED_BY = {"kv_cache": ["kv_cache_append", "paged_varlen_attn"]}


def equation(text):
    """Return the indented lines of a header's first comment: what is computed, index by index; else what it says."""
    comment = re.search(r"^/\*\n(.*?)^ \*/", text, re.M | re.S)[1]
    lines = [line[2:].rstrip() for line in comment.splitlines()[1:]]
    kept = []
    for line in lines:
        if line.startswith("     "):
            kept.append(line[5:])
        elif kept and kept[-1] and not line:
            kept.append("")
        elif kept and line and re.search(r"\S", line) and any(kept):
            kept.append("") if kept[-1] else None
    if not kept:
        told = re.findall(r"^ \* (\w+ -- .*?)(?=^ \*$|^ \*/|\Z)", comment + " */", re.M | re.S)
        kept = [re.sub(r"\s*\n \*\s*", " ", text).strip() for text in told]
    return "\n".join(kept).strip()


def sentence(text, start):
    """Return what follows some words up to the end of the sentence, on one line; "" where they are not there."""
    plain = re.sub(r"\s*\n \*\s*", " ", text)
    found = re.search(rf"{start}:? (.*?)(?:\.(?:\s|$)|;)", plain)
    return found[1].strip() if found else ""


def tests_of(family):
    """Return "tests/test_x.py::test_y" for every test of a family."""
    for stem in (family, *BESIDE.get(family, ())):
        path = ROOT / f"tests/test_{stem}.py"
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M) if path.exists() else ():
            yield f"tests/{path.name}::{name}"


def planted():
    """Yield (what is wrong, families) of the faults that the test build of the library has."""
    listed = ROOT / "csrc/faults.def"
    told = dict(re.findall(r'^CK_PLANT\((\w+), "([^"]+)"\)', listed.read_text(), re.M)) if listed.exists() else {}
    families = [page.stem for page in (ROOT / "docs/ops").glob("*.md")]
    places = {name: set() for name in told}
    for path in (p for folder in ("kernels", "ops") for p in (ROOT / "csrc" / folder).glob("*.[ch]")):
        own = [f for f in families if path.stem == f or path.stem.startswith(f"{f}_")]
        mine = SHARED.get(path.stem) or sorted(own, key=len)[-1:]
        for name in re.findall(r"\bCK_FAULT\((\w+)\)", path.read_text()):
            places.get(name, set()).update(mine)
    for name, text in told.items():
        yield text, places[name]


def owed(family, header, backward):
    """Yield the promises that a family makes."""
    from ckernels.parity.contracts import PROMISES

    for name in PROMISES:
        if name == "in place" and not re.search(r"^ +_\(OVER", header, re.M):
            continue
        if name == "batch" and family in WITHOUT_ROWS:
            continue
        if name in ("gradient", "differences") and not backward:
            continue
        yield name


def collect():
    """Return what contracts.json is to hold."""
    import faults
    from ckernels.parity.specs import SPECS

    called = dict(re.findall(r'^CK_(?:OP|LAYER)\((\w+), "([^"]+)"', (ROOT / "csrc/ops.def").read_text(), re.M))
    known = dict.fromkeys(spec.name for spec in SPECS)
    built_in = list(planted())
    found = {}
    for page in sorted((ROOT / "docs/ops").glob("*.md")):
        header = (ROOT / f"csrc/ops/{page.stem}.h").read_text()
        declared = [name for name in re.findall(r"^CK_DECLARE\((\w+)\)|^struct ck_(\w+) \{", header, re.M)]
        functions = [(c, called[c]) for c in ("".join(pair) for pair in declared) if c in called]
        names = [re.sub(r"_backward$|\.step$|^optim\.", "", user) for _, user in functions]
        tests = list(tests_of(page.stem))
        files = {test.partition("::")[0] for test in tests}
        backward = any(c.endswith("_bwd") for c, _ in functions)
        found[page.stem] = {
            "ops": SERVED_BY.get(page.stem) or [name for name in dict.fromkeys(names) if name in known],
            "functions": functions,
            "equation": equation(header),
            "saved": sentence(header, "Saved for backward"),
            "in_place": sentence(header, "In place"),
            "promises": {
                name: [t for t in tests if re.search(ANSWERS[name], t.partition("::test_")[2])]
                + list(OF_EVERY_OP.get(name, ()))
                for name in owed(page.stem, header, backward)
            },
            "kills": sorted(
                {fault.name for fault in faults.FAULTS if files & set(fault.tests.split())}
                | {text for text, families in built_in if page.stem in families}
            ),
        }
    return found


def pages():
    """Yield each page of docs/ops with its new text."""
    from ckernels.parity import contracts

    for contract in contracts.contracts():
        page = ROOT / f"docs/ops/{contract['family']}.md"
        before, _, rest = page.read_text().partition(START)
        after = rest.partition(END)[2] if rest else "\n"
        yield page, before.rstrip() + "\n\n" + "\n".join([START, "", contracts.table(contract), "", END]) + after


def main():
    """Write the file, then the pages."""
    sys.path[:0] = [str(ROOT / "python"), str(ROOT / "tests")]
    FILE.write_text(json.dumps(collect(), indent=1, ensure_ascii=False) + "\n")
    for page, text in pages():
        page.write_text(text)


if __name__ == "__main__":
    main()
