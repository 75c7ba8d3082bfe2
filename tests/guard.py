"""Arrays whose last byte is the last byte before an unreadable page."""
import ctypes
import mmap

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)


def guarded(array):
    """Copy ``array`` to where reading or writing one byte past it is a crash."""
    size = -(-max(array.nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, size + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    if _libc.mprotect(ctypes.c_void_p(address + size), mmap.PAGESIZE, 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    start = size - array.nbytes
    copy = np.frombuffer(pages, array.dtype, array.size, start).reshape(array.shape)
    copy[...] = array
    return copy


def unwritten(shape, dtype=np.float32):
    """Return a guarded output filled with NaN: an element left out shows."""
    return guarded(np.full(shape, np.nan, dtype))


GAP = 3  # elements behind every row
PAYLOADS = {"float32": 0x7FC0BEEF, "float16": 0x7EEF, "bfloat16": 0x7FEB}  # the NaN that they hold


def spaced(array):
    """Copy a floating ``array`` to rows that lie apart; behind each is a gap that nobody should touch."""
    array = np.asarray(array)
    whole = np.full((*array.shape[:-1], array.shape[-1] + GAP), PAYLOADS[array.dtype.name], f"u{array.itemsize}")
    rows = whole.view(array.dtype)[..., :array.shape[-1]]
    rows[...] = array
    return rows


def gaps_untouched(rows):
    """Whether the gaps of ``spaced`` rows hold what they held."""
    whole = rows.base
    while whole.base is not None:
        whole = whole.base
    whole = whole.view(f"u{rows.itemsize}").reshape(*rows.shape[:-1], -1)
    return bool((whole[..., rows.shape[-1]:] == PAYLOADS[rows.dtype.name]).all())
