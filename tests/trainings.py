"""Stand-ins for what ``ck parity train`` looks at: correct ones by our equations in float32, and ways to break them."""

import numpy as np

from ckernels.parity import exact


class Model:
    """A correct model: our equations in float32."""

    def __init__(self, config, params):
        self.config, self.params = config, params

    def loss_and_grads(self, ids, targets, reduction="mean", accumulate_into=None):
        run = exact.model(self.config, self.params, ids, targets, dtype="float32", reduction=reduction)
        for name in accumulate_into or ():
            accumulate_into[name] += run.grads[name]
        return float(run.stages["loss"]), run.grads if accumulate_into is None else accumulate_into


def clip(grads, max_norm):
    """Scale all gradients, in place."""
    if max_norm is not None:
        norm = np.sqrt(sum(float(np.square(grad, dtype=np.float64).sum()) for grad in grads.values()))
        for grad in grads.values():
            grad *= np.float32(min(1.0, max_norm / (norm + 1e-6)))


class SGD:
    """A correct optimizer."""

    def __init__(self, params, lr, momentum):
        self.params, self.lr, self.momentum, self.buffers = params, np.float32(lr), np.float32(momentum), {}

    def state_dict(self):
        """As torch's."""
        kept = self.buffers if self.momentum else {}
        return {"state": {i: {"momentum_buffer": kept[n]} for i, n in enumerate(self.params) if n in kept}}

    def step(self, grads, max_norm=None):
        clip(grads, max_norm)
        for name, weight in self.params.items():
            before = self.buffers.get(name)
            self.buffers[name] = grads[name].copy() if before is None else before * self.momentum + grads[name]
            weight -= self.lr * self.buffers[name]


class AdamW:
    """A correct optimizer; a subclass says what it does wrong."""

    inside = coupled = after = False
    late = 0  # steps that the bias correction is behind

    def __init__(self, params, lr, betas, eps, weight_decay):
        self.params, self.lr, self.betas, self.eps, self.decay = params, lr, betas, eps, weight_decay
        self.state, self.steps = {name: (0 * value, 0 * value) for name, value in params.items()}, 0

    def state_dict(self):
        """As torch's."""
        names = ("exp_avg", "exp_avg_sq", "step")
        entries = [dict(zip(names, (*self.state[name], np.float32(self.steps)), strict=True)) for name in self.params]
        return {"state": dict(enumerate(entries))}

    def step(self, grads, max_norm=None):
        clip(grads, max_norm)
        self.steps += 1
        for name, weight in self.params.items():
            gradient = grads[name] + np.float32(self.decay * self.coupled) * weight
            self.state[name] = tuple(
                np.float32(beta) * average + np.float32(1 - beta) * value
                for beta, average, value in zip(self.betas, self.state[name], (gradient, gradient**2), strict=True)
            )
            m, v = (
                average / np.float32(1 - beta ** (self.steps + self.late))
                for beta, average in zip(self.betas, self.state[name], strict=True)
            )
            eps, keep = np.float32(self.eps), np.float32(1 if self.coupled else 1 - self.lr * self.decay)
            update = np.float32(self.lr) * m / (np.sqrt(v + eps) if self.inside else np.sqrt(v) + eps)
            weight[...] = keep * (weight - update) if self.after else keep * weight - update
