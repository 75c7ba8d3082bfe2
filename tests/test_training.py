"""``ckernels.training``: accumulation, checkpoints that resume to the bit, log, curve, bar."""

import io
import json
import sys

import numpy as np
import pytest

import ckernels as ck
from ckernels.parity import assert_parity, exact, probes
from ckernels.training import TextBatches, Trainer, load_checkpoint, plot_losses, save_checkpoint

CONFIG = ck.models.configs.tiny
TEXT = np.frombuffer(probes.text(20000).encode(), np.uint8)


def trainer(kind="AdamW", batches=None, seed=0, **options):
    model = ck.models.Model(CONFIG, probes.parameters(CONFIG, seed))
    settings = {"lr": 1e-2, "momentum": 0.9} if kind == "SGD" else {"lr": 1e-3}
    batches = TextBatches(TEXT, batch=4, tokens=19, seed=seed) if batches is None else batches
    return Trainer(model, getattr(ck.optim, kind)(model.params, **settings), batches, **options)


def bits(one):
    """Weights and state, as bytes."""
    arrays = dict(one.model.params)
    for index, entry in one.optimizer.state_dict()["state"].items():
        arrays |= {f"{index}.{name}": value for name, value in entry.items()}
    return {name: np.asarray(value).tobytes() for name, value in arrays.items()}


# --- batches ----------------------------------------------------------------------------------------------------------


def test_batches_are_windows_with_the_next_token_as_target():
    batches = TextBatches(TEXT, batch=3, tokens=7, seed=1)
    ids, targets = next(batches)
    assert ids.shape == targets.shape == (3, 7) and (ids[:, 1:] == targets[:, :-1]).all()
    text = TEXT.tobytes()
    assert all(bytes([*row.astype(np.uint8), last]) in text for row, last in zip(ids, targets[:, -1], strict=True))
    other = TextBatches(TEXT, batch=3, tokens=7, seed=2)
    assert (next(other)[0] != ids).any() and (next(TextBatches(TEXT, 3, 7, 1))[0] == ids).all()
    starts = {int(next(TextBatches(np.arange(9), 1, 8, seed))[0][0, 0]) for seed in range(20)}
    assert starts == {0}, "nine tokens have one window of eight and its target"
    assert {int(next(TextBatches(np.arange(10), 1, 8, seed))[0][0, 0]) for seed in range(20)} == {0, 1}


def test_batches_continue_from_their_state():
    one, two = TextBatches(TEXT, 2, 5, seed=3), TextBatches(TEXT, 2, 5, seed=4)
    next(one)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for _ in range(3):
        assert all((a == b).all() for a, b in zip(next(one), next(two), strict=True))


@pytest.mark.parametrize(
    "arguments, error, says",
    [
        ((np.zeros((2, 3), int), 1, 1), TypeError, "'ids' must be integers"),
        ((np.zeros(9), 1, 1), TypeError, "float64"),
        ((np.arange(9), 0, 1), ValueError, "batch=0"),
        ((np.arange(9), 1, 0), ValueError, "tokens=0"),
        ((np.arange(9), 1, 9), ValueError, "windows of 9 need 10"),
    ],
)
def test_batches_refuse(arguments, error, says):
    with pytest.raises(error, match=says):
        TextBatches(*arguments)
    with pytest.raises(ValueError, match="'state' has no 'rng'"):
        TextBatches(np.arange(9), 1, 3).load_state_dict({})


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_micro_batches_give_the_gradient_of_the_batch(parts):
    ids, targets = next(TextBatches(TEXT, batch=8, tokens=17, seed=5))
    for row in range(7):  # every row counts another number: a mean of means would be wrong
        targets[row, : 2 * (7 - row)] = -100
    one = trainer(micro_batches=parts)
    loss, grads = one.gradients(ids, targets)
    right, beside = (exact.model(CONFIG, one.model.params, ids, targets, dtype=d) for d in ("float64", "float32"))
    for name, gradient in right.grads.items():
        assert_parity(grads[name], gradient, beside.grads[name], name=name)
    assert abs(loss - right.stages["loss"]) < 1e-6 * abs(loss)


def test_a_step_is_what_one_writes_by_hand():
    one = trainer("SGD", max_norm=0.5)
    model = ck.models.Model(CONFIG, probes.parameters(CONFIG, 0))
    optimizer, batches = ck.optim.SGD(model.params, lr=1e-2, momentum=0.9), TextBatches(TEXT, 4, 19)
    for _ in range(3):
        loss, grads = model.loss_and_grads(*next(batches))
        optimizer.step(grads, max_norm=0.5)
        assert one.one_step() == loss
    assert all(one.model.params[name].tobytes() == value.tobytes() for name, value in model.params.items())


def test_recomputing_changes_no_bit():
    runs = [trainer(recompute=recompute, micro_batches=2) for recompute in (False, True)]
    assert runs[0].run(3) == runs[1].run(3) and bits(runs[0]) == bits(runs[1])


def test_a_schedule_sets_the_learning_rate_of_each_step(tmp_path):
    one = trainer(schedule=lambda step: 1e-3 / step, log=tmp_path / "log.jsonl")
    one.run(3)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines] == [1e-3, 5e-4, 1e-3 / 3]


def test_a_loss_that_is_not_finite_stops_before_the_step():
    ids, targets = next(TextBatches(TEXT, 2, 9))
    one = trainer(batches=iter([(ids, targets), (ids, np.full_like(targets, -100))]))
    one.one_step()
    before = bits(one)
    with pytest.raises(FloatingPointError, match="loss of step 2 is nan"):
        one.one_step()
    assert bits(one) == before and one.step == 1
    two = trainer(batches=iter([(ids, np.full_like(targets, -100))]), micro_batches=2)
    with pytest.raises(FloatingPointError, match="loss of step 1 is nan"):
        two.run(1)


@pytest.mark.parametrize(
    "options, error, says",
    [
        ({"micro_batches": 0}, ValueError, "micro_batches=0"),
        ({"micro_batches": 1.5}, TypeError, "must be an integer"),
        ({"max_norm": -1.0}, ValueError, "max_norm=-1.0"),
    ],
)
def test_what_makes_no_sense_is_refused(options, error, says):
    with pytest.raises(error, match=says):
        trainer(**options)
    with pytest.raises(ValueError, match="4 rows cannot be split into 5"):
        trainer(micro_batches=5).run(1)


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_a_training_resumes_to_the_bit(kind, tmp_path):
    options = {"max_norm": 1.0, "micro_batches": 2}
    whole = trainer(kind, **options)
    whole.run(6)
    stopped = trainer(kind, log=tmp_path / "log.jsonl", **options)
    stopped.run(3)
    stopped.save(tmp_path / "at 3")
    stopped.run(1)  # what comes behind the checkpoint is forgotten
    # Another seed: weights, places in the text and state must all come from the folder.
    resumed = trainer(kind, seed=7, log=tmp_path / "log.jsonl", **options)
    resumed.load(tmp_path / "at 3")
    assert resumed.step == 3
    resumed.run(3)
    assert resumed.losses == whole.losses and bits(resumed) == bits(whole)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in lines] == whole.losses


def test_a_checkpoint_is_a_model(tmp_path):
    one = trainer()
    one.run(1)
    one.save(tmp_path / "run")
    model = ck.models.load(tmp_path / "run")
    ids = TEXT[:9].astype(np.int64)
    assert model(ids).tobytes() == one.model(ids).tobytes()
    one.run(1)
    one.save(tmp_path / "run")  # replaced, and nothing else is left
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]
    assert ck.models.load(tmp_path / "run")(ids).tobytes() == one.model(ids).tobytes()


def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path):
    one = trainer()
    one.run(1)
    one.save(tmp_path / "run")
    other = ck.models.Model(ck.models.configs.deep)
    before = {name: value.copy() for name, value in other.params.items()}
    with pytest.raises(ValueError, match="model.layers.2.* is missing, or the model has no use for it"):
        load_checkpoint(tmp_path / "run", other, ck.optim.AdamW(other.params))
    assert all((other.params[name] == value).all() for name, value in before.items())
    fresh = trainer("SGD", seed=3)
    before = bits(fresh)
    with pytest.raises(ValueError, match="a group has no 'dampening'"):
        fresh.load(tmp_path / "run")
    assert bits(fresh) == before
    with pytest.raises(ValueError, match="a state of batches, unlike those given"):
        trainer(batches=iter([])).load(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        one.load(tmp_path / "nowhere")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="no checkpoint, so it is not replaced"):
        one.save(tmp_path / "notes")
    assert (tmp_path / "notes" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("training.json", b"{", "no valid JSON"),
        ("training.json", b"[]", "not a ckernels-checkpoint"),
        ("training.json", b'{"format": "ckernels-checkpoint", "schema": 1, "state": {}}', "'param_groups' must be"),
        ("model.safetensors", b"\x07", "model.safetensors: "),
        ("optimizer.safetensors", b"\x07\x00\x00\x00\x00\x00\x00\x00{}", "optimizer.safetensors: "),
    ],
)
def test_a_damaged_file_is_named(name, content, says, tmp_path):
    one = trainer()
    one.run(1)
    save_checkpoint(tmp_path / "run", one.model, one.optimizer, {"step": 1})
    (tmp_path / "run" / name).write_bytes(content)
    before = bits(one)
    with pytest.raises(ValueError, match=says):
        load_checkpoint(tmp_path / "run", one.model, one.optimizer)
    assert bits(one) == before


# --- what one sees ----------------------------------------------------------------------------------------------------


def test_the_curve_is_a_picture(tmp_path):
    one = trainer()
    one.run(2)
    one.plot(tmp_path / "loss.png", PyTorch=[5.0, 4.0, 3.0])
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "loss.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="a curve without a step"):
        plot_losses(tmp_path / "none.png", {"loss": []})


def test_a_bar_on_a_terminal_and_none_in_a_pipe(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        trainer().run(2)
        assert ("2/2" in stream.getvalue()) == shown and bool(stream.getvalue()) == shown
