"""Lists of arrays on their way to one call of the extension, and what a refusal calls their members."""
import functools
import math
import re

import numpy as np

__all__ = ["batches", "call", "matched", "number", "refuse_shared"]

_MEMBER = re.compile(r"'(\w+)\[(\d+)\]'")


def number(where, name, value, least=None, below=None):
    """Return ``value`` if it is a number in its range, and raise if not."""
    try:
        wrong = isinstance(value, (bool, str)) or value != float(value) and value == value
    except (TypeError, ValueError):
        wrong = True
    if wrong:
        raise TypeError(f"{where}: '{name}' must be a number, not {type(value).__name__}")
    if value != value or (least is not None and value < least) or (below is not None and value >= below):
        wanted = [f"at least {least}"] * (least is not None) + [f"below {below}"] * (below is not None)
        raise ValueError(f"{where}: '{name}' must be {' and '.join(wanted) or 'a number'}, not {value}")
    return value


def matched(where, grads, keys, index):
    """Return the gradients as a list in the order of ``keys``, None for one that is missing."""
    if hasattr(grads, "keys"):
        unknown = [key for key in grads if key not in index]
        if unknown:
            raise ValueError(f"{where}: 'grads' has {unknown[0]!r}, which is no parameter")
        return [grads.get(key) for key in keys]
    if not isinstance(grads, (list, tuple)) or len(grads) != len(keys):
        raise ValueError(f"{where}: 'grads' must be keyed like the {len(keys)} parameters")
    return list(grads)


def batches(indices, features):
    """Split indices into lists whose members have the same feature: (feature, list) pairs, in order."""
    found = {}
    for i in indices:
        found.setdefault(features[i], []).append(i)
    return list(found.items())


@functools.cache
def _name(dtype):
    return dtype.name if isinstance(dtype, np.dtype) else str(dtype).rpartition(".")[2]


def dtype_of(array):
    """Return the name of an array's dtype, or of another library's: "bfloat16" for ``torch.bfloat16``, too."""
    return _name(getattr(array, "dtype", None))


def is_array(value):
    """Whether it is an array with memory of its own: NumPy's scalars are none, though they have a shape."""
    return hasattr(value, "shape") and not isinstance(value, np.generic)


def rows(array):
    """Return the array, with an axis if it has none: an op wants one."""
    return array if array.shape else array.reshape(1)


def _bounds(array):
    """Return where the memory of an array or of a tensor begins and ends; of what is neither, nobody tells."""
    if isinstance(array, np.ndarray):
        return np.lib.array_utils.byte_bounds(array) if array.size else (0, 0)
    if not hasattr(array, "data_ptr"):
        return 0, 0
    size = math.prod(array.shape)
    reach = sum((n - 1) * step for n, step in zip(array.shape, array.stride(), strict=True)) if size else -1
    return array.data_ptr(), array.data_ptr() + (reach + 1) * array.element_size()


def _share(x, y):
    """Whether two arrays whose bounds overlap have an element in common; yes where one is a tensor."""
    return not (isinstance(x, np.ndarray) and isinstance(y, np.ndarray)) or np.shares_memory(x, y)


def refuse_shared(where, lists):
    """Raise where an array of one call shares memory with one that another call writes.

    Parameters
    ----------
    where : str
        What the message begins with.
    lists : iterable of (int, str, sequence, sequence, bool)
        The number of a call, the name of a list, the keys and the arrays of its members, and whether they are written.
        What members of one call share is for the call to refuse.
    """
    found = [(*_bounds(array), number, written, f"'{name}'[{key!r}]", array)
             for number, name, keys, arrays, written in lists for key, array in zip(keys, arrays, strict=True)]
    found.sort(key=lambda one: one[:2])
    open_ones = []  # those that begin before this one and may reach into it
    for one in found:
        low, high, number, written, name, array = one
        open_ones = [other for other in open_ones if other[1] > low]
        for other in open_ones if high > low else ():
            if other[2] != number and (written or other[3]) and _share(array, other[5]):
                first, second = (name, other[4]) if written else (other[4], name)
                raise ValueError(f"{where}: {first} is written and overlaps {second}")
        open_ones.append(one)


def call(where, keys, names, op, *args):
    """Call ``op``; in what it refuses, ``'grads[3]'`` becomes ``'grads'['w']``.

    ``keys`` are those of the lists' members; ``names`` maps what the op calls a list to what the user calls it.
    """
    def name(match):
        return f"'{names.get(match[1], match[1])}'[{keys[int(match[2])]!r}]"

    try:
        return op(*args)
    except (TypeError, ValueError) as error:
        text = str(error)
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{where}: {_MEMBER.sub(name, text.partition('(): ')[2] or text)}") from None
