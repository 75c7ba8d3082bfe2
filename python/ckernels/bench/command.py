"""``ck bench``."""

import ckernels as ck

from . import inputs, session

__all__ = ["bench"]


def bench(options, usage_error, failure):
    """Run the benches that the options ask for; return the exit code.

    Parameters
    ----------
    options : argparse.Namespace
    usage_error, failure : type
        Exceptions for what makes no sense, and for what cannot be done here.
    """
    for isa in options.isa or ():
        if isa not in ck.isas():
            raise usage_error(f"no instruction set is called {isa!r} here; there are {', '.join(ck.isas())}")
    if options.dtype and options.dtype not in ("float32", "float16", "bfloat16"):
        raise usage_error(f"no dtype is called {options.dtype!r}; there are float32, float16, bfloat16")
    if options.dtype == "bfloat16" and "bfloat16" not in inputs.DTYPES:
        raise failure("bfloat16 needs ml_dtypes: pip install ml_dtypes")
    benches = session.find_benches()
    if not benches:
        raise failure(
            "the cases are in the folder benchmarks/ of a source checkout, and this package is not imported from one: "
            "in a checkout, pip install -e . and run it again"
        )
    run = session.Session(options)
    if options.dtype and not run.dtypes:
        raise failure(f"this build has no kernels for {options.dtype}")
    chosen = {options.op: benches[options.op]} if options.op in benches else benches
    before = ck.get_num_threads()
    try:
        session.run_files(run, chosen)
    finally:
        ck.set_num_threads(before)
    if options.op and options.op not in benches and options.op not in run.ops:
        names = ", ".join([*benches, *sorted(run.ops - set(benches))])
        raise usage_error(f"no op is called {options.op!r}; there are {names}")
    return run.end()
