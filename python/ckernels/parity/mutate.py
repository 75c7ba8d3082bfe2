"""``ck mutate``: plant faults, one at a time, and see which check notices which, in which dtype.

The faults are those of ``csrc/faults.def``, in a test build of the C kernels, and of :mod:`.mutate_wiring`, in how ops
are put together. The checks are the levels of ``ck parity``. A fault that a check comes by is killed by it, or changes
no bit of what it compares (a symmetry), or changes less than rounding may (below the floor). One that no check kills
in a dtype, although it changes more than that, is a hole.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from . import mutate_build as build
from . import mutate_checks as checks
from .mutate_wiring import WIRING
from .specs.spec import DTYPES

SCHEMA = 1
_WORKER = Path(__file__).with_name("mutate_worker.py")

#: What became of a fault under a check.
KILLED, SAME, FLOOR, HOLE, UNREACHED = "killed", "same bits", "below the floor", "hole", "not come by"
_LETTERS = {KILLED: "K", SAME: "=", FLOOR: "<", HOLE: "!", UNREACHED: "·"}


@dataclass
class Cell:
    """One fault under one check in one dtype: the worst of all that the check is made of."""

    state: str = UNREACHED
    note: str = ""
    margin: float | None = None
    change: float = 0.0
    refused: set = field(default_factory=set)
    asked: bool = False  # whether thresholds were

    def add(self, told):
        """Take in what one part of the check saw."""
        if told["killed"]:
            state = KILLED
        elif told["change"] == 0:
            state = SAME
        else:  # None: what is compared has become infinite, and nobody minded
            state = HOLE if told["change"] is None or told["change"] > 2 else FLOOR
        order = [UNREACHED, SAME, FLOOR, HOLE, KILLED]
        if order.index(state) > order.index(self.state):
            self.state = state
            self.note = f"{told['label']}: {told['killed']}" if told["killed"] else told["label"]
        self.margin = max(filter(None, (self.margin, told["margin"])), default=None)
        self.change = max(self.change, told["change"] or 0.0)
        if told["check"] == "ops" and (told["killed"] or told["change"] != 0):
            self.asked = True
            self.refused |= set(told["refused"])


@dataclass
class Result:
    """All that one run of ``ck mutate`` saw."""

    faults: dict
    names: tuple
    dtypes: tuple
    cells: dict = field(default_factory=dict)
    alarms: list = field(default_factory=list)
    refusals: dict = field(default_factory=dict)  # dtype: {threshold: correct results that it refuses}
    results: dict = field(default_factory=dict)  # dtype: correct results
    cells_of: dict = field(default_factory=dict, repr=False)  # (check, dtype): [(fault, label)]
    counted: set = field(default_factory=set, repr=False)  # correct runs
    seconds: float = 0.0
    isa: str = ""

    def cell(self, fault, check, dtype):
        """The cell of a fault; an empty one where the check never comes by it."""
        return self.cells.get((fault, check, dtype), Cell())

    def states(self, fault, dtype):
        """What all checks made of a fault in one dtype."""
        return {name: self.cell(fault, name, dtype).state for name in self.names}

    def killed(self, fault, dtype=None):
        """Whether some check kills it, in one dtype or any."""
        return any(KILLED in self.states(fault, d).values() for d in ((dtype,) if dtype else self.dtypes))

    def reached(self, fault, dtype=None):
        """Whether some check comes by it."""
        dtypes = (dtype,) if dtype else self.dtypes
        return any(set(self.states(fault, d).values()) != {UNREACHED} for d in dtypes)

    def holes(self):
        """Faults that live although they change a result by more than rounding, and why; those killed nowhere too.

        Returns
        -------
        list of (str, str, str)
            Fault, dtype ("" for all), what is known.
        """
        found = []
        for fault in self.faults:
            if not self.reached(fault):
                found.append((fault, "", "no check comes by it"))
            elif not self.killed(fault) and "float32" in self.dtypes:
                found.append((fault, "", "no check kills it in any dtype"))
            else:
                found += [
                    (fault, dtype, "changes more than rounding may, and no check notices")
                    for dtype in self.dtypes
                    if HOLE in self.states(fault, dtype).values() and not self.killed(fault, dtype)
                ]
        return found

    def survivors(self):
        """Faults that live in some dtype for a reason: fault, dtype, state, the largest change."""
        holes = {(fault, dtype) for fault, dtype, _ in self.holes()}
        for fault in self.faults:
            for dtype in self.dtypes:
                states = set(self.states(fault, dtype).values()) - {UNREACHED}
                if states and KILLED not in states and not {(fault, dtype), (fault, "")} & holes:
                    change = max(self.cell(fault, name, dtype).change for name in self.names)
                    yield fault, dtype, FLOOR if FLOOR in states else SAME, change

    def thresholds(self, dtype):
        """Our rule beside the field's thresholds, on what the ops give: name, faults that live, right ones refused.

        Only faults that change some bit count, since nothing could see the others.
        """
        cells = [cell for (_, name, d), cell in self.cells.items() if name == "ops" and d == dtype and cell.asked]
        total = self.results.get(dtype, 0)
        alarms = sum(1 for alarm in self.alarms if alarm[0] == "ops" and alarm[2] == dtype)
        rows = [("the three-party rule", sum(cell.state != KILLED for cell in cells), len(cells), alarms, total)]
        for name in checks.THRESHOLDS:
            lives = sum(name not in cell.refused for cell in cells)
            rows.append((name, lives, len(cells), self.refusals.get(dtype, {}).get(name, 0), total))
        return rows

    @property
    def exit_code(self):
        """1 where there is a hole or a false alarm, 3 where nothing was planted, else 0."""
        if self.alarms or self.holes():
            return 1
        return 0 if self.cells else 3


class NotHere(Exception):
    """Something that is needed is missing; the text says what."""


def run(
    *,
    faults=None,
    names=checks.NAMES,
    dtypes=DTYPES,
    of=(),
    seed=0,
    source=None,
    isa=None,
    jobs=2,
    tell=lambda text, share: None,
):
    """Plant faults and ask the checks.

    Parameters
    ----------
    faults : list of str, optional
        Names; all of them by default.
    names, dtypes : tuple of str
        Of the checks and dtypes.
    of : tuple of str
        Ops that the checks "ops" and "memory" keep to; all by default.
    seed : int
        Of all inputs.
    source : path, optional
        A checkout of the sources, from which the test build is made.
    isa : str, optional
        The instruction set; the best one here.
    jobs : int
        Processes at a time.
    tell : callable
        ``tell(text, share)``: what is being worked on, and how much of it all is done.

    Returns
    -------
    Result

    Raises
    ------
    NotHere
        No sources, no compiler, no PyTorch.
    ValueError
        A name that is none.
    """
    import ckernels as ck

    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise NotHere(f"{package} is not installed: pip install 'ckernels[parity]'")
    try:
        root = build.checkout(source)
        known = catalogue(root)
        chosen = {name: known[name] for name in faults} if faults else known
        isa = isa or next(name for name in ck.isas() if name not in ("amx", "reference"))
        folder = build.made(root, isa, tuple(dtypes), lambda text: tell(text, 0.0))
    except build.BuildError as error:
        raise NotHere(str(error)) from None
    except KeyError as error:
        raise ValueError(f"no fault is called {error}; `ck mutate --list` names them") from None
    result = Result(chosen, tuple(names), tuple(dtypes), isa=isa)
    start = time.perf_counter()
    path = [str(Path(__file__).resolve().parents[2]), *sys.path]
    job = {"folder": str(folder), "isa": isa, "faults": list(chosen), "checks": list(names), "dtypes": list(dtypes),
           "of": list(of), "seed": seed, "from": 0, "skip": [], "path": path}  # fmt: skip
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda part: _all_of(job | {"part": part, "parts": jobs}, result, tell), range(jobs)))
    result.seconds = time.perf_counter() - start
    if not faults and (of or set(names) != set(checks.NAMES)):  # some checks alone: what they come by
        result.faults = {name: what for name, what in chosen.items() if result.reached(name)}
    return result


def catalogue(source):
    """Every fault, what is wrong by name: those of C, then those of the wiring."""
    inner = {planted for _, _, planted in WIRING.values()}
    found = {name: what for name, what in build.listed(source).items() if name not in inner}
    return found | {name: what for name, (what, _, _) in WIRING.items()}


def _all_of(job, result, tell):
    """Run processes until the checks of one part are done: another after each crash."""
    while _attend(job, result, tell):
        pass


def _attend(job, result, tell, worker=_WORKER):
    """Run one process to its end; whether another is needed, because a fault crashed this one."""
    process = subprocess.Popen(
        [sys.executable, str(worker)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    total, at, about, done = 1, {}, None, False
    with process:
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.close()
        errors = _drain(process.stderr)
        for line in process.stdout:
            told = json.loads(line)
            if "total" in told:
                total = told["total"]
            elif "begin" in told:
                at, about = told, None
                tell(f"{told['check']} {told['label']}, {told['dtype']}", told["begin"] / total)
            elif "clean" in told:
                _clean(result, told)
            elif "cell" in told:
                cell, about = told["cell"], None
                _add(result, cell)
            elif "fault" in told:
                about = told["fault"]
            done = done or "done" in told
    if done:
        return False
    if about is None:
        raise RuntimeError(f"the process that plants faults ended with {process.returncode}:\n{errors()[-2000:]}")
    crash = f"the process crashed (signal {-process.returncode})" if process.returncode < 0 else "the process ended"
    _add(result, {"fault": about, "killed": crash, "margin": None, "change": None, "refused": list(checks.THRESHOLDS),
                  "check": at["check"], "dtype": at["dtype"], "label": at["label"]})  # fmt: skip
    job["from"], job["skip"] = at["begin"], _done_of(result, at)
    return True


def _drain(stream):
    """Read a stream in a thread, so that it never fills; returns what gives its text."""
    import threading

    lines = []
    thread = threading.Thread(target=lambda: lines.extend(stream), daemon=True)
    thread.start()
    return lambda: (thread.join(10), "".join(lines))[1]


def _done_of(result, at):
    """Faults that the check which crashed has been asked about already."""
    return [name for name, label in result.cells_of.get((at["check"], at["dtype"]), []) if label == at["label"]]


def _add(result, told):
    key = told["fault"], told["check"], told["dtype"]
    result.cells.setdefault(key, Cell()).add(told)
    result.cells_of.setdefault((told["check"], told["dtype"]), []).append((told["fault"], told["label"]))


def _clean(result, told):
    if told["clean"]:
        alarm = (told["check"], told["label"], told["dtype"], told["clean"])
        if alarm not in result.alarms:
            result.alarms.append(alarm)
    if (told["check"], told["label"], told["dtype"]) in result.counted:
        return
    result.counted.add((told["check"], told["label"], told["dtype"]))
    if told["check"] == "ops":
        dtype = told["dtype"]
        result.results[dtype] = result.results.get(dtype, 0) + told["results"]
        counts = result.refusals.setdefault(dtype, {})
        for name, number in told["refusals"].items():
            counts[name] = counts.get(name, 0) + number
