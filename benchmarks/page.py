"""Run every bench and write what it printed into docs/performance.md, with the machine it ran on.

    python benchmarks/page.py --seconds 0.5

Run it on a quiet machine, or the page says how noisy it was.
"""
import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch

import ckernels as ck
from ckernels.parity import machine

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
MARK = "<!-- everything below is written by benchmarks/page.py -->"


def main():
    """Run the benches one after the other; keep the page's words above the mark."""
    parser = argparse.ArgumentParser(description="Write docs/performance.md from a run of every bench.")
    parser.add_argument("--seconds", type=float, default=1.0, help="spent on a line")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    chosen = parser.parse_args()
    facts = machine.machine()
    parts = [PAGE.read_text().split(MARK)[0].rstrip(), "", MARK, "", "## The machine of these tables", ""]
    parts += [f"- {name}: {value}" for name, value in facts.items() if isinstance(value, str)]
    parts += [f"- PyTorch {torch.__version__}; instruction sets {', '.join(ck.isas())}; {chosen.threads} threads",
              f"- other work on the machine when the run began: load {os.getloadavg()[0]:.1f}", ""]
    for bench in sorted(HERE.glob("bench_*.py")):
        print(bench.name, flush=True)
        command = [sys.executable, str(bench), "--threads", str(chosen.threads), "--seconds", str(chosen.seconds)]
        run = subprocess.run(command, text=True, capture_output=True)
        if run.returncode:
            sys.exit(f"{bench.name} failed:\n{run.stderr[-2000:]}")
        parts += [f"## {bench.stem.removeprefix('bench_')}", "", "```", run.stdout.rstrip(), "```", ""]
    parts += [f"Load at the end: {os.getloadavg()[0]:.1f}; the benches themselves keep it near {chosen.threads}.", ""]
    PAGE.write_text("\n".join(parts))


if __name__ == "__main__":
    main()
