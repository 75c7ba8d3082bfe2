"""How well `diagnose` does on an implementation that is not its own: ``python -m ckernels.parity.acceptance``.

Counts mistakes that are named uniquely or in a class of two, wrong names, names given to mistakes that are not in the
catalogue, and false alarms on correct runs.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import sys
import time

import numpy as np

from .diagnose import diagnose
from .diff import diff
from .forward import MODEL, locate
from .independent import CONFIG, Block, inputs, parameters
from .planted import FAULTS, FOREIGN
from .trace import Trace

#: Where the loss begins, gradients of it are not written in the second implementation.
OUTCOMES = ("unique", "class of two", "larger class", "below the floor", "none", "wrong stage", "wrong name")


def candidate(fault="", dtype="float32", seed=0, tokens=37, start=0):
    """A trace of the second implementation, and the model that it should be."""
    params, given = parameters(seed, dtype), inputs(seed, tokens, start)
    arrays = Block(params, fault, dtype).forward(**given)
    return Trace(CONFIG, dict(arrays), given), (CONFIG, params)


def rerun(fault, inputs, dtype="float32", seed=0):
    """Run the second implementation on other inputs: ids alone are enough."""
    ids = np.atleast_2d(inputs["ids"])
    given = {"ids": ids, "targets": inputs.get("targets", np.roll(ids, -1, 1))}
    given["positions"] = inputs.get("positions", np.broadcast_to(np.arange(ids.shape[1]), ids.shape))
    return Trace(CONFIG, dict(Block(parameters(seed, dtype), fault, dtype).forward(**given)), given)


def outcome(fault, dtype, seed=0):
    """What `diagnose` makes of one mistake.

    Returns
    -------
    str
        One of `OUTCOMES`; for a foreign mistake "none" is right.
    list of str
        The names that were given.
    """
    start = 4000 if fault == "rope float32 angles" else 0
    found = diagnose(*candidate(fault, dtype, seed, start=start))
    if found.stage is None:
        return "below the floor", []
    names = [name for name, _ in found.findings[0].causes]
    shown = found.findings[0].names
    if fault in FOREIGN:
        place = found.stage if found.layer is None else f"layers.{found.layer}.{found.stage}"
        return ("wrong name" if names else "none" if place == FOREIGN[fault] else "wrong stage"), shown
    if not names:
        return "none", []
    if FAULTS[fault] not in names:
        return "wrong name", shown
    if any(f.causes and not _same(f, FAULTS[fault]) for f in found.findings[1:]):
        return "wrong name", [name for f in found.findings for name in f.names]
    return {1: "unique", 2: "class of two"}.get(len(shown), "larger class"), shown


def _same(finding, name):
    """A later finding may be another face of the mistake: one of its own names has the same part and kind."""
    return any(other.split(" (")[0].split(",")[0] == name.split(" (")[0].split(",")[0] for other, _ in finding.causes)


def false_alarms(dtype, seeds):
    """Seeds of correct runs in which something is reported."""
    return [
        seed for seed in seeds if not getattr(diff(*candidate("", dtype, seed, 5 + seed % 36)).verdict, "ok", False)
    ]


def thresholds(dtype="float32", seed=0):
    """What common thresholds on the logits let pass: how many mistakes live, of those that change the logits.

    Returns
    -------
    dict of str to int
        Mistakes that pass each threshold; ``mistakes`` has their number.
    """
    counts = collections.Counter()
    right = {start: candidate("", dtype, seed, start=start)[0].arrays["logits"].astype(float) for start in (0, 4000)}
    for fault in (*FAULTS, *FOREIGN):
        start = 4000 if fault == "rope float32 angles" else 0
        a, b = candidate(fault, dtype, seed, start=start)[0].arrays["logits"].astype(float), right[start]
        if np.array_equal(a, b):
            continue
        counts["mistakes"] += 1
        counts["correlation >= 0.99"] += bool(np.corrcoef(a.ravel(), b.ravel())[0, 1] >= 0.99)
        counts["cosine >= 0.999"] += bool(np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)) >= 0.999)
        counts["NMSE <= 5e-4"] += bool(np.mean((a - b) ** 2) / np.mean(b * b) <= 5e-4)
        counts["allclose 1e-2"] += bool(np.allclose(a, b, rtol=1e-2, atol=1e-2))
        counts["mean difference <= 0.1"] += bool(np.mean(np.abs(a - b)) <= 0.1)
        counts["same best word in 95 %"] += bool(np.mean(a.argmax(-1) == b.argmax(-1)) >= 0.95)
    return dict(counts)


def real(name=MODEL, tokens=64):
    """Diff and diagnose a trace of a whole real model: right, and with the eps of another config.

    Parameters
    ----------
    name : str
        A file, a folder, or a name that ``ck fetch`` knows.
    tokens : int

    Returns
    -------
    dict
        How many stages, how long diff and diagnosis took, the verdict on the right trace, the names for the wrong one.
    """
    from ckernels.models import Model, load

    model = load(locate(name), dtype="float32")
    ids = np.random.default_rng(5).integers(0, model.config.vocab_size, (1, tokens))
    right = model.trace(ids)
    wrong = Model(dataclasses.replace(model.config, rms_norm_eps=1e-3), model.params).trace(ids)
    wrong = Trace(model.config, dict(wrong.arrays), dict(wrong.inputs))
    start = time.perf_counter()
    passed = diff(right, model)
    middle = time.perf_counter()
    found = diagnose(wrong, model)
    end = time.perf_counter()
    return {
        "model": str(name),
        "tokens": tokens,
        "stages": len(right.arrays),
        "seconds_of_diff": middle - start,
        "seconds_of_diagnosis": end - middle,
        "verdict_of_the_right_one": str(passed.verdict),
        "stage_of_the_wrong_one": found.stage,
        "names": found.findings[0].names if found.findings else [],
    }


def run(dtypes=("float32", "bfloat16"), faults=None, seeds=100, seed=0, tell=lambda text: None):
    """Try everything.

    Returns
    -------
    dict
        For each dtype: counts by outcome, what was said where it was no unique name, false alarms.
    """
    report = {}
    for dtype in dtypes:
        counts, foreign, said = collections.Counter(), collections.Counter(), {}
        for fault in faults or (*FAULTS, *FOREIGN):
            result, names = outcome(fault, dtype, seed)
            tell(f"{dtype}: {fault}: {result} {names if result != 'unique' else ''}")
            (foreign if fault in FOREIGN else counts)[result] += 1
            if result != "unique":
                said[fault] = [result, *names]
        alarms = false_alarms(dtype, range(seeds))
        report[dtype] = {
            "known": dict(counts),
            "foreign": dict(foreign),
            "said": said,
            "alarms": alarms,
            "seeds": seeds,
        }
    return report


def main(argv=None):
    """Print the counts; exit with 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", action="append", choices=("float32", "bfloat16"), help="default: both")
    parser.add_argument("--seeds", type=int, default=100, help="of correct runs (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the parameters and inputs of the mistakes")
    parser.add_argument("--thresholds", action="store_true", help="only what common thresholds on the logits let pass")
    parser.add_argument("--real", action="store_true", help="only a trace of SmolLM2-135M: within a minute, and right")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    if options.thresholds:
        print(json.dumps({dtype: thresholds(dtype, options.seed) for dtype in options.dtype or ["float32"]}, indent=1))
        return 0
    if options.real:
        found = real()
        print(json.dumps(found, indent=1))
        late = max(found["seconds_of_diff"], found["seconds_of_diagnosis"]) > 60
        return int(late or found["verdict_of_the_right_one"] not in ("WITHIN_BUDGET", "EXACT") or not found["names"])
    start = time.perf_counter()
    tell = (lambda text: None) if options.json else (lambda text: print(text, flush=True))
    report = run(tuple(options.dtype or ("float32", "bfloat16")), seeds=options.seeds, seed=options.seed, tell=tell)
    failed = False
    for dtype, found in report.items():
        known = collections.Counter(found["known"])
        total, named = sum(known.values()), known["unique"] + known["class of two"]
        wrong = known["wrong name"] + found["foreign"].get("wrong name", 0)
        failed |= wrong > 0 or bool(found["alarms"]) or named < total * {"float32": 0.95, "bfloat16": 0.75}[dtype]
        if not options.json:
            print(
                f"{dtype}: {named} of {total} mistakes named ({known['unique']} uniquely), {wrong} wrong names; "
                f"{found['foreign'].get('none', 0)} of {sum(found['foreign'].values())} mistakes outside the catalogue "
                f"unnamed, at the right stage; {len(found['alarms'])} false alarms in {found['seeds']} correct runs"
            )
    print(json.dumps(report, indent=1) if options.json else f"{time.perf_counter() - start:.0f} s")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
