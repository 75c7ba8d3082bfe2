"""The process in which faults are planted: ``python mutate_worker.py``, one JSON line in, many out.

It has the test build in the place of the library, and says what it is about to do before it does it: where a planted
fault crashes it, the process that started it knows which.
"""

import contextlib
import importlib.util
import json
import math
import os
import sys
from pathlib import Path


def _load(folder):
    """Put the test build in the place of ``ckernels._ck``, before anything of the package is imported."""
    spec = importlib.util.spec_from_file_location("ckernels._ck", Path(folder) / "_ck.so")
    module = importlib.util.module_from_spec(spec)
    sys.modules["ckernels._ck"] = module
    spec.loader.exec_module(module)
    return module


def _tell(**fields):
    print(json.dumps(fields), flush=True)


@contextlib.contextmanager
def _planted(ck_c, name):
    """Plant a fault, of C or of the wiring, for a block; "" for none."""
    from ckernels.parity import mutate_wiring as wiring

    inner = wiring.WIRING[name][2] if name in wiring.WIRING else name
    ck_c.plant(inner)
    try:
        with wiring.planted(name) if name in wiring.WIRING else contextlib.nullcontext():
            yield
    finally:
        ck_c.plant("")


def _cell(check, name, seen, clean):
    change = seen.change_from(clean)
    return {
        "fault": name,
        "killed": seen.killed,
        "margin": seen.margin if math.isfinite(seen.margin) else None,
        "change": None if math.isinf(change) else change,
        "refused": sorted(seen.refused),
        "check": check.name,
        "dtype": check.dtype,
        "label": check.label,
    }


def work(job):
    """Ask every check about the correct code, then about each fault that it comes by.

    Parameters
    ----------
    job : dict
        ``folder`` of the test build, ``isa``, ``faults`` (names), ``checks``, ``dtypes``, ``of`` (ops), ``seed``;
        ``from`` (number of the first check), ``part`` of ``parts`` (every so many), ``skip`` (faults that the first
        has been asked about, or that crash it).
    """
    ck_c = _load(job["folder"])
    import ckernels as ck
    from ckernels.parity import mutate_checks, mutate_wiring

    ck.use(job["isa"])
    mutate_checks.keep_other_sides()
    with mutate_checks.one_thread_of_torch():
        found = mutate_checks.checks(job["checks"], job["dtypes"], job["seed"], job["of"])
        _tell(total=len(found))
        for number, check in enumerate(found):
            if number < job["from"] or number % job["parts"] != job["part"]:
                continue
            _tell(begin=number, check=check.name, label=check.label, dtype=check.dtype)
            with _planted(ck_c, ""):
                clean = check()
                reached = set(ck_c.asked())
            _tell(clean=clean.killed, check=check.name, label=check.label, dtype=check.dtype,
                  results=clean.results, refusals=clean.refusals, margin=clean.margin)  # fmt: skip
            inner = {fault for _, _, fault in mutate_wiring.WIRING.values()}
            for name in job["faults"]:
                if name in inner or (name not in mutate_wiring.WIRING and name not in reached):
                    continue
                if number == job["from"] and name in job["skip"]:
                    continue
                if name in mutate_wiring.WIRING and not _concerns(name, check):
                    continue
                _tell(fault=name)
                with _planted(ck_c, name):
                    seen = check()
                _tell(cell=_cell(check, name, seen, clean))
            check._sides = None  # inputs and references of a check that is done
    _tell(done=True)


def _concerns(name, check):
    """Whether a fault of the wiring can touch a check: it is not counted where its function is never called."""
    ops = {
        "norm_after_rope": "qk_norm_rope", "group_map": "scaled_dot_product_attention",
        "group_map_k": "scaled_dot_product_attention", "group_map_v": "scaled_dot_product_attention",
        "weight_transposed": "linear", "dweight_transposed": "linear", "residual_aliased": "add_rms_norm",
        "embedding_next_row": "embedding", "norm_widened": "rms_norm",
    }  # fmt: skip
    if name in ops:
        return check.name in ("ops", "memory") and check.label.split()[0] == ops[name]
    return check.name not in ("ops", "memory")


def main():
    """Read the job and do it; what is printed by anybody else goes to standard error."""
    job = json.loads(sys.stdin.readline())
    lines = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(lines, "w", buffering=1)
    os.environ["CK_ISA"] = job["isa"]
    sys.path[:0] = [path for path in job["path"] if path not in sys.path]
    work(job)


if __name__ == "__main__":
    sys.path[:] = [path for path in sys.path if path != str(Path(__file__).parent)]  # its neighbours are no top level
    main()
