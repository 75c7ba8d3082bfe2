"""A case: what to call on both sides, on which inputs, and what bounds it."""

import inspect
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

import ckernels as ck

from . import inputs, session

__all__ = ["Case", "pair", "run"]


@dataclass
class Case:
    """What :func:`run` is given, as it is given."""

    op: str
    case: str
    make: object
    ours: dict
    theirs: object = None
    nbytes: object = 0
    flops: int = 0
    limit: str = "copy"
    ours_out: object = None
    theirs_out: object = None
    beside: dict = field(default_factory=dict)
    aim: tuple = (None, None)
    dtypes: tuple = ("float32",)

    def moved(self, dtype):
        """Return the bytes that a call moves in a dtype."""
        return self.nbytes(inputs.DTYPES[dtype].itemsize) if callable(self.nbytes) else self.nbytes

    def inputs(self, dtype, seed):
        """Return one set of inputs."""
        rng = np.random.default_rng(seed)
        return self.make(rng, inputs.DTYPES[dtype]) if _takes_dtype(self.make) else self.make(rng)


def _takes_dtype(make):
    return len(inspect.signature(make).parameters) > 1


def run(op, case, make, ours, theirs=None, *, nbytes=0, flops=0, limit="copy", ours_out=None, theirs_out=None,
        beside=None, aim=(None, None), dtypes=None):  # fmt: skip
    """Bench one case, in each dtype and on each instruction set that was asked for.

    Parameters
    ----------
    op, case : str
        Printed, and matched by ``--op`` and ``--case``.  The first case of an op is the one of its summary.
    make : callable
        ``make(rng, dtype)`` returns one set of inputs (and of outputs for the calls with ``out=``), made as often as
        it takes to leave the caches; ``make(rng)`` makes float32 alone.
    ours : callable, or dict of str to callable
        Take such a set; return their result, so that freeing it is not measured.  By name: several ways.
    theirs : callable, optional
        The same in PyTorch; not called where it is not installed.
    nbytes : int or callable
        What the call must move (each input read once, each output written once); ``nbytes(size)`` of an element's size.
    flops : int
        For a case bound by arithmetic: the operations it needs.
    limit : {"copy", "update", "read"}
        What bounds a case that moves memory: one in, one out; in place; all in.
    ours_out, theirs_out : callable, optional
        The same, writing into an output of the set.
    beside : dict of str to callable, optional
        Others to compare with, by name.
    aim : (float or None, float or None)
        Times PyTorch and share of the limit that are aimed at, in float32; for the page.
    dtypes : sequence of str, optional
        Default: all, or float32 alone where ``make`` takes no dtype.

    Raises
    ------
    ValueError
        No such limit, or neither or both of ``nbytes`` and ``flops``.
    """
    if limit not in ("copy", "update", "read"):
        raise ValueError(f"run(): no limit is called {limit!r}; there are copy, update, read")
    if bool(nbytes) == bool(flops):
        raise ValueError(f"run(): {op} {case} takes either 'nbytes' or 'flops'")
    ours = ours if isinstance(ours, dict) else {"": ours}
    dtypes = tuple(dtypes or (("float32", "float16", "bfloat16") if _takes_dtype(make) else ("float32",)))
    session.current().take(
        Case(op, case, make, ours, theirs, nbytes, flops, "fma" if flops else limit, ours_out, theirs_out,
             beside or {}, aim, dtypes)
    )  # fmt: skip


def _tensors(arrays, grad=False):
    return [inputs.tensor(a, grad and np.dtype(a.dtype).kind not in "iub") for a in arrays]


def _quiet(peer, tensors):
    with inputs.torch.no_grad():
        return peer(*tensors)


def _gradient(y, rng):
    """Return random numbers in the shape of a result, or of each of several."""
    if isinstance(y, tuple):
        return tuple(_gradient(part, rng) for part in y)
    return inputs.normal(rng, y.shape, y.dtype) if y.shape else 1.0


def pair(op, case, draw, peer, *, moves, options=None, peer_out=None, peer_backward=None, limits=("copy", "copy"),
         aims=((None, None), (None, None)), wanted=None, dtypes=None, variant=""):  # fmt: skip
    """Bench ``ck.<op>`` and ``ck.<op>_backward`` beside a function of PyTorch and its gradients by autograd.

    Parameters
    ----------
    op, case : str
        ``op`` is the function's name in ``ck``.
    draw : callable
        ``draw(rng, dtype)`` returns the arrays that the op takes, in order.
    peer : callable
        Takes the same as tensors.  Backward runs over its graph, recorded beforehand, for all floating inputs.
    moves : (int, int or None)
        Elements that forward and backward must move; None: no backward.
    options : dict, optional
        Further arguments of ``ck.<op>``.
    peer_out : callable, optional
        ``peer_out(out, *tensors)`` writes into a tensor like the result; then ``ck.<op>`` is timed with ``out=`` too.
    peer_backward : callable, optional
        ``peer_backward(dy, *tensors)``, where autograd would not be fair.
    limits, aims
        Of forward and backward, as ``limit`` and ``aim`` of :func:`run`.
    wanted : int, optional
        How many inputs take a gradient in PyTorch, the first ones; default: all floating ones.
    dtypes : sequence of str, optional
        As in :func:`run`.
    variant : str
        Printed after the op's name.
    """
    options = options or {}

    def make(rng, dtype):
        s = SimpleNamespace(arrays=draw(rng, dtype))
        s.tensors = _tensors(s.arrays)
        if peer_out:
            y = getattr(ck, op)(*s.arrays, **options)
            s.out = np.empty(y.shape, y.dtype)
            s.tout = inputs.tensor(np.empty(y.shape, y.dtype))
        return s

    def make_backward(rng, dtype):
        s = SimpleNamespace(arrays=draw(rng, dtype))
        y, s.ctx = getattr(ck, op + "_forward")(*s.arrays, **options)
        s.dy = _gradient(y, rng)
        if inputs.torch:
            s.leaves = _tensors(s.arrays, grad=True)
            s.tdy = tuple(map(inputs.tensor, s.dy)) if isinstance(s.dy, tuple) else None
            s.tdy = s.tdy or (inputs.torch.tensor(1.0) if isinstance(s.dy, float) else inputs.tensor(s.dy))
            s.ty = None if peer_backward else peer(*s.leaves)
            s.wanted = [t for t in s.leaves if t.requires_grad][:wanted]
        return s

    ours, backward = getattr(ck, op), getattr(ck, op + "_backward", None)

    def theirs_backward(s):
        if peer_backward:
            with inputs.torch.no_grad():
                return peer_backward(s.tdy, *s.leaves)
        return inputs.torch.autograd.grad(s.ty, s.wanted, s.tdy, retain_graph=True)

    run(f"{op} {variant}".strip(), case, make, lambda s: ours(*s.arrays, **options), lambda s: _quiet(peer, s.tensors),
        nbytes=lambda size: size * moves[0], limit=limits[0], aim=aims[0], dtypes=dtypes,
        ours_out=(lambda s: ours(*s.arrays, **options, out=s.out)) if peer_out else None,
        theirs_out=(lambda s: peer_out(s.tout, *s.tensors)) if peer_out else None)  # fmt: skip
    if moves[1] is not None:
        run(f"{op}_backward {variant}".strip(), case, make_backward, lambda s: backward(s.dy, s.ctx), theirs_backward,
            nbytes=lambda size: size * moves[1], limit=limits[1], aim=aims[1], dtypes=dtypes)  # fmt: skip
