"""Why two computations part: which known mistake, put into the equations, gives what the candidate has.

Every stage whose own error is more than rounding is tried against the catalogue of `hypotheses`. A hypothesis is
accepted when the candidate agrees with the equations under it as well as rounding allows. All that are accepted are
named: where inputs cannot tell mistakes apart, the answer is a class, and `probes` has inputs that can. Where none is
accepted the answer says so, with what is known about the error.
"""

from __future__ import annotations

import itertools
import math
import re
import time
from dataclasses import dataclass, field

from .arithmetic import Arithmetic
from .described import describe
from .diff import captured, diff
from .equations import Missing, edit_key, split
from .grafting import merged
from .hypotheses import catalogue
from .verdicts import Verdict

# Variants that differ in a number which the inputs do not show: tiles, blocks, capacities.
_VARIANT = re.compile(r"(\((?:tiles of |blocks of )?)(\d+)(\))")
_SECONDS = 20.0  # for pairs, at one stage
_GAIN = 2.0  # a cause must at least halve the margin
_PAIRED = 10.0  # pairs are tried where the error is so many times the budget


@dataclass
class Finding:
    """One cause, or class of causes, and the stages where it shows.

    Attributes
    ----------
    stages : list of str
    causes : list of (str, float)
        Names and margins under them, best first; empty where none explains it.
    fix : str
    known : list of str
        What is known about the error, where there is no cause.
    equivalent : bool
        True where what follows does not see it.
    """

    stages: list
    causes: list = field(default_factory=list)
    fix: str = ""
    known: list = field(default_factory=list)
    equivalent: bool = False
    hypotheses: list = field(default_factory=list, repr=False)

    @property
    def names(self):
        """The different mistakes of the class: variants of one in a number of tokens or lanes count once."""
        kinds, result = {}, []
        for name, _ in self.causes:
            found = _VARIANT.search(name)
            kinds.setdefault(name if found is None else _VARIANT.sub(r"\1*\3", name), []).append((name, found))
        for same in kinds.values():
            numbers = [found[2] for _, found in same if found]
            name, _ = same[0]
            result.append(name if len(numbers) < 2 else _VARIANT.sub(rf"\g<1>{' or '.join(numbers)}\3", name))
        return result

    def __str__(self):
        places = _places(self.stages)
        if not self.causes:
            return f"{places}: none of the known mistakes explains it.\n" + "\n".join(f"  {k}" for k in self.known)
        names = " or ".join(self.names)
        text = f"{places}: {names}"
        if len(self.names) > 1:
            text += " (these inputs cannot tell)"
        if self.equivalent:
            text += "; what follows does not see it: EQUIVALENT_AT_OUTPUT"
        return f"{text}.\n  fix: {self.fix}" if self.fix else text + "."


def _places(stages):
    """Some names of stages, shortened where a layer's stage repeats."""
    kinds = {}
    for name in stages:
        index, stage = split(name)
        kinds.setdefault(stage if index is not None else name, []).append(index)
    parts = []
    for stage, layers in kinds.items():
        layers = [i for i in layers if i is not None]
        if len(layers) > 1:
            whole = sorted(layers) == list(range(min(layers), max(layers) + 1))
            span = f"{min(layers)}..{max(layers)}" if whole else ",".join(map(str, sorted(layers)))
            parts.append(f"layers.{span}.{stage}")
        else:
            parts.append(f"layers.{layers[0]}.{stage}" if layers else stage)
    return ", ".join(parts[:6]) + (f" and {len(parts) - 6} more" if len(parts) > 6 else "")


@dataclass
class Diagnosis:
    """What `diagnose` found.

    Attributes
    ----------
    verdict : str
        As of the diff; EQUIVALENT_AT_OUTPUT where every divergence is a symmetry that the output does not see.
    stage : str or None
        The first stage whose own error is more than rounding, without its layer.
    layer : int or None
    causes : list of (str, float)
        Of that stage: name and margin under it, best first. More than one: the inputs cannot tell them apart. Empty
        with a stage: none of the known mistakes explains it.
    findings : list of Finding
        For all stages that diverge.
    diff : Diff
    """

    verdict: str
    stage: str | None
    layer: int | None
    causes: list
    findings: list
    diff: object = field(repr=False)

    @property
    def exit_code(self):
        """As of the diff; 0 where the output does not see the divergence and all else is there."""
        return self.diff.exit_code if self.verdict != Verdict.EQUIVALENT_AT_OUTPUT else 0

    def __str__(self):
        if not self.findings:
            return self.diff.summary()
        head = f"{self.verdict}: first at {_named(self.layer, self.stage)}."
        return "\n".join([head, *map(str, self.findings), self.diff.summary()])

    def to_dict(self):
        """Plain values, for JSON."""
        return {
            "schema": 1, "tool": "ck.parity.diagnose", "verdict": str(self.verdict), "stage": self.stage,
            "layer": self.layer, "causes": [{"name": n, "margin": m} for n, m in self.causes],
            "findings": [{"stages": f.stages, "causes": [{"name": n, "margin": m} for n, m in f.causes], "fix": f.fix,
                          "known": f.known, "equivalent": f.equivalent} for f in self.findings],
            "exit_code": self.exit_code, "text": str(self), "diff": self.diff.to_dict(),
        }  # fmt: skip


def _named(layer, stage):
    return stage if layer is None else f"layers.{layer}.{stage}"


def diagnose(candidate, model, *, names=None, dtype=None, assume=None, progress=None):
    """Find the mistake behind the first stage at which a candidate leaves its model, and behind the later ones.

    Parameters
    ----------
    candidate, model, names, dtype, assume, progress
        As of `diff`.

    Returns
    -------
    Diagnosis
        ``str()`` of it says the mistake in a sentence, and how to fix it.

    Raises
    ------
    ValueError
        As `diff`.

    Examples
    --------
    >>> import numpy as np, ckernels as ck
    >>> from ckernels.parity import probes
    >>> model = ck.models.Model(ck.models.configs.single_layer, probes.parameters(ck.models.configs.single_layer))
    >>> trace = model.trace(np.arange(7) * 5)
    >>> gate, up = (trace.arrays[f"layers.0.{name}"] for name in ("gate", "up"))
    >>> trace.arrays["layers.0.act"] = np.maximum(gate, 0) * up
    >>> found = diagnose(trace, model)
    >>> found.layer, found.stage, found.causes[0][0]
    (0, 'act', 'mlp: ReLU for SiLU')
    """
    result = diff(candidate, model, names=names, dtype=dtype, assume=assume, progress=progress)
    graft, findings, explained = result.graft, [], set()
    margins = {stage.name: stage.margin for stage in result.stages}
    lists = {}
    for stage in result.diverging:
        if stage.name in explained:
            continue
        if progress is not None:
            progress(f"why {stage.name}")
        if _again(graft, stage.name, findings, margins):
            continue
        finding = _explain(graft, stage.name, margins, explained, lists)
        findings.append(finding)
        explained.update(finding.stages)
    for finding in findings:
        finding.equivalent = bool(finding.causes) and _unseen(graft, finding, margins)
    findings = _joined(findings)
    verdict = result.verdict
    if findings and all(f.equivalent for f in findings):
        verdict = Verdict.EQUIVALENT_AT_OUTPUT
    first = result.first
    return Diagnosis(
        verdict, first.stage if first else None, first.layer if first else None,
        findings[0].causes if findings else [], findings, result,
    )  # fmt: skip


def _touched(graft, hypothesis, index):
    """The candidate's stages that a hypothesis changes, those of one layer."""
    keys = set(hypothesis.edits)
    for name in graft.given:
        if split(name)[0] == index and any(
            stage in keys or split(stage)[1] in keys or edit_key(stage) in keys for stage in graft.chain(name)
        ):
            yield name


def _accept(graft, hypothesis, target, margins):
    """The stages that a hypothesis explains, and the largest margin of all that it changes; None where it fails."""
    index = split(target)[0]
    stages = list(_touched(graft, hypothesis, index))
    if target not in stages:
        return None
    stages.sort(key=lambda name: name != target)
    worst, base = 0.0, margins[target]
    for stage in stages:
        if stage != target and stage not in margins:
            continue
        try:
            margin = graft.margin(stage, hypothesis.edits)
        except (Missing, ValueError, IndexError, FloatingPointError):
            return None
        worst = max(worst, margin)
        if not (worst <= 1 and worst * _GAIN <= base):
            return None
    return [s for s in stages if margins.get(s, 0) > 1], worst


def _explain(graft, target, margins, explained, lists):
    """The finding of one diverging stage."""
    sides = [graft]
    if captured(target) & graft.given.keys():
        sides.append(graft.without(captured(target)))
    for side in sides:
        index = split(target)[0]
        key = index, len(side.given)
        if key not in lists:
            lists[key] = catalogue(side, index)
        chain = side.chain(target)
        bare = {split(stage)[1] for stage in chain} | {edit_key(stage) for stage in chain} | chain
        hypotheses = [h for h in lists[key] if bare & set(h.edits)]
        accepted = [(h, *found) for h in hypotheses if (found := _accept(side, h, target, margins))]
        if not accepted and margins[target] > _PAIRED:
            accepted = _pairs(side, hypotheses, target, margins)
        if accepted:
            return _finding(accepted, target)
    exact = graft.equations(Arithmetic())
    return Finding([target], known=describe(graft, target, exact.compute(target)))


def _pairs(graft, hypotheses, target, margins):
    """Two mistakes at once; given up where more than a few pairs would do."""
    end, found = time.monotonic() + _SECONDS, []
    unique = list({tuple(sorted((k, repr(v)) for k, v in h.edits.items())): h for h in hypotheses}.values())
    for a, b in itertools.combinations(unique, 2):
        if time.monotonic() > end:
            break
        if any(a.edits[k].keys() & b.edits[k].keys() for k in a.edits.keys() & b.edits.keys()) or a.name == b.name:
            continue
        both = type(a)(f"{a.name} and {b.name}", merged(a.edits, b.edits), "; ".join(filter(None, (a.fix, b.fix))))
        accepted = _accept(graft, both, target, margins)
        if accepted:
            found.append((both, *accepted))
            if len(found) > 4:
                return []
    return found


def _finding(accepted, target):
    """The class of accepted hypotheses: those that explain most stages."""
    most = max(len(stages) for _, stages, _ in accepted)
    accepted = [entry for entry in accepted if len(entry[1]) == most]
    accepted = _without_twins(sorted(accepted, key=lambda entry: entry[2]))
    causes = {}
    for hypothesis, _, margin in accepted:
        causes.setdefault(hypothesis.name, margin)
    best, stages, _ = accepted[0]
    return Finding(
        [target, *(s for s in stages if s != target)], list(causes.items()), best.fix,
        hypotheses=[h for h, _, _ in accepted],
    )  # fmt: skip


def _without_twins(accepted):
    """Of several numbers that are within a few percent of one another, the roundest."""
    kept = []
    for entry in sorted(accepted, key=lambda e: len(f"{e[0].value:g}") if e[0].value else 0):
        value, family = entry[0].value, _family(entry[0])
        twin = value and any(
            other.value and _family(other) == family and math.isclose(value, other.value, rel_tol=0.05)
            for other, _, _ in kept
        )
        if not twin:
            kept.append(entry)
    return sorted(kept, key=lambda entry: entry[2])


def _family(hypothesis):
    """A name without its number."""
    return re.sub(r"[\d.]+(e[+-]?\d+)?", "", hypothesis.name)


def _again(graft, target, findings, margins):
    """Add a stage to an earlier finding of the same stage in another layer, if one of its causes explains it."""
    index, stage = split(target)
    for finding in findings:
        if not finding.causes or not any(split(s)[1] == stage or _kind(s) == _kind(target) for s in finding.stages):
            continue
        held = [(h, found) for h in finding.hypotheses if (found := _accept(graft, h, target, margins))]
        if held and (index is not None or _kind(target) != stage or stage in ("final_norm",)):
            finding.hypotheses = [h for h, _ in held]
            names = {h.name for h in finding.hypotheses}
            finding.causes = [(name, margin) for name, margin in finding.causes if name in names]
            finding.stages.append(target)
            return True
    return False


def _kind(name):
    """Stages of one kind: norms are alike, wherever they stand."""
    stage = edit_key(split(name)[1])
    return "norm" if stage in ("ln1", "ln2", "final_norm") else stage


def _joined(findings):
    """Findings with the same causes as one."""
    joined = {}
    for finding in findings:
        key = tuple(sorted(finding.names)) or id(finding)
        if key in joined:
            joined[key].stages += finding.stages
            joined[key].equivalent &= finding.equivalent
        else:
            joined[key] = finding
    return list(joined.values())


def _unseen(graft, finding, margins):
    """Whether the stages that follow come out as if the explained ones were right."""
    drop = frozenset(finding.stages)
    consumers = 0
    for name in graft.given:
        if name in drop or not drop & set(_sources(graft, name)):
            continue
        consumers += 1
        if margins.get(name, math.inf) > 1:
            return False
        try:
            judged, _ = graft.judge(name, graft.parties(drop=drop))
        except Missing:
            return False
        if judged.margin > 1:
            return False
    return consumers > 0


def _sources(graft, name):
    g = graft.equations(Arithmetic())
    try:
        g.compute(name)
    except Missing:
        return ()
    return g.sources(name)


__all__ = ["Diagnosis", "Finding", "diagnose"]
