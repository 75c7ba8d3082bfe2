"""Batches of token ids out of one long text."""

import numpy as np

__all__ = ["TextBatches"]


class TextBatches:
    """Windows of a text at random places, with the next token of each position as its target.

    Parameters
    ----------
    ids : int [N]
        The text. Of bytes: ``np.frombuffer(text.encode(), np.uint8)``.
    batch : int
        Windows of a batch.
    tokens : int
        Length of a window.
    seed : int
        Of the places.

    Raises
    ------
    TypeError
        ``ids`` are not integers in one axis.
    ValueError
        The text has no window, or a number is below 1.

    Examples
    --------
    >>> ids, targets = next(TextBatches(np.arange(100), batch=2, tokens=5))
    >>> bool((targets == ids + 1).all()), ids.shape
    (True, (2, 5))
    """

    def __init__(self, ids, batch, tokens, seed=0):
        ids = np.asarray(ids)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise TypeError(f"TextBatches(): 'ids' must be integers [N], got {ids.dtype} of shape {ids.shape}")
        for name, value in (("batch", batch), ("tokens", tokens)):
            if value < 1:
                raise ValueError(f"TextBatches(): {name}={value} must be at least 1")
        if ids.size <= tokens:
            raise ValueError(f"TextBatches(): 'ids' has {ids.size} tokens; windows of {tokens} need {tokens + 1}")
        self.ids, self.batch, self.tokens = ids, batch, tokens
        self._rng = np.random.default_rng(seed)

    def __iter__(self):
        """Return itself: batches never end."""
        return self

    def __next__(self):
        """Return ids and targets, int64 ``[batch, tokens]``."""
        starts = self._rng.integers(0, self.ids.size - self.tokens, self.batch)
        rows = np.stack([self.ids[start : start + self.tokens + 1] for start in starts]).astype(np.int64)
        return rows[:, :-1].copy(), rows[:, 1:].copy()

    def state_dict(self):
        """Return the state of the random numbers, as JSON can hold it."""
        return {"rng": self._rng.bit_generator.state}

    def load_state_dict(self, state):
        """Continue where :meth:`state_dict` was taken.

        Raises
        ------
        ValueError, TypeError
            It is no such state.
        """
        try:
            self._rng.bit_generator.state = state["rng"]
        except KeyError as error:
            raise ValueError(f"TextBatches.load_state_dict(): 'state' has no {error}") from None
