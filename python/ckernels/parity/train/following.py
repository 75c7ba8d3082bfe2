"""Follow one training: make the cases of its steps, and say at which step and in which tensor it goes wrong."""

from __future__ import annotations

import math

import numpy as np

from ..compare import Verdict
from ..levels import Case, unmeasured
from .envelope import PARTED, Envelope, parted

LEVEL = "train"

#: Documented ceilings, of SGD: up to this step, largest difference of a weight, difference of the loss.
CEILINGS = ((1, 1e-5, 1e-5), (5, 1e-3, 1e-2), (20, 1e-2, 1e-1))
#: Steps that are listed; those between are told by their worst.
LISTED = (5, 20, 100, 500)
WINDOW = 10  # of the running mean of the loss, where trainings have parted


class Following:
    """The cases of one training.

    Parameters
    ----------
    label : str
        The name of the cases.
    recipe : Recipe
    steps : int
        How many there will be.
    listed : bool
        Whether every one of the first 20 steps is listed.

    Attributes
    ----------
    left : bool
        Whether something has left the envelope: what follows follows from that.
    """

    def __init__(self, label, recipe, steps, listed=False):
        self.label, self.recipe, self.left = label, recipe, False
        shown = {*LISTED, steps, *(range(1, 21) if listed else ())}
        self.shown = {step for step in shown if step <= steps}
        self.envelope, self.pending, self.seconds = Envelope(), {}, 0.0
        self.curves, self.parted, self.first = None, None, 1

    def step(self, step, results, parties, seconds):
        """Compare one step.

        Parameters
        ----------
        step : int
            From 1.
        results : list of (float, dict)
            Loss and gradients of ours, float64, PyTorch and its twins.
        parties : sequence
            The same, with ``weights`` and ``state`` after the step.
        seconds : float
            How long the step took.

        Yields
        ------
        Case
            Where the step is listed, or something is wrong.
        """
        self.seconds += seconds
        losses = [loss for loss, _ in results]
        self.curves = [[*old, new] for old, new in zip(self.curves or [[] for _ in losses], losses, strict=True)]
        if self.parted is None:
            apart = parted([gradients for _, gradients in (results[2], results[1], *results[3:])])
            if apart > PARTED:
                self.parted = step, apart
        if self.parted is None:
            cases = list(self._cases(step, results, parties))
        else:
            cases = [self._curve(step)]
        for key, case in cases:
            worst = self.pending.get(key)
            if worst is None or _rank(case) >= _rank(worst):
                self.pending[key] = case
        self.left = any(case.failed for _, case in cases)
        if self.left:
            self.pending = {key: case for key, case in cases if case.failed}
        if self.left or step in self.shown:
            yield from self._listed(step)

    def _listed(self, step):
        """The worst of the steps since those that were listed last, one case for each quantity."""
        for key, case in self.pending.items():
            if case.failed:
                at = f"step {case.data.get('step', step)}"
            else:
                at = f"step {step}" if self.first == step else f"steps {self.first}-{step}"
                if self.first != step:
                    case.note += f"; the worst at step {case.data['step']}"
            case.what, case.seconds, self.seconds = f"{at} {key}", self.seconds, 0.0
            yield case
        self.pending, self.first = {}, step + 1

    def _cases(self, step, results, parties):
        """Loss, gradients, state and weights, in the order in which a step makes them; each with its worst array."""
        ours, right, beside, *twins = (loss for loss, _ in results)
        found = self.envelope.add("loss", ours, right, beside, twins)
        note = f"ours {ours:.7f}, PyTorch {beside:.7f}, float64 {right:.7f}"
        yield "loss", self._case(step, "loss", [found], note, ours=ours, pytorch=beside, float64=right)
        yield "gradients", self._arrays(step, "gradients", [gradients for _, gradients in results])
        if parties[1].state:
            yield "state", self._arrays(step, "state", [party.state for party in parties])
        yield "weights", self._arrays(step, "weights", [party.weights for party in parties])

    def _arrays(self, step, what, sides):
        """The case of all gradients, of all arrays of the state or of all weights."""
        ours, right, beside, *twins = sides
        if ours.keys() != right.keys():
            odd = sorted(right.keys() ^ ours.keys())
            return unmeasured(LEVEL, self.label, f"missing or left over in the {what}: {', '.join(odd[:3])}")
        share = self.recipe.share if what == "weights" else 1.0
        each = [
            self.envelope.add(f"{what} {name}", ours[name], wide, beside[name], [twin[name] for twin in twins], share)
            for name, wide in right.items()
        ]
        for apart in each:
            apart.name = apart.name.removeprefix(f"{what} ")
        return self._case(step, what, each, f"{share:.0%} of each tensor" if share < 1 else "")

    def _case(self, step, what, each, note="", **data):
        """One case of several arrays: that of the worst."""
        worst = max(each, key=lambda apart: (not apart.fine, apart.margin, bool(apart.jumped)))
        where = "" if worst.name == "loss" else f"the farthest of {len(each)} is {worst.name}"
        note = ", ".join(part for part in (where, note) if part)
        why = ""
        if not worst.margin <= 1:
            why = f"left three times the envelope at step {step}: {worst.name}, "
            why += "not finite" if math.isinf(worst.error) else f"{worst.error:.3g} of {worst.limit:.3g} allowed"
        elif worst.jumped:
            why = f"jumped at step {step}: {worst.name}, {worst.jumped:.3g} times as far as at any step before"
        ceiling = self._ceiling(step, what, each)
        if not why and ceiling:
            why = ceiling
        count = sum(not apart.fine for apart in each)
        others = f" ({count} arrays have)" if count > 1 else ""
        known = math.isfinite(worst.peer) and worst.peer > 0 and math.isfinite(worst.error)
        return Case(
            LEVEL, self.label, what, "float32",
            verdict=Verdict.EXCESS_DRIFT if why else Verdict.WITHIN_BUDGET,
            margin=worst.margin, error=worst.error, peer_error=worst.peer,
            ratio=worst.error / worst.peer if known and what != "loss" else None,
            note=f"{why}{others}; {note}" if why else note,
            data={**data, "step": step, "tensor": worst.name, "limit": worst.limit,
                  "margins": {apart.name: apart.margin for apart in each}},
        )  # fmt: skip

    def _ceiling(self, step, what, each):
        """Which documented ceiling does not hold; it speaks where PyTorch's own float32 keeps to it."""
        if not self.recipe.has_ceilings or what not in ("loss", "weights"):
            return ""
        for last, weight, loss in CEILINGS:
            if step <= last:
                limit = loss if what == "loss" else weight
                largest, peer = (max(getattr(apart, side) for apart in each) for side in ("error", "peer"))
                broken = peer <= limit and not largest <= limit
                return f"{largest:.3g} is above {limit:g}, the ceiling at {last} step{'s' * (last > 1)}" * broken
        return ""

    def _curve(self, step):
        """The running mean of the loss, all that can be compared once PyTorch and its twins are different trainings."""
        ours, right, beside, *twins = (float(np.mean(curve[-WINDOW:])) for curve in self.curves)
        found = self.envelope.add("running mean of the loss", ours, right, beside, twins)
        at, apart = self.parted
        note = f"mean of {WINDOW} steps: ours {ours:.4f}, PyTorch {beside:.4f}, float64 {right:.4f}; from step {at} on "
        note += f"PyTorch, its twins and float64 are different trainings (gradients {apart:.0%} apart)"
        return "loss curve", self._case(step, "loss curve", [found], note, ours=ours, pytorch=beside, float64=right)


def _rank(case):
    return case.failed, case.margin or 0.0
