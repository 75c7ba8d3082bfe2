"""Which trainings are run: optimizers with their options, and the plan of a quick, default, full or stress run."""

from __future__ import annotations

from typing import NamedTuple

STEPS = 5


class Recipe(NamedTuple):
    """An optimizer and how its weights are compared: by the largest difference, or by a percentile of them.

    ``max_norm`` clips the gradients, all of them taken as one vector, before the step.
    """

    label: str
    kind: str
    options: dict
    lr: float
    share: float = 1.0
    max_norm: float | None = None

    @property
    def has_ceilings(self):
        """Whether the documented figures, which are of SGD, hold."""
        return self.kind == "SGD"


def _adamw(label, eps, lr, share=1.0):
    return Recipe(label, "AdamW", {"betas": (0.9, 0.999), "eps": eps, "weight_decay": 0.1}, lr, share)


#: What --optimizer takes. Momentum multiplies the way of a step by 10; a training that diverges measures nothing. Decay
#: and learning rate of the first AdamW are so large that decay before the update and after it differ by more than
#: rounding: by lr² · decay.
OPTIMIZERS = {
    "sgd": (Recipe("sgd", "SGD", {"momentum": 0.0}, 0.05),),
    "momentum": (Recipe("momentum, clipped to 1", "SGD", {"momentum": 0.9}, 0.005, max_norm=1.0),),
    "adamw": (_adamw("adamw, eps 1e-5", 1e-5, 1e-2), _adamw("adamw, eps 1e-8", 1e-8, 1e-3, 0.99)),
}
RATES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


class Plan(NamedTuple):
    """One training: a preset, a recipe, a number of steps, a learning rate, and whether every step is listed."""

    config: str
    recipe: Recipe
    steps: int
    lr: float
    listed: bool = False


def plans(options, configs):
    """The trainings of a run.

    Parameters
    ----------
    options : Options
        ``config``, ``optimizer``, ``steps`` and ``lr`` choose; else ``quick``, ``full`` and ``stress`` say how much.
    configs : iterable of str
        The presets there are.

    Returns
    -------
    list of Plan
        No two alike.
    """
    chosen = []

    def add(config, optimizer, steps=STEPS, rates=(None,), listed=False):
        for recipe in OPTIMIZERS[optimizer]:
            for rate in rates:
                rate = options.lr or rate or recipe.lr
                plan = Plan(config, recipe, options.steps or steps, rate, listed or options.full)
                if not any(plan[:4] == other[:4] for other in chosen):
                    chosen.append(plan)

    if options.config or options.optimizer:
        for config in [options.config] if options.config else ["tiny"]:
            for optimizer in [options.optimizer] if options.optimizer else ["sgd"]:
                add(config, optimizer, listed=True)
        return chosen
    add("tiny", "sgd", listed=True)
    if options.quick:
        add("tiny", "adamw", 2)
        return chosen
    add("gqa", "momentum")
    add("tiny", "adamw")
    add("tiny", "sgd", 20)
    if not (options.full or options.stress):
        for config, optimizer in (("deep", "momentum"), ("wide", "adamw"), ("single_layer", "sgd")):
            add(config, optimizer, 2)
        return chosen
    for config in configs:
        for optimizer in OPTIMIZERS:
            add(config, optimizer, 5 if config == "medium" else 20)
    for optimizer in OPTIMIZERS:
        add("tiny", optimizer, 20, RATES)
    add("tiny", "sgd", 100)
    add("gqa", "adamw", 100)
    if options.stress:
        for config in ("tiny", "gqa", "deep"):
            for optimizer in OPTIMIZERS:
                add(config, optimizer, 500 if config == "tiny" else 100, RATES)
    return chosen
