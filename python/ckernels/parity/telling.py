"""Inputs that tell mistakes apart: what to run next when a diagnosis is a class."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np

from .arithmetic import Arithmetic
from .equations import Equations, Missing, Weights
from .grafting import judge, merged, model_parts
from .settings import Settings


@dataclass
class Probe:
    """Inputs for the next run of a candidate.

    Attributes
    ----------
    inputs : dict of str to array
        ``ids [B, T]``, and ``positions [B, T]`` where they do not begin at 0.
    why : str
        What is special about them.
    told : list of (str, str)
        Mistakes that a run on these inputs tells apart.
    left : list of (str, str)
        Mistakes that none of the designs tells apart: in this model they may well be the same.
    """

    inputs: dict
    why: str
    told: list = field(default_factory=list)
    left: list = field(default_factory=list)

    def __str__(self):
        if not self.told:
            return "no inputs that were tried tell these apart; in this model they may be one and the same"
        batch, tokens = self.inputs["ids"].shape
        text = f"run {batch} x {tokens} tokens: {self.why}"
        text += "".join(f"\n  tells {a} from {b}" for a, b in self.told)
        return text + "".join(f"\n  cannot tell {a} from {b}" for a, b in self.left)


def _designs(table, tokens, seed):
    """Inputs worth trying, each with its reason."""
    rng = np.random.default_rng([seed, 43])
    words = len(table)
    size = np.linalg.norm(np.asarray(table, np.float64), axis=-1)
    order = np.argsort(size)
    plain = rng.integers(0, words, (2, tokens))
    small = np.resize(order[: max(2, words // 20)], (2, tokens))
    mixed = np.where(np.arange(tokens) % 3 == 0, small, plain)
    odd = tokens + 1 if tokens % 2 == 0 else tokens
    yield plain, None, "words at random"
    yield small, None, "words whose embedding has the smallest RMS, which show an eps"
    yield mixed, None, "every third word with a small RMS"
    yield np.resize(order[-max(2, words // 20) :], (2, tokens)), None, "words of the largest RMS: peaked attention"
    yield np.repeat(plain[:, :2], tokens // 2, axis=1), None, "two words again and again: equal keys"
    yield rng.integers(0, words, (3, odd)), None, f"{odd} tokens, a whole number of no tile"
    yield rng.integers(0, words, (1, 2 * tokens + 3)), None, f"{2 * tokens + 3} tokens: more than one tile"
    for start in (7, 4000, 30000):
        at = np.arange(tokens) + start + np.array([[0], [11]])
        yield plain, at, f"positions from {start} on, others for each item"


def probe(diagnosis, model, *, tokens=33, seed=0):
    """Choose inputs under which the mistakes of a class give different numbers.

    Parameters
    ----------
    diagnosis : Diagnosis
        Its first finding with more than one cause is taken.
    model : object or (config, params)
        As of `diagnose`.
    tokens, seed : int
        Of the inputs.

    Returns
    -------
    Probe or None
        None where no finding has more than one cause.

    Notes
    -----
    The stage is computed under each mistake in float64, and in the candidate's dtype under one of them: two mistakes
    are told apart where they differ by more than the rule of `compare` allows.
    """
    classes = [f for f in diagnosis.findings if len(f.hypotheses) > 1]
    if not classes:
        return None
    finding, graft = classes[0], diagnosis.diff.graft
    config, params = model_parts(model)
    settings, weights = Settings.of(config), Weights(params)
    pairs = list(itertools.combinations(finding.hypotheses, 2))
    best = None
    for ids, at, why in _designs(weights.get("model.embed_tokens.weight", Arithmetic()), tokens, seed):
        inputs = {"ids": ids} | ({} if at is None else {"positions": at})
        if "targets" in graft.inputs:
            inputs["targets"] = np.roll(ids, -1, axis=1)
        margins = _margins(settings, weights, graft, inputs, finding.stages, pairs)
        score = sum(m > 1 for m in margins), min(margins), -ids.size
        if best is None or score > best[0]:
            best = score, inputs, why, margins
    _, inputs, why, margins = best
    names = [(a.name, b.name) for a, b in pairs]
    told = [pair for pair, margin in zip(names, margins, strict=True) if margin > 1]
    return Probe(inputs, why, told, [pair for pair in names if pair not in told])


def _margins(settings, weights, graft, inputs, stages, pairs):
    """How far each pair of mistakes is apart, in units of what rounding allows; 0 where a stage cannot be computed."""
    values = {}

    def under(hypothesis, number):
        # What comes before is right; the stages of the finding are under the mistake.
        plain = Equations(settings, weights, Arithmetic(), {}, inputs, graft.assume)
        edited = Equations(settings, weights, number, {}, inputs, merged(graft.assume, hypothesis.edits))
        edited.given = _Lazily(plain, set(stages))
        return [edited.compute(stage) for stage in stages]

    result = []
    for a, b in pairs:
        worst = 0.0
        try:
            for h in (a, b):
                if id(h) not in values:
                    values[id(h)] = under(h, Arithmetic()), under(h, Arithmetic(graft.format, True))
            for stage, x, y, peer in zip(stages, values[id(a)][0], values[id(b)][0], values[id(a)][1], strict=True):
                if x.size:
                    worst = max(worst, judge(y, x, [peer], graft.format_of(stage)).margin)
        except (Missing, ValueError, IndexError):
            worst = 0.0
        result.append(worst if not math.isnan(worst) else 0.0)
    return result


class _Lazily:
    """The stages of an exact run, computed when they are asked for; those of the finding are not given."""

    def __init__(self, run, hidden):
        self.run, self.hidden = run, hidden

    def __contains__(self, name):
        return name not in self.hidden

    def __getitem__(self, name):
        return self.run(name)
