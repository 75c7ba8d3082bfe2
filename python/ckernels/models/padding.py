"""Items of different length in one batch: padding before or behind the real tokens is moved behind them, and back."""

import numpy as np

__all__ = ["padding", "rolled"]


def padding(call, mask, ids):
    """Read an attention mask.

    Parameters
    ----------
    call : str
        What errors begin with.
    mask : bool or int [B, T] or [T]
        1 for real tokens, in one piece, 0 for padding.
    ids : int [B, T]

    Returns
    -------
    shift : int [B]
        Padding before the real tokens.
    counts : int [B]
        Real tokens.

    Raises
    ------
    TypeError, ValueError
        Not integers, another shape, other values, or real tokens with padding between them.
    """
    mask = np.atleast_2d(np.asarray(mask))
    if mask.dtype.kind not in "bui":
        raise TypeError(f"{call}: 'attention_mask' must be bool or integers, got {mask.dtype}")
    if mask.shape != ids.shape:
        raise ValueError(f"{call}: 'attention_mask' of shape {mask.shape} does not fit 'ids' of shape {ids.shape}")
    if ((mask != 0) & (mask != 1)).any():
        raise ValueError(f"{call}: 'attention_mask' holds {mask.max()}; 1 is a real token, 0 is padding")
    real = mask.astype(bool)
    counts = real.sum(1)
    shift = np.where(counts > 0, real.argmax(1) if real.shape[1] else 0, 0)
    at = np.arange(ids.shape[1])
    if (real != ((at >= shift[:, None]) & (at < (shift + counts)[:, None]))).any():
        raise ValueError(f"{call}: 'attention_mask' has padding between real tokens; it may be before or behind them")
    return shift, counts


def rolled(x, shift):
    """Return the tokens of each item [B, T, ...] moved ``shift[b]`` places to the front, those in front to the end."""
    places = (np.arange(x.shape[1]) + shift[:, None]) % max(x.shape[1], 1)
    return np.take_along_axis(x, places.reshape(*places.shape, *[1] * (x.ndim - 2)), 1)
