"""The command ``ck mutate``: its arguments, its progress line, its exit code."""

from __future__ import annotations

import json
import sys

_CODES = """\
exit codes: 0 every fault is killed or explained; 1 a hole or a false alarm; 3 nothing was planted; 4 wrong usage;
5 internal error"""


def add_mutate(commands):
    """Add the command to a parser's commands and return its parser."""
    command = commands.add_parser(
        "mutate",
        help="plant faults in the kernels and see which check notices",
        description="Plant faults, one at a time, in a test build of the kernels and in how ops are put together, and "
        "print which check of ck parity notices which, in which dtype, and what the field's thresholds make of it. "
        "The test build is compiled once, from a checkout of the sources, into the cache folder (CK_CACHE_DIR).",
        epilog=_CODES,
    )
    command.add_argument("--fault", action="append", metavar="NAME", help="this one; may be given again (default: all)")
    kinds = "ops, layer, kv, train, invariance, memory; may be given again (default: all)"
    command.add_argument("--check", action="append", metavar="NAME", help=kinds)
    command.add_argument("--op", action="append", metavar="NAME", help="ops and memory: this op; may be given again")
    command.add_argument("--dtype", action="append", choices=("float32", "float16", "bfloat16"), help="default: all")
    command.add_argument("--isa", metavar="ISA", help="whose kernels (default: the best one here)")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of all inputs (default 0)")
    command.add_argument("--source", metavar="DIR", help="the checkout (default: where the package or you are)")
    command.add_argument("--jobs", type=int, default=2, metavar="N", help="processes at a time (default 2)")
    command.add_argument("--list", action="store_true", help="name the faults, and stop")
    command.add_argument(
        "--correct", type=int, metavar="SEEDS", help="plant nothing: so many runs of the library itself"
    )
    command.add_argument("--table", action="store_true", help="Markdown tables, as in docs/mutate.md")
    command.add_argument("--format", choices=("text", "json"), default="text", help="of the output (default text)")
    return command


def mutate(arguments, usage, failure):
    """Run the command.

    Parameters
    ----------
    arguments : argparse.Namespace
    usage, failure : type
        Raised for wrong usage, and for what cannot be done here.

    Returns
    -------
    int
        The exit code.
    """
    from . import mutate_checks as checks
    from .specs import names as op_names
    from .specs.spec import DTYPES

    names = tuple(arguments.check or checks.NAMES)
    for name in names:
        if name not in checks.NAMES:
            raise usage(f"no check is called {name!r}; there are {', '.join(checks.NAMES)}")
    of = tuple(arguments.op or ())
    for name in of:
        if name not in op_names():
            raise usage(f"no op is called {name!r}; there are {', '.join(op_names())}")
    dtypes = tuple(dtype for dtype in DTYPES if not arguments.dtype or dtype in arguments.dtype)
    if arguments.correct is not None:
        return _correct(arguments, names, dtypes, of, usage)
    return _plant(arguments, names, dtypes, of, usage, failure)


def _plant(arguments, names, dtypes, of, usage, failure):
    from . import mutate as run_of
    from . import mutate_build, mutate_report

    if arguments.list:
        try:
            known = run_of.catalogue(mutate_build.checkout(arguments.source))
        except mutate_build.BuildError as error:
            raise failure(str(error)) from None
        print("\n".join(f"{name:26} {what}" for name, what in known.items()))
        return 0
    line = _Line()
    try:
        options = {"seed": arguments.seed, "source": arguments.source, "isa": arguments.isa}
        options |= {"jobs": max(1, arguments.jobs), "tell": line}
        result = run_of.run(faults=arguments.fault, names=names, dtypes=dtypes, of=of, **options)
    except run_of.NotHere as error:
        raise failure(str(error)) from None
    except ValueError as error:
        raise usage(str(error)) from None
    finally:
        line.clear()
    if arguments.format == "json":
        print(json.dumps(mutate_report.to_dict(result), indent=1, allow_nan=False))
    else:
        print(mutate_report.markdown(result) if arguments.table else mutate_report.text(result))
    return result.exit_code


def _correct(arguments, names, dtypes, of, usage):
    """Ask every check about the library as it is, seed after seed: what fails is a false alarm."""
    from . import mutate_checks as checks

    if arguments.correct < 1:
        raise usage("--correct takes a number of at least 1")
    line, asked, alarms = _Line(), 0, []
    with checks.one_thread_of_torch():
        for seed in range(arguments.seed, arguments.seed + arguments.correct):
            for check in checks.checks(names, dtypes, seed, of):
                line(
                    f"seed {seed}: {check.name} {check.label}, {check.dtype}",
                    (seed - arguments.seed) / arguments.correct,
                )
                seen, asked = check(), asked + 1
                if seen.killed:
                    alarms.append({"seed": seed, "check": check.name, "label": check.label, "dtype": check.dtype,
                                   "why": seen.killed})  # fmt: skip
    line.clear()
    text = f"{len(alarms)} false alarms in {asked} checks of correct runs, {arguments.correct} seeds"
    if arguments.format == "json":
        told = {"schema": 1, "tool": "ck mutate --correct", "seeds": arguments.correct, "checks": asked,
                "false_alarms": alarms, "exit_code": int(bool(alarms)), "summary": text}  # fmt: skip
        print(json.dumps(told, indent=1))
    else:
        for alarm in alarms:
            print("FALSE ALARM: seed {seed}, {check} {label} in {dtype}: {why}".format(**alarm))
        print(text)
    return int(bool(alarms))


class _Line:
    """A bar with what is being worked on, on a terminal; nothing in a pipe."""

    def __init__(self):
        self.there = sys.stderr.isatty()

    def __call__(self, text, share):
        if self.there:
            done = round(20 * share)
            bar = "█" * done + "░" * (20 - done)
            print(f"\r\033[K{bar} {share:4.0%} {text[:70]}", end="", file=sys.stderr, flush=True)

    def clear(self):
        """Take the bar away."""
        if self.there:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
