"""A weight in the order in which products read it."""

from ckernels import _ck

__all__ = ["PackedWeight", "pack"]

_PANEL = 16
_DTYPES = ("float32", "float16", "bfloat16")  # any other is refused by the op itself


class PackedWeight:
    """A weight [N, K] in panels of 16 rows, made by :func:`pack`.

    It keeps the array it was made from, which backward reads, and the bytes of that array as they were: after an
    in-place change of ``weight`` call :meth:`update`.

    Attributes
    ----------
    weight : float32, float16 or bfloat16 [N, K]
        The array that was packed.
    panels : like ``weight`` [ceil(N / 16), K, 16]
        ``panels[p, k, l]`` is ``weight[16 p + l, k]``, zero past the end.
    """

    __slots__ = ("weight", "panels")

    def __init__(self, weight, panels):
        self.weight = weight
        self.panels = panels

    @property
    def shape(self):
        """(N, K), as of the weight."""
        return tuple(self.weight.shape)

    @property
    def nbytes(self):
        """Bytes of the panels."""
        return self.panels.nbytes

    def update(self):
        """Pack ``weight`` again, after it changed; returns self."""
        _ck.linear_pack(self.panels, self.weight)
        return self

    def __repr__(self):
        return f"PackedWeight(shape={self.shape}, dtype={self.panels.dtype}, nbytes={self.nbytes})"


def pack(weight, *, out=None):
    """Pack a weight once, for every later ``ck.linear`` with it.

    The results have the same bits as with the plain array; it is faster because a call need not bring the weight into
    order again.

    Parameters
    ----------
    weight : float32, float16 or bfloat16 [N, K]
    out : PackedWeight, optional
        One of the same shape and dtype to pack into, from an earlier call; ``weight`` takes the place of its own.

    Returns
    -------
    PackedWeight
        Of the same dtype: 16 bits stay 16 bits.  Refers to ``weight``.  After an in-place change of it,
        ``packed.update()``.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape or layout.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.pack(np.ones((20, 3), "f4"))
    PackedWeight(shape=(20, 3), dtype=float32, nbytes=384)
    """
    if out is not None and not isinstance(out, PackedWeight):
        raise TypeError(f"pack(): 'out' must be a PackedWeight, not {type(out)}")
    shape = getattr(weight, "shape", None)
    if shape is None or len(shape) != 2:
        raise (
            TypeError(f"pack(): 'weight' must be an array, not {type(weight)}")
            if shape is None
            else ValueError(f"pack(): 'weight' of shape {tuple(shape)} does not fit [N, K]")
        )
    N, K = shape
    if out is None:
        panels = _ck.empty((-(-N // _PANEL), K, _PANEL), dtype_name(weight))
        _ck.linear_pack(panels, weight)
        return PackedWeight(weight, panels)
    if tuple(shape) != out.shape:
        raise ValueError(f"pack(): 'weight' of shape {tuple(shape)} does not fit 'out', packed of shape {out.shape}")
    _ck.linear_pack(out.panels, weight)
    out.weight = weight
    return out


def dtype_name(array):
    """Return the name of the dtype of an array or tensor; "float32" where no kernel has it."""
    name = str(getattr(array, "dtype", None)).removeprefix("torch.")
    return name if name in _DTYPES else "float32"


def split(weight):
    """Return the plain array and the panels, None where it is not packed."""
    return (weight.weight, weight.panels) if isinstance(weight, PackedWeight) else (weight, None)
