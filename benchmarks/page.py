"""Run every bench and write what was measured into docs/performance.md, with the machine it ran on.

    python benchmarks/page.py              about ten minutes on two cores
    python benchmarks/page.py --quick      the first case of every op, best instruction set
    python benchmarks/page.py --load run.json --again softmax,rms_norm --save run.json
                                           these anew, all others as they are in the file

Run it on a quiet machine, or the page says how noisy it was.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import tables

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
MARK = "<!-- everything below is written by benchmarks/page.py -->"


def bench(op, chosen):
    """Return the JSON of one bench; stop where it breaks."""
    command = [sys.executable, "-m", "ckernels.cli", "bench", "--op", op, "--format", "json",
               "--threads", str(chosen.threads), *(["--quick"] if chosen.quick else ["--seconds", str(chosen.seconds)])]
    run = subprocess.run(command, text=True, capture_output=True)
    if run.returncode:
        sys.exit(f"{op} failed with {run.returncode}:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout)


def page(runs, load, seconds):
    """Write the lines of the page below the mark."""
    facts = next(iter(runs.values()))["machine"]
    lines = [line for run in runs.values() for line in run["lines"]]
    yield from ["## The machine of these tables", ""]
    yield from (f"- {name}: {value}" for name, value in facts.items() if isinstance(value, str))
    yield f"- instruction sets {', '.join(facts['isas'])}; {lines[0]['threads']} threads"
    yield f"- load before the run {load[0]:.1f}, after it {load[1]:.1f}"
    yield f"- {len(lines)} lines in {seconds / 60:.0f} minutes"
    yield from ["", *tables.limits([run["limits"] for run in runs.values()]), ""]
    for part in tables.aims, tables.narrow, tables.odd, tables.tiny, tables.hidden:
        yield from [*part(lines), ""]
    for op, run in runs.items():
        yield from [f"## {op}", "", *tables.all_lines(run["lines"])]


def main():
    """Keep the page's words above the mark."""
    parser = argparse.ArgumentParser(description="Write docs/performance.md from a run of every bench.")
    parser.add_argument("--seconds", type=float, default=0.15, help="spent on a case and dtype (default 0.15)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="the first case of every op, best instruction set")
    parser.add_argument("--save", type=Path, help="also write the measurements into this file")
    parser.add_argument("--load", type=Path, help="measure nothing: take them from this file")
    parser.add_argument("--again", default="", metavar="OP,OP", help="with --load: but measure these benches anew")
    chosen = parser.parse_args()
    again = [op for op in chosen.again.split(",") if op]
    every = [path.stem.removeprefix("bench_") for path in sorted(HERE.glob("bench_*.py"))]
    if unknown := sorted(set(again) - set(every)):
        parser.error(f"no bench of {', '.join(unknown)}; there are {', '.join(every)}")
    if again and not chosen.load:
        parser.error("--again needs --load, the file that holds the others")
    kept = {"runs": {}, "load": [os.getloadavg()[0]], "seconds": 0}
    if chosen.load:
        kept = json.loads(chosen.load.read_text())
    begin = time.perf_counter()
    for op in again if chosen.load else every:
        if op == "model" and chosen.quick:
            continue
        print(f"{time.perf_counter() - begin:6.0f} s  {op}", flush=True)
        kept["runs"][op] = bench(op, chosen)
    kept["seconds"] += time.perf_counter() - begin
    if not chosen.load:
        kept["load"].append(os.getloadavg()[0])
    if chosen.save:
        chosen.save.write_text(json.dumps(kept))
    words = PAGE.read_text().split(MARK)[0].rstrip()
    PAGE.write_text("\n".join([words, "", MARK, "", *page(kept["runs"], kept["load"], kept["seconds"])]))


if __name__ == "__main__":
    main()
