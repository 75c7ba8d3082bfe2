"""The command line of ``ck bench`` and of every bench file."""

import argparse
import os

__all__ = ["add_bench", "add_options"]


def add_bench(commands):
    """Add the command ``bench`` to those of ``ck``; return its parser."""
    bench = commands.add_parser(
        "bench",
        help="time each op beside PyTorch and the machine's limits",
        description="Time each op: milliseconds, GB/s or GF/s, the share of what this machine can do at most, "
        "measured in the same seconds, and how many times as fast as eager PyTorch: best and median. The cases are "
        "in benchmarks/ of the source checkout.",
        epilog="exit codes: 0 measured; 1 a bench broke, or there are no cases; 3 nothing was measured; 4 wrong usage; "
        "5 internal error",
    )
    return add_options(bench)


def add_options(parser):
    """Add what every bench takes."""
    parser.add_argument("--op", metavar="NAME", help="this op alone, e.g. rms_norm, or rms_norm_backward")
    parser.add_argument("--dtype", metavar="DTYPE", help="float32, float16 or bfloat16 (default: all)")
    parser.add_argument("--isa", metavar="ISA", action="append",
                        help="this instruction set for every case, may be repeated (default: every one for the first "
                        "case of an op, the best for the others)")  # fmt: skip
    parser.add_argument("--case", metavar="TEXT", default="", help="only cases with this text in 'op case'")
    parser.add_argument("--threads", type=_threads, metavar="N", default=len(os.sched_getaffinity(0)),
                        help="for us, for PyTorch and for the limits (default: the CPUs of this process)")  # fmt: skip
    parser.add_argument("--seconds", type=_seconds, metavar="S", help="spent on a case and dtype (default 0.5)")
    parser.add_argument("--quick", action="store_true", help="first case of an op, best instruction set, 0.1 s each")
    parser.add_argument("--list", action="store_true", help="list the cases and measure nothing")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the output (default text)")
    return parser


def _threads(text):
    value = int(text)
    if not 1 <= value <= 64:
        raise argparse.ArgumentTypeError(f"{text} is not 1 to 64")
    return value


def _seconds(text):
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value
