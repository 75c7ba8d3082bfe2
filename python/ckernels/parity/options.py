"""The arguments of ``ck diagnose`` and ``ck report``, and numbers as arguments of any command."""

import argparse

#: What a report may be printed as.
FORMATS = ("text", "json", "junit", "html", "markdown")

_CODES = """\
exit codes: 0 all within budget, or a symmetry that the output does not see; 1 a failure; 3 vacuous; 4 wrong usage;
5 internal error"""


def positive(text):
    """An integer of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def seed(text):
    """An integer of 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def learning_rate(text):
    """A positive number."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def share(text):
    """A number above 0 and at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


def limit(text):
    """A number of 0 or more."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not 0 or a positive number")
    return value


def add_diagnose(commands):
    """Add the command to a parser's commands and return its parser."""
    command = commands.add_parser(
        "diagnose",
        help="say which mistake makes a trace differ from its model",
        description="Recompute every stage of the trace A in float64 from A's own inputs to it, and name the mistake "
        "behind each stage that differs. B is the model that A should be: a GGUF file, a folder with safetensors, a "
        "name that ck fetch knows; or a trace of it, with --model, or with its parameters among the inputs.",
        epilog=_CODES,
    )
    command.add_argument("candidate", metavar="A", help="the folder of a trace")
    command.add_argument("reference", metavar="B", help="a model, or the folder of a trace")
    command.add_argument("--model", metavar="MODEL", help="where the parameters are, when both are traces")
    command.add_argument("--names", metavar="FILE", help="JSON that maps foreign names to stages")
    dtypes = ("float32", "float16", "bfloat16")
    command.add_argument("--dtype", choices=dtypes, help="in which A computes (default: told from its arrays)")
    command.add_argument("--assume", action="append", metavar="NAME", help="a known deviation that shall not count")
    forms = [form for form in FORMATS if form != "junit"]
    command.add_argument("--format", choices=forms, default="text", help="of the output (default text)")
    return command


def add_report(commands):
    """Add the command to a parser's commands and return its parser."""
    command = commands.add_parser(
        "report",
        help="one page out of saved reports",
        description="Put what ck parity, ck compare, ck diagnose, ck mutate (--format json) and pytest (--ck-report) "
        "have written on one page that needs no network, or into Markdown for a pull request.",
        epilog="exit codes: that of the worst report: 1 before 3 before 2 before 0; 4 wrong usage; 5 internal error",
    )
    command.add_argument("files", nargs="+", metavar="FILE", help="JSON that one of these commands wrote")
    command.add_argument("--format", choices=("html", "markdown"), default="html", help="of the output (default html)")
    command.add_argument("--output", metavar="FILE", help="where to write it (default: print it)")
    return command
