"""The parties of a training: float64, PyTorch, its twin, and ours. Each has ``step``, ``weights`` and ``state``."""

from __future__ import annotations

import numpy as np

from .. import exact, peer

#: Arrays of an optimizer's state that take part, by its kind.
STATE = {"SGD": ("momentum_buffer",), "AdamW": ("exp_avg", "exp_avg_sq", "step")}


def state_name(part, name):
    """How an array of the state is called: "exp_avg of model.norm.weight"."""
    return f"{part} of {name}"


def _named(state, recipe, names):
    """A ``state_dict()["state"]`` by parameter names; ``names`` in the order in which the optimizer got them."""
    found = {}
    for index, name in enumerate(names):
        entry = state.get(index, {})
        for part in STATE[recipe.kind]:
            if entry.get(part) is not None:
                found[state_name(part, name)] = np.asarray(entry[part])
    return found


class Exact:
    """The float64 training: our equations, and the update written out.

    Clipping: all gradients times ``max_norm / (norm + 1e-6)`` where that is below 1. SGD: ``b = g`` at the first step,
    then ``b = momentum·b + g``; ``w = w - lr·b``. AdamW: the averages m of g and v of g² from zero;
    ``w = w·(1 - lr·decay) - lr·(m/(1 - beta1^t)) / (sqrt(v/(1 - beta2^t)) + eps)``. Those of torch.optim.
    """

    def __init__(self, config, params, lr, recipe, dtype="float64"):
        self.config, self.lr, self.recipe, self.dtype = config, lr, recipe, dtype
        self.weights = {name: np.asarray(value, np.float64) for name, value in params.items()}
        self.moments, self.steps = {}, 0

    @property
    def state(self):
        """The state by the names of torch: ``momentum_buffer``; ``exp_avg``, ``exp_avg_sq`` and ``step``."""
        if self.recipe.kind == "SGD":
            parts = {name: {"momentum_buffer": value} for name, value in self.moments.items()}
            parts = parts if self.recipe.options["momentum"] else {}
        else:
            step = np.float64(self.steps)
            parts = {name: dict(zip(STATE["AdamW"], (*mv, step), strict=True)) for name, mv in self.moments.items()}
        return {state_name(part, name): value for name, entry in parts.items() for part, value in entry.items()}

    def step(self, ids, targets):
        """One step; returns the loss and the gradients at the weights before it."""
        found = exact.model(self.config, self.weights, ids, targets, dtype=self.dtype)
        self.steps += 1
        factor = 1.0
        if self.recipe.max_norm is not None:
            norm = np.sqrt(sum(float(np.square(gradient).sum()) for gradient in found.grads.values()))
            factor = min(1.0, self.recipe.max_norm / (norm + 1e-6))
        update = self._adamw if self.recipe.kind == "AdamW" else self._sgd
        for name, gradient in found.grads.items():
            self.weights[name] = update(name, self.weights[name], gradient * factor)
        return float(found.stages["loss"]), found.grads

    def _sgd(self, name, weight, gradient):
        before = self.moments.get(name)
        self.moments[name] = gradient if before is None else self.recipe.options["momentum"] * before + gradient
        return weight - self.lr * self.moments[name]

    def _adamw(self, name, weight, gradient):
        (beta1, beta2), t = self.recipe.options["betas"], self.steps
        m, v = self.moments.get(name, (0.0, 0.0))
        m, v = beta1 * m + (1 - beta1) * gradient, beta2 * v + (1 - beta2) * gradient * gradient
        self.moments[name] = m, v
        size = np.sqrt(v / (1 - beta2**t)) + self.recipe.options["eps"]
        return weight * (1 - self.lr * self.recipe.options["weight_decay"]) - self.lr * m / (1 - beta1**t) / size


class Torch:
    """Transformers in float32 with an optimizer of ``torch.optim``."""

    def __init__(self, config, params, lr, recipe):
        import torch

        self.module, self.recipe = peer.llama(config, params), recipe
        self.named = dict(self.module.named_parameters())
        self.optimizer = getattr(torch.optim, recipe.kind)(self.module.parameters(), lr=lr, **recipe.options)

    @property
    def weights(self):
        """The parameters, which the next step changes in place."""
        return {name: tensor.detach().numpy() for name, tensor in self.named.items()}

    @property
    def state(self):
        """The arrays of the optimizer's state."""
        return _named(self.optimizer.state_dict()["state"], self.recipe, list(self.named))

    def step(self, ids, targets):
        """One step; returns the loss and the gradients at the weights before it."""
        import torch

        self.optimizer.zero_grad()
        logits = self.module(torch.from_numpy(ids), use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
        loss.backward()
        gradients = {name: tensor.grad.numpy() for name, tensor in self.named.items()}
        if self.recipe.max_norm is not None:
            gradients = {name: gradient.copy() for name, gradient in gradients.items()}
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.recipe.max_norm)
        self.optimizer.step()
        return float(loss.detach()), gradients


class Ours:
    """The training under test."""

    def __init__(self, config, params, lr, recipe, model, optimizer):
        # The optimizer works in place: the arrays must be this training's own.
        self.recipe = recipe
        self.model = model(config, {name: value.copy() for name, value in params.items()})
        self.optimizer = optimizer(self.model.params, lr=lr, **recipe.options)

    @property
    def weights(self):
        """The parameters, which the next step changes in place."""
        return self.model.params

    @property
    def state(self):
        """The arrays of the optimizer's state."""
        return _named(self.optimizer.state_dict()["state"], self.recipe, list(self.model.params))

    def step(self, ids, targets):
        """One step; returns the loss and the gradients at the weights before it."""
        loss, gradients = self.model.loss_and_grads(ids, targets)
        gradients = {name: np.array(gradient) for name, gradient in gradients.items()}
        given = {name: gradient.copy() for name, gradient in gradients.items()}  # an optimizer may clip in place
        self.optimizer.step(given, max_norm=self.recipe.max_norm)
        return float(loss), gradients


def nudged(params, seed):
    """Every weight moved by one ulp up or down: where the twin starts."""
    rng = np.random.default_rng([seed, 53])
    ends = np.array([-np.inf, np.inf], np.float32)
    return {name: np.nextafter(value, ends[rng.integers(0, 2, value.shape)]) for name, value in params.items()}
