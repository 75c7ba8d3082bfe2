"""The loop: batch, gradients, step, log."""

import json
import math
import os
import pathlib
import sys
import time

import numpy as np

from .checkpoint import load_checkpoint, save_checkpoint
from .curve import plot_losses

__all__ = ["Trainer"]


class Trainer:
    """Train a model step by step, and be able to stop and go on as if nothing had happened.

    Parameters
    ----------
    model : ckernels.models.Model
    optimizer : ckernels.optim.SGD or AdamW
        Made for ``model.params``.
    batches : iterator
        Gives (ids, targets), both int ``[B, T]``; targets are the next tokens, -100 is not counted. With
        ``state_dict()`` and ``load_state_dict()``, as :class:`TextBatches` has them, it resumes with the rest.
    micro_batches : int
        Rows of a batch are taken in so many parts, one after the other. Their gradients are added up and divided by the
        number of counted targets of all: the gradient of the whole batch, in a part of the memory.
    max_norm : float, optional
        Clip the gradients, all of them taken as one vector.
    recompute : bool
        Keep each layer's input alone and compute the rest again for its gradients: the same bits, less memory.
    schedule : callable, optional
        The learning rate of a step, from its number (1 is the first).
    log : path, optional
        A file with one JSON object a step: ``step loss norm lr tokens seconds``. It is continued.
    progress : bool, optional
        A bar on standard error; by default where that is a terminal and tqdm is installed.

    Attributes
    ----------
    step : int
        Steps made.
    losses : list of float
        Of all steps.

    Raises
    ------
    ValueError, TypeError
        ``micro_batches`` or ``max_norm`` is out of range.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> model = ck.models.Model(ck.models.configs.tiny)
    >>> text = np.frombuffer(b"to be, or not to be, that is the question" * 9, np.uint8)
    >>> batches = ck.training.TextBatches(text, batch=2, tokens=16)
    >>> trainer = Trainer(model, ck.optim.AdamW(model.params, lr=1e-2), batches, max_norm=1.0)
    >>> losses = trainer.run(8)
    >>> trainer.step, losses[-1] < losses[0]
    (8, True)
    """

    def __init__(
        self, model, optimizer, batches, *, micro_batches=1, max_norm=None, recompute=False, schedule=None, log=None,
        progress=None,
    ):  # fmt: skip
        if isinstance(micro_batches, bool) or not isinstance(micro_batches, int):
            raise TypeError(f"Trainer(): 'micro_batches' must be an integer, not {micro_batches!r}")
        if micro_batches < 1:
            raise ValueError(f"Trainer(): micro_batches={micro_batches} must be at least 1")
        if max_norm is not None and not max_norm >= 0:
            raise ValueError(f"Trainer(): max_norm={max_norm} must be at least 0")
        self.model, self.optimizer, self.batches = model, optimizer, batches
        self.micro_batches, self.max_norm, self.recompute = micro_batches, max_norm, recompute
        self.schedule, self.progress = schedule, progress
        self.log = None if log is None else pathlib.Path(log)
        self.step, self.losses = 0, []

    def gradients(self, ids, targets):
        """Loss and gradients of a batch, in micro-batches.

        Returns
        -------
        loss : float
            The mean over counted targets.
        grads : dict
            Of that mean.

        Raises
        ------
        ValueError
            The batch has fewer rows than there are micro-batches.
        """
        if self.micro_batches == 1:
            return self.model.loss_and_grads(ids, targets, recompute=self.recompute)
        if len(ids) < self.micro_batches:
            raise ValueError(f"Trainer: a batch of {len(ids)} rows cannot be split into {self.micro_batches}")
        total, grads = 0.0, None
        parts = (np.array_split(array, self.micro_batches) for array in (ids, targets))
        for some, wanted in zip(*parts, strict=True):
            loss, grads = self.model.loss_and_grads(
                some, wanted, reduction="sum", accumulate_into=grads, recompute=self.recompute
            )
            total += loss
        counted = int(np.count_nonzero(np.asarray(targets) != -100))
        for grad in grads.values() if counted else ():
            np.divide(grad, np.float32(counted), out=grad)
        return total / counted if counted else math.nan, grads

    def one_step(self):
        """Make a step; returns its loss.

        Raises
        ------
        FloatingPointError
            The loss is not finite; the weights are those before the step.
        StopIteration
            The batches have come to an end.
        """
        start = time.perf_counter()
        ids, targets = next(self.batches)
        loss, grads = self.gradients(ids, targets)
        if not math.isfinite(loss):
            raise FloatingPointError(f"Trainer: the loss of step {self.step + 1} is {loss}; the weights are unchanged")
        if self.schedule is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = float(self.schedule(self.step + 1))
        norm = self.optimizer.step(grads, max_norm=self.max_norm)
        self.step += 1
        self.losses.append(loss)
        if self.log is not None:
            line = {"step": self.step, "loss": loss, "norm": norm, "lr": self.optimizer.param_groups[0]["lr"],
                    "tokens": int(np.size(ids)), "seconds": round(time.perf_counter() - start, 6)}  # fmt: skip
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return loss

    def run(self, steps):
        """Make so many steps more, with a bar on a terminal.

        Parameters
        ----------
        steps : int

        Returns
        -------
        list of float
            Their losses.
        """
        first = len(self.losses)
        bar = self._bar(steps)
        try:
            for _ in range(steps):
                loss = self.one_step()
                if bar is not None:
                    bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
                    bar.update()
        finally:
            if bar is not None:
                bar.close()
        return self.losses[first:]

    def _bar(self, steps):
        """A bar, or None."""
        wanted = sys.stderr.isatty() if self.progress is None else self.progress
        if not wanted:
            return None
        try:
            from tqdm import tqdm
        except ImportError:
            if self.progress:
                raise ImportError("a progress bar needs tqdm: pip install 'ckernels[training]'") from None
            return None
        return tqdm(total=self.step + steps, initial=self.step, unit="step", desc="train", file=sys.stderr)

    def plot(self, path, **others):
        """Draw the losses, and other curves by name, as :func:`plot_losses` does."""
        plot_losses(path, {"loss": self.losses, **others})

    def save(self, folder):
        """Write a checkpoint: weights, optimizer, step, losses, and the state of the batches.

        Raises
        ------
        ImportError, OSError
            As :func:`save_checkpoint`.
        """
        state = {"step": self.step, "losses": self.losses}
        if hasattr(self.batches, "state_dict"):
            state["batches"] = self.batches.state_dict()
        save_checkpoint(folder, self.model, self.optimizer, state)

    def load(self, folder):
        """Continue from a checkpoint: the next steps have the bits that they would have had without the stop.

        Lines of the log beyond the checkpoint's step are dropped.

        Raises
        ------
        ImportError, FileNotFoundError, ValueError
            As :func:`load_checkpoint`; or the checkpoint has a state of batches and these have none, or the reverse.
        """
        resumes = hasattr(self.batches, "load_state_dict")
        known = _counters(folder)
        if resumes != ("batches" in known):
            raise ValueError(f"{folder}: {'no state' if resumes else 'a state'} of batches, unlike those given")
        state = load_checkpoint(folder, self.model, self.optimizer)
        if resumes:
            self.batches.load_state_dict(state["batches"])
        self.step, self.losses = state["step"], list(state["losses"])
        if self.log is not None and self.log.exists():
            lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= self.step]
            part = self.log.with_name(self.log.name + ".part")
            part.write_text("".join(kept), encoding="utf-8")
            os.replace(part, self.log)


def _counters(folder):
    """The state of a checkpoint of a trainer."""
    from .checkpoint import _MANIFEST, _manifest

    path = pathlib.Path(folder) / _MANIFEST
    state = _manifest(path)["state"]
    if not isinstance(state.get("step"), int) or not isinstance(state.get("losses"), list):
        raise ValueError(f"{path}: 'state' has no 'step' and 'losses': no checkpoint of a Trainer")
    return state
