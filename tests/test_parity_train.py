"""``ck parity train`` passes correct trainings and names step and tensor of a wrong one."""

import math

import numpy as np
import pytest

import ckernels as ck
import trainings
from ckernels.parity import Verdict, levels, train
from ckernels.parity.levels import Options
from ckernels.parity.train.envelope import Envelope, distance, parted
from ckernels.parity.train.following import Following
from ckernels.parity.train.recipes import OPTIMIZERS, plans
from trainings import SGD, AdamW, Model

OK = {Verdict.EXACT, Verdict.WITHIN_BUDGET}
KINDS = {"model": Model, "sgd": SGD, "adamw": AdamW}


@pytest.fixture(autouse=True)
def twins(request, monkeypatch):
    """Few twins, twice: a fault is outside of any number of them."""
    if "by_luck" not in request.node.name:
        monkeypatch.setattr(train, "TWINS", 2)
        monkeypatch.setattr(train, "MORE_TWINS", 3)


def failed(cases):
    return [case for case in cases if case.verdict not in OK]


def run(optimizer, steps, **others):
    options = Options(config="tiny", optimizer=optimizer, steps=steps, quick=True)
    return list(train.run(options, **KINDS | others))


# --- what is right ----------------------------------------------------------------------------------------------------


def test_a_correct_training_passes_every_step():
    for optimizer, quantities in (("momentum", 4), ("adamw", 8)):
        cases = run(optimizer, 3)
        assert not failed(cases), failed(cases)[0]
        steps = [case for case in cases if case.what.startswith(("step 2 ", "step 3 "))]
        assert len(steps) == 2 * quantities
        assert {case.what.split()[-1] for case in steps} == {"loss", "gradients", "state", "weights"}
    assert sum("micro-batches" in case.name for case in cases) == 4


def test_our_training_passes():
    cases = list(train.run(Options()))
    assert not failed(cases), "\n".join(map(str, failed(cases)))
    for config in ("tiny", "gqa", "deep", "wide", "single_layer"):
        assert any(
            case.name.startswith(f"{config}, micro-batches" if config != "tiny" else "tiny, 8") for case in cases
        )
    labels = {case.name for case in cases}
    assert {case.what for case in cases if case.name == "tiny, sgd, lr 0.05, 20 steps"} == {
        f"{steps} {what}" for steps in ("steps 1-5", "steps 6-20") for what in ("loss", "gradients", "weights")
    }
    assert any("eps 1e-8" in label for label in labels) and any("momentum, clipped" in label for label in labels)


def test_a_training_that_leaves_a_few_twins_by_luck_is_run_again_beside_many():
    chosen = Options(config="deep", optimizer="sgd", steps=2)
    (plan,) = plans(chosen, ck.models.configs)
    found = {}
    for twins in (train.TWINS, train.MORE_TWINS):
        arguments = ("deep", ck.models.configs.deep, plan, chosen, ck.models.Model, ck.optim.SGD)
        _, found[twins] = train._followed(*arguments, twins)
    assert found == {3: True, 9: False}, "this preset and seed is one that leaves three twins"
    assert not failed(train._training(*arguments))


@pytest.mark.parametrize("size, most", [("quick", 4), ("full", 80), ("stress", 120)])
def test_a_plan_is_made_once(size, most):
    chosen = plans(Options(**{size: True}), ck.models.configs)
    assert len({str(plan[:4]) for plan in chosen}) == len(chosen) <= most
    if size != "quick":
        assert {plan.config for plan in chosen} == set(ck.models.configs) if size != "quick" else True
        assert {plan.recipe.label for plan in chosen} == {
            recipe.label for some in OPTIMIZERS.values() for recipe in some
        }
        assert {1e-5, 1e-4, 1e-3, 1e-2, 1e-1} <= {plan.lr for plan in chosen if plan.config == "tiny"}
        assert max(plan.steps for plan in chosen) == (500 if size == "stress" else 100)


def test_all_that_a_user_chooses_is_run():
    (plan,) = plans(Options(config="deep", optimizer="momentum", steps=7, lr=0.25), ck.models.configs)
    assert plan[0] == "deep" and plan.steps == 7 and plan.lr == 0.25 and plan.recipe.max_norm == 1.0


def test_the_level_puts_threads_back():
    import torch

    before = torch.get_num_threads(), ck.get_num_threads()
    run("sgd", 1)
    assert (torch.get_num_threads(), ck.get_num_threads()) == before


# --- optimizers -------------------------------------------------------------------------------------------------------


class DampedMomentum(SGD):
    def step(self, grads, max_norm=None):
        trainings.clip(grads, max_norm)
        for name, weight in self.params.items():
            before = self.buffers.get(name, 0 * grads[name])
            self.buffers[name] = before * self.momentum + (1 - self.momentum) * grads[name]
            weight -= self.lr * self.buffers[name]


class StaleState(SGD):
    """The state of one tensor is that of the step before."""

    def step(self, grads, max_norm=None):
        name = "model.layers.1.mlp.down_proj.weight"
        if name in self.buffers:
            self.buffers[name] = 0 * self.buffers[name]
        super().step(grads, max_norm)


class LastLanes(SGD):
    def step(self, grads, max_norm=None):
        kept = {name: weight.reshape(-1)[-3:].copy() for name, weight in self.params.items()}
        super().step(grads, max_norm)
        for name, weight in self.params.items():
            weight.reshape(-1)[-3:] = kept[name]


class ClippedAfter(SGD):
    def step(self, grads, max_norm=None):
        super().step(grads)
        trainings.clip(grads, max_norm)


class NoEpsInTheClip(SGD):
    """Clips every tensor by its own norm."""

    def step(self, grads, max_norm=None):
        for name in grads:
            trainings.clip({name: grads[name]}, max_norm)
        super().step(grads)


class LateMomentum(SGD):
    """Right for three steps."""

    def step(self, grads, max_norm=None):
        self.calls = getattr(self, "calls", 0) + 1
        self.momentum = np.float32(0.9 if self.calls < 4 else 0.89)
        super().step(grads, max_norm)


@pytest.mark.parametrize(
    "fault, step, what, tensor",
    [
        (DampedMomentum, 1, "state", ""),
        (StaleState, 2, "state", "momentum_buffer of model.layers.1.mlp.down_proj.weight"),
        (LastLanes, 1, "weights", ""),
        (ClippedAfter, 1, "state", ""),
        (NoEpsInTheClip, 1, "state", ""),
        (LateMomentum, 4, "state", ""),
    ],
)
def test_a_fault_of_momentum_is_seen_at_its_step(fault, step, what, tensor):
    cases = [case for case in failed(run("momentum", 5, sgd=fault)) if "micro" not in case.name]
    followed = [case for case in cases if case.what.startswith(f"step {step} ") and "weight" != case.what.split()[-1]]
    assert followed[0].what == f"step {step} {what}" and f"at step {step}: {tensor}" in followed[0].note
    assert {case.what.split()[1] for case in cases} == {str(step)}, "it is named once, where it begins"


ADAMW = {
    "eps inside": {"inside": True},
    "coupled decay": {"coupled": True},
    "decay after": {"after": True},
    "bias correction off by one": {"late": 1},
    "bias correction missing": {"late": 1e9},
}


@pytest.mark.parametrize("fault", ADAMW)
def test_a_fault_of_adamw_is_seen_at_step_one(fault):
    cases = failed(run("adamw", 1, adamw=type("Faulty", (AdamW,), ADAMW[fault])))
    first = "step 1 state" if fault == "coupled decay" else "step 1 weights"
    assert {case.name.split(", ")[2] for case in cases if case.what == first} >= {"eps 1e-5"}
    assert not [case for case in cases if case.what in ("step 1 loss", "step 1 gradients")]


def test_state_that_is_left_behind_is_seen_at_the_second_step():
    class Forgetful(AdamW):
        def step(self, grads, max_norm=None):
            kept = self.state["model.norm.weight"]
            super().step(grads, max_norm)
            if self.steps > 1:
                self.state["model.norm.weight"] = kept

    cases = [case for case in failed(run("adamw", 2, adamw=Forgetful)) if "eps 1e-5" in case.name]
    assert [case.what for case in cases][0] == "step 2 state" and "of model.norm.weight" in cases[0].note


# --- loss and gradients -----------------------------------------------------------------------------------------------


def wrong_loss(change):
    class Faulty(Model):
        def loss_and_grads(self, ids, targets, **options):
            return change(self, ids, targets, **options)

    return Faulty


def ignored_counted(self, ids, targets, **options):
    return Model.loss_and_grads(self, ids, np.where(targets < 0, 0, targets), **options)


def divided_by_all_tokens(self, ids, targets, **options):
    loss, grads = Model.loss_and_grads(self, ids, targets, **options)
    share = np.float32((targets >= 0).mean())
    return loss * share, {name: grad * share for name, grad in grads.items()}


def summed(self, ids, targets, reduction="mean", **options):
    return Model.loss_and_grads(self, ids, targets, reduction="sum", **options)


def shifted(self, ids, targets, **options):
    return Model.loss_and_grads(self, ids, np.roll(targets, 1, axis=1), **options)


def one_tensor_not_updated(self, ids, targets, **options):
    loss, grads = Model.loss_and_grads(self, ids, targets, **options)
    return loss, grads | {"model.layers.1.self_attn.k_proj.weight": 0 * grads["model.layers.1.self_attn.k_proj.weight"]}


@pytest.mark.parametrize("change", [ignored_counted, divided_by_all_tokens, summed, shifted, one_tensor_not_updated])
def test_a_fault_of_the_loss_or_a_gradient_is_seen_at_step_one(change):
    cases = failed(run("sgd", 2, model=wrong_loss(change)))
    whats = [case.what for case in cases]
    assert "step 1 gradient" in whats and "step 1 gradients" in whats
    assert ("step 1 loss" in whats) == (change is not one_tensor_not_updated)
    assert not any(what.startswith("step 2") for what in whats)
    if change is one_tensor_not_updated:
        (case,) = [case for case in cases if case.what == "step 1 gradients"]
        assert case.data["tensor"] == "model.layers.1.self_attn.k_proj.weight"


def test_a_gradient_that_is_not_zeroed_is_seen_at_the_second_step():
    class NotZeroed(Model):
        held = None

        def loss_and_grads(self, ids, targets, **options):
            loss, grads = Model.loss_and_grads(self, ids, targets, **options)
            name = "model.layers.0.mlp.up_proj.weight"
            if "reduction" not in options:
                grads[name] = grads[name] + (0 if self.held is None else self.held)
                self.held = grads[name].copy()
            return loss, grads

    cases = failed(run("sgd", 3, model=NotZeroed))
    assert [case.what for case in cases] == ["step 2 gradients", "step 2 weights"]
    assert all(case.data["tensor"] == "model.layers.0.mlp.up_proj.weight" for case in cases)


def not_accumulated(self, ids, targets, reduction="mean", accumulate_into=None):
    return Model.loss_and_grads(self, ids, targets, reduction)


def accumulated_as_means(self, ids, targets, reduction="mean", accumulate_into=None):
    counted = np.float32((targets >= 0).sum())
    loss, grads = Model.loss_and_grads(self, ids, targets, "mean")
    if reduction == "sum":  # every micro-batch gets the same weight, whatever it counts
        grads = {name: grad * np.float32(20) for name, grad in grads.items()}
    for name in accumulate_into or ():
        accumulate_into[name] += grads[name]
    return loss * counted, accumulate_into or grads


@pytest.mark.parametrize("change", [not_accumulated, accumulated_as_means])
def test_a_fault_of_accumulation_is_seen_in_micro_batches(change):
    class Faulty(Model):
        def loss_and_grads(self, ids, targets, reduction="mean", accumulate_into=None):
            if reduction == "mean":
                return Model.loss_and_grads(self, ids, targets)
            return change(self, ids, targets, reduction, accumulate_into)

    cases = failed(run("sgd", 1, model=Faulty))
    assert {case.what for case in cases} == {"accumulated gradient", "weights after the step"}
    assert {"tiny, 2 micro-batches", "tiny, 8 micro-batches"} == {case.name for case in cases}


def test_what_is_missing_is_unmeasured_and_fails():
    def no_norm(self, ids, targets, **options):
        loss, grads = Model.loss_and_grads(self, ids, targets, **options)
        grads.pop("model.norm.weight", None)
        return loss, grads

    class Patient(SGD):
        def step(self, grads, max_norm=None):
            super().step({name: grads.get(name, 0 * weight) for name, weight in self.params.items()}, max_norm)

    cases = failed(run("sgd", 1, model=wrong_loss(no_norm), sgd=Patient))
    lost = [case.what for case in cases if case.verdict == levels.UNMEASURED]
    assert lost.count("step 1 gradients") == 1 and "step 1 gradient" in lost and "accumulated gradient" in lost

    class Stateless(SGD):
        def state_dict(self):
            return {"state": {}}

    cases = failed(run("momentum", 1, sgd=Stateless))
    assert [(case.what, case.verdict) for case in cases] == [("step 1 state", levels.UNMEASURED)]
    assert "momentum_buffer of" in cases[0].note


def test_a_loss_that_is_no_number_fails():
    def not_a_number(self, ids, targets, **options):
        return math.nan, Model.loss_and_grads(self, ids, targets, **options)[1]

    (case,) = failed(run("sgd", 2, model=wrong_loss(not_a_number)))
    assert case.what == "step 1 loss" and "not finite" in case.note


# --- the envelope -----------------------------------------------------------------------------------------------------


def test_distance_sees_the_largest_the_mean_and_a_share():
    a, b = np.zeros(100), np.zeros(100)
    b[7] = 4.0
    assert distance(a, b) == (4.0, 0.4) and distance(a, b, 0.98) == (0.0, 0.0)
    b[3] = np.nan
    assert distance(a, b) == (math.inf, math.inf) == distance(a, b[1:])


def steps_of(errors, spread):
    """An envelope that has seen these errors of ours, and these distances of the twin."""
    envelope, x = Envelope(), np.ones(50)
    return [envelope.add("w", x + error, x, x, [x + far]) for error, far in zip(errors, spread, strict=True)]


def test_three_times_the_envelope_is_inside_and_more_is_not():
    inside, outside = steps_of([2.9e-3, 3.2e-3], [1e-3, 1e-3])
    assert inside.fine and not outside.fine and outside.margin > 1


def test_a_jump_inside_three_times_the_envelope_is_seen():
    *before, jump = steps_of([1e-5, 1e-5, 2e-3], [1e-3, 1e-3, 1e-3])
    assert all(apart.fine for apart in before) and jump.margin < 1 and not jump.fine and jump.jumped > 100
    *_, grown = steps_of([1e-5, 1e-5, 2e-3], [1e-6, 1e-5, 1e-3])  # the twins have gone the same way
    assert grown.fine


def test_trainings_that_have_parted_are_told_by_their_gradients():
    one = {"a": np.array([3.0, 4.0]), "b": np.zeros(2)}
    assert parted([one, one, {"a": np.array([3.0, 4.0]), "b": np.array([0.5, 0])}]) == pytest.approx(0.1)


class Party:
    state = {}

    def __init__(self, weight):
        self.weights = {"w": np.array([weight, 1.0])}


def test_after_parting_the_running_mean_of_the_loss_is_what_counts():
    def follow(off):
        following, cases = Following("toy", OPTIMIZERS["sgd"][0], 12), []
        for step in range(1, 13):
            far = 1.0 if step > 2 else 0.0
            losses = [4 + off * far, 4, 4 + 0.1 * far, 4 - 0.1 * far, 4]
            grads = [{"w": np.array([1.0 + far * k, 0])} for k in (0, 0, 0.5, 1, 2)]
            parties = [Party(1.0)] * 5
            results = list(zip(losses, grads, strict=True))
            cases += following.step(step, results, parties, 0.0)
            if following.left:
                break
        return cases

    good, bad = follow(0.2), follow(2.0)
    assert not failed(good) and [case.what for case in good if "curve" in case.what] == ["steps 1-5 loss curve",
                                                                                      "steps 6-12 loss curve"]  # fmt: skip
    assert "different trainings" in good[-1].note
    assert [case.what for case in failed(bad)] == ["step 3 loss curve"]


def test_a_ceiling_holds_where_pytorch_keeps_it():
    def follow(error, peer):
        x = np.ones(4)
        sides = [{"w": x + error}, {"w": x}, {"w": x + peer}, {"w": x + 1.0}, {"w": x}]
        following = Following("toy", OPTIMIZERS["sgd"][0], 1)
        return following._arrays(1, "weights", sides)

    assert not follow(0.9e-5, 0).failed
    assert "above 1e-05, the ceiling at 1 step" in follow(1.1e-5, 0).note
    assert not follow(1.1e-5, 2e-5).failed, "PyTorch does not keep it either"
