"""The smallest input with the same mistake: `shrink` takes a failing run apart until nothing can go."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .diagnose import Diagnosis, diagnose
from .diff import diff

_MOST = 200  # runs of the candidate


@dataclass
class Shrunk:
    """What is left of a failing run.

    Attributes
    ----------
    inputs : dict of str to array
        The smallest inputs with the same stage, verdict and causes.
    diagnosis : Diagnosis
        Of the run on them.
    runs : int
        How many runs of the candidate it took.
    """

    inputs: dict
    diagnosis: Diagnosis = field(repr=False)
    runs: int

    def __str__(self):
        batch, tokens = self.inputs["ids"].shape
        return f"{batch} x {tokens} tokens after {self.runs} runs: {self.diagnosis.findings[0]}"

    def write(self, path, run, model):
        """Write the case as one pytest file, which fails until the mistake is mended.

        Parameters
        ----------
        path : path
            Of the file.
        run, model : str
            Where the candidate and its model come from, ``"module:function"``: ``run(inputs)`` gives a Trace,
            ``model()`` what `diff` takes.
        """
        places = [place.split(":") for place in (run, model)]
        if any(
            len(place) != 2 or not all(part.isidentifier() for part in ".".join(place).split(".")) for place in places
        ):
            raise ValueError(f"write(): {run!r} and {model!r} must be of the form 'module:function'")
        finding = self.diagnosis.findings[0]
        cause = " or ".join(finding.names) or "none of the known mistakes"
        stages = ", ".join(repr(stage) for stage in finding.stages)
        lines = "".join(f'    "{name}": np.array({np.asarray(a).tolist()}),\n' for name, a in self.inputs.items())
        Path(path).write_text(_FILE.format(
            cause=cause, lines=lines, stages=stages,
            imports="\n".join(f"from {module} import {name} as {role}"
                              for (module, name), role in zip(places, ("run", "model"), strict=True)),
        ))  # fmt: skip


_FILE = '''"""{cause}."""

import numpy as np

from ckernels.parity import diff
{imports}

INPUTS = {{
{lines}}}


def test_every_stage_follows_from_its_inputs():
    found = diff(run(INPUTS), model())
    measured = {{stage.name for stage in found.stages if stage.verdict != "UNMEASURED"}}
    assert measured >= {{{stages}}}, "the candidate no longer has the stages that were wrong"
    assert not found.diverging, str(found)
'''


def shrink(run, model, inputs, *, most=_MOST):
    """Find the smallest inputs on which a candidate still makes the same mistake.

    Parameters
    ----------
    run : callable
        ``run(inputs)`` runs the candidate and returns its Trace.
    model : object or (config, params)
        As of `diagnose`.
    inputs : dict of str to array
        ``ids [B, T]``, and ``targets`` and ``positions`` of that shape where the candidate takes them.
    most : int
        Runs of the candidate, at the most.

    Returns
    -------
    Shrunk

    Raises
    ------
    ValueError
        The candidate agrees with its model on these inputs.

    Examples
    --------
    >>> import numpy as np
    >>> from ckernels.parity.acceptance import candidate, rerun
    >>> _, model = candidate()
    >>> small = shrink(lambda inputs: rerun("mlp gelu erf", inputs), model, {"ids": np.arange(20).reshape(2, 10)})
    >>> small.inputs["ids"].shape, small.diagnosis.causes[0][0]
    ((1, 1), 'mlp: GELU (erf) for SiLU')
    """
    if len(inspect.signature(run).parameters) < 1:
        raise TypeError("shrink(): 'run' takes no inputs")
    inputs = {name: np.atleast_2d(array) for name, array in inputs.items()}
    first = diagnose(run(inputs), model)
    if not first.findings:
        raise ValueError("shrink(): the candidate agrees with its model on these inputs; there is nothing to shrink")
    state = {"inputs": inputs, "found": first, "runs": 1}

    def same(found):
        if not found.findings or found.verdict != first.verdict or found.stage != first.stage:
            return False
        names, before = set(found.findings[0].names), set(first.findings[0].names)
        return names <= before if names else not before

    def better(other):
        if state["runs"] >= most:
            return False
        state["runs"] += 1
        try:
            trace = run(other)
            found = diagnose(trace, model) if diff(trace, model).first is not None else None
        except (ValueError, IndexError):  # inputs that the candidate or the model do not take
            return False
        if found is None or not same(found):
            return False
        state["inputs"], state["found"] = other, found
        return True

    _fewer(state, better, axis=0)
    _fewer(state, better, axis=1)
    _plainer(state, better)
    return Shrunk(state["inputs"], state["found"], state["runs"])


def _fewer(state, better, axis):
    """Take away halves, quarters, ... single items or tokens, wherever the rest makes the same mistake."""
    piece = state["inputs"]["ids"].shape[axis] // 2
    while piece:
        start = state["inputs"]["ids"].shape[axis] - piece  # from the end: what comes first is the simplest
        while start >= 0:
            extent = state["inputs"]["ids"].shape[axis]
            if extent > piece and start < extent:
                kept = np.r_[0:start, min(start + piece, extent) : extent]
                better({name: np.take(array, kept, axis=axis) if array.shape[axis] == extent else array
                        for name, array in state["inputs"].items()})  # fmt: skip
            start -= piece
        piece //= 2


def _plainer(state, better):
    """Ids of 0 where that does as well, and positions that nobody needs."""
    if "positions" in state["inputs"]:
        better({name: array for name, array in state["inputs"].items() if name != "positions"})
    for place in np.ndindex(state["inputs"]["ids"].shape):
        ids = state["inputs"]["ids"]
        if ids[place]:
            other = ids.copy()
            other[place] = 0
            better(state["inputs"] | {"ids": other})
