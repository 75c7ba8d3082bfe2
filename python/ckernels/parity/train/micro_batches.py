"""Gradients accumulated over micro-batches, weighted by tokens: the update of one batch."""

from __future__ import annotations

import numpy as np

from .. import exact, peer, probes
from ..compare import compare
from ..levels import case_of, unmeasured

LEVEL = "train"
ROWS = 8
COUNTS = (1, 2, 4, 8)


def uneven_batch(vocab, seed):
    """A batch of eight rows in which every row counts another number of targets, the first of them few."""
    ids, targets = next(iter(probes.training_batches(vocab, 1, seed, batch=ROWS)))
    for row in range(ROWS):
        targets[row, : 2 * (ROWS - 1 - row)] = -100
    return ids, targets


def micro_batch_cases(name, config, options, model, sgd):
    """Accumulate over 1, 2, 4 and 8 micro-batches, divide by the number of counted targets, and make a step.

    Parameters
    ----------
    name : str
        Of the preset.
    config : Config
    options : Options
    model, sgd : callable
        What is under test.

    Yields
    ------
    Case
        The accumulated gradient by the three-party rule, the worst tensor of each count, and the weights after a step.
    """
    params = probes.parameters(config, options.seed)
    ids, targets = uneven_batch(config.vocab_size, options.seed)
    right = exact.model(config, params, ids, targets).grads
    beside = _peer(config, params, ids, targets)
    lr = 0.05
    for count in COUNTS[1::2] if options.quick else COUNTS:
        under_test = model(config, {key: value.copy() for key, value in params.items()})
        total, size = None, ROWS // count
        for start in range(0, ROWS, size):
            part = slice(start, start + size)
            _, total = under_test.loss_and_grads(ids[part], targets[part], reduction="sum", accumulate_into=total)
        label, what = f"{name}, {count} micro-batch{'es' * (count > 1)}", "accumulated gradient"
        if total.keys() != right.keys():
            odd = sorted(total.keys() ^ right.keys())
            yield unmeasured(LEVEL, label, f"gradients missing or left over: {', '.join(odd[:3])}", what)
            continue
        counted = np.float32((targets != -100).sum())
        mean = {key: np.asarray(value) / counted for key, value in total.items()}
        yield _worst(label, what, mean, right, beside)
        sgd(under_test.params, lr=lr, momentum=0.0).step(mean)
        moved = [{key: np.asarray(params[key], kind) - kind(lr) * side[key] for key in params}
                 for kind, side in ((np.float64, right), (np.float32, beside))]  # fmt: skip
        yield _worst(label, "weights after the step", under_test.params, *moved)


def _worst(label, what, ours, right, beside):
    """The case of the tensor with the largest margin, or of one that fails."""
    cases = [case_of(LEVEL, label, what, compare(ours[key], right[key], beside[key], name=key)) for key in right]
    worst = max(cases, key=lambda case: (case.failed, case.margin or 0.0))
    worst.note = f"the worst of {len(cases)} is {worst.report.name}" + (f"; {worst.note}" if worst.note else "")
    return worst


def _peer(config, params, ids, targets):
    """PyTorch's gradients of the whole batch."""
    import torch

    module = peer.llama(config, params)
    logits = module(torch.from_numpy(ids), use_cache=False).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten()).backward()
    return {name: tensor.grad.numpy() for name, tensor in module.named_parameters()}
