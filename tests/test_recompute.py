"""``loss_and_grads(recompute=True)``: the same bits, less memory."""

import gc

import numpy as np
import pytest

import ckernels as ck


def case(name, tokens, batch=2):
    config = ck.models.configs[name]
    rng = np.random.default_rng(5)
    ids = rng.integers(0, config.vocab_size, (batch, tokens))
    targets = np.roll(ids, -1, axis=1)
    targets[0, 3] = -100
    return ck.models.Model(config, seed=3), ids, targets


@pytest.mark.parametrize("name", ["tiny", "gqa", "deep"])
def test_the_same_bits(name, isa):
    model, ids, targets = case(name, 37)
    loss, grads = model.loss_and_grads(ids, targets)
    again, recomputed = model.loss_and_grads(ids, targets, recompute=True)
    assert loss == again and list(grads) == list(recomputed)
    assert all(grads[key].tobytes() == recomputed[key].tobytes() for key in grads)


def test_the_same_bits_when_accumulated():
    found = []
    for recompute in (False, True):
        model, ids, targets = case("tiny", 21)
        _, total = model.loss_and_grads(ids, targets, reduction="sum")
        model.loss_and_grads(ids, targets, reduction="sum", accumulate_into=total, recompute=recompute)
        found.append(total)
    assert all(found[0][key].tobytes() == found[1][key].tobytes() for key in found[0])


def test_less_memory():
    model, ids, targets = case("deep", 256, batch=4)
    peaks = []
    for recompute in (False, True):
        gc.collect()
        ck.empty_cache()  # the peak begins anew
        _, grads = model.loss_and_grads(ids, targets, recompute=recompute)
        peaks.append(ck.memory_stats()["peak"] - sum(grad.nbytes for grad in grads.values()))
        del grads
    # Six layers of stages become one; what remains of the rest is every layer's input, and head and loss.
    assert peaks[1] < peaks[0] / 2, peaks
