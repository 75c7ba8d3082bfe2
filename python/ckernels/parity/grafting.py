"""A candidate's stages recomputed from its own inputs, and judged by the error that rounding cannot avoid."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np

from .arithmetic import Arithmetic
from .equations import Equations, Missing, Weights
from .figures import FORMATS, _round_to
from .settings import Settings
from .verdicts import Verdict

_BROKEN = 0.1  # as in compare(): an error of this part of the result is no rounding


def model_parts(model):
    """Configuration and parameters of a model.

    Parameters
    ----------
    model : object or tuple
        With ``config`` and ``params`` (``ck.models.Model``, `Reference`), a torch module with ``config``, or a pair.
    """
    if isinstance(model, tuple) and len(model) == 2:
        return model
    if hasattr(model, "config") and hasattr(model, "params"):
        return model.config, model.params
    if hasattr(model, "config") and hasattr(model, "state_dict"):
        params = dict(model.state_dict())
        if getattr(model.config, "tie_word_embeddings", False):
            params.pop("lm_head.weight", None)
        return model.config, params
    raise TypeError(f"'model' of type {type(model).__name__} has not 'config' and 'params', nor is it a pair of them")


@dataclass(frozen=True)
class Judged:
    """How far a stage is from the recomputed one, beside what rounding allows; figures are maximum and RMS."""

    error_max: float
    error_rms: float
    allowed_max: float
    allowed_rms: float
    exact_max: float
    exact_rms: float
    rounded: bool = False
    odd: int = 0

    @property
    def margin(self):
        """Error over what is allowed, the larger of maximum and RMS."""
        if self.odd:
            return math.inf
        return max(_ratio(self.error_max, self.allowed_max), _ratio(self.error_rms, self.allowed_rms))

    @property
    def relative(self):
        """RMS error over the RMS of the exact result."""
        return _ratio(self.error_rms, self.exact_rms)

    @property
    def verdict(self):
        """What the error means by itself."""
        if self.margin <= 1:
            return Verdict.EXACT if self.rounded else Verdict.WITHIN_BUDGET
        wild = self.odd or max(self.relative, _ratio(self.error_max, self.exact_max)) > _BROKEN
        return Verdict.STRUCTURAL if wild else Verdict.EXCESS_DRIFT


def _ratio(error, allowed):
    if error == 0:
        return 0.0
    return math.inf if not allowed > 0 else error / allowed


def _size(values):
    """Largest magnitude and root mean square."""
    flat = values.ravel()
    return (float(np.abs(flat).max()), math.sqrt(float(np.dot(flat, flat)) / flat.size)) if flat.size else (0.0, 0.0)


def judge(found, want, peers, name):
    """Compare a stage with the recomputed one.

    Parameters
    ----------
    found, want : float64 array
        The candidate's, and the exact one.
    peers : list of array
        The same stage in the candidate's arithmetic: the largest of their errors is the floor. ``3 floor + 2 ulp``
        is allowed, as in `compare`.
    name : str
        Of the number format.
    """
    fmt = FORMATS[name]
    good = np.isfinite(want) & np.isfinite(found)
    odd = int(good.size - np.count_nonzero(good | (np.isnan(want) & np.isnan(found)) | (want == found)))
    found, want = (found, want) if good.all() else (found[good], want[good])
    floor_max = floor_rms = 0.0
    for peer in peers:
        peer = peer if good.all() else peer[good]
        error = np.where(np.isfinite(peer), peer.astype(np.float64) - want, 0.0)
        largest, mean = _size(error)
        floor_max, floor_rms = max(floor_max, largest), max(floor_rms, mean)
    exact_max, exact_rms = _size(want)
    tiny = 2.0**fmt.lowest
    return Judged(
        *_size(found - want),
        3 * floor_max + 2 * max(fmt.eps * exact_max, tiny),
        3 * floor_rms + 2 * max(fmt.eps * exact_rms, tiny),
        exact_max,
        exact_rms,
        bool(found.size) and not odd and bool((_round_to(want, fmt) == found).all()),
        odd,
    )


class Graft:
    """A candidate beside the equations of its model.

    Parameters
    ----------
    config, params
        Of the model that the candidate should be.
    given, inputs : dict of str to array
        The candidate's stages in the shapes of docs/stages.md, and what went in.
    format_ : str
        The number format of its arithmetic.
    assume : dict
        Edits that are part of the model: known deviations which shall not count.
    """

    def __init__(self, config, params, given, inputs, format_, assume=None):
        self.settings, self.weights = Settings.of(config), Weights(params)
        self.given, self.inputs, self.format, self.assume = given, inputs, format_, assume or {}
        self._chains = {}

    def equations(self, number, edits=None, drop=frozenset(), given=None):
        """The equations with the candidate's stages put in."""
        return Equations(
            self.settings, self.weights, number, self.given if given is None else given, self.inputs,
            merged(self.assume, edits or {}), drop,
        )  # fmt: skip

    def parties(self, edits=None, drop=frozenset()):
        """Exact, and the two peers: sums as BLAS does them, and one term after the other."""
        name = self.format
        return [self.equations(n, edits, drop) for n in (Arithmetic(), Arithmetic(name), Arithmetic(name, True))]

    def judge(self, stage, parties):
        """Recompute a stage with all parties and judge the candidate's; also returns the exact value."""
        want, *peers = [party.compute(stage) for party in parties]
        found = np.asarray(self.given[stage]).astype(np.float64)
        return judge(found, want, peers, self.format), want

    def margin(self, stage, edits):
        """The margin of a stage under edits; infinite as soon as that is clear."""
        exact, *peers = self.parties(edits)
        found = np.asarray(self.given[stage]).astype(np.float64)
        want = exact.compute(stage)
        if want.shape != found.shape or far(found, want, self.format):
            return math.inf
        return judge(found, want, [peer.compute(stage) for peer in peers], self.format).margin

    def chain(self, stage):
        """The stages between the candidate's own and this one, itself included."""
        if stage not in self._chains:
            g = self.equations(Arithmetic())
            try:
                g.compute(stage)
            except Missing:
                self._chains[stage] = frozenset()
            else:
                self._chains[stage] = frozenset(g.chain(stage))
        return self._chains[stage]

    def without(self, stages):
        """The same candidate as if it had not these stages."""
        other = copy.copy(self)
        other.given = {name: array for name, array in self.given.items() if name not in stages}
        other._chains = {}
        return other


def far(found, want, name):
    """Whether two arrays differ by so much that no rounding of one stage makes up for it."""
    good = np.isfinite(want) & np.isfinite(found)
    if np.count_nonzero(~good) > 0.5 * good.size:
        return False
    difference = _size((found - want)[good])[1]
    return difference > max(0.02, 64 * FORMATS[name].eps) * _size(want[good])[1] + 1e-30 if good.any() else False


def merged(first, second):
    """Two sets of edits as one: keywords of the same stage are joined."""
    return {stage: first.get(stage, {}) | second.get(stage, {}) for stage in first.keys() | second.keys()}


__all__ = ["Graft", "Judged", "Missing", "judge", "merged", "model_parts"]
