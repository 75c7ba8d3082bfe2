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


GAP, PAYLOAD = 3, 0x7FC0BEEF  # floats behind every row, and the NaN they hold


def spaced(array):
    """Copy float32 ``array`` to rows that lie apart; behind each is a gap that nobody should touch."""
    whole = np.full((*array.shape[:-1], array.shape[-1] + GAP), PAYLOAD, np.uint32).view(np.float32)
    rows = whole[..., :array.shape[-1]]
    rows[...] = array
    return rows


def gaps_untouched(rows):
    """Whether the gaps of ``spaced`` rows hold what they held."""
    whole = rows.base
    while whole.base is not None:
        whole = whole.base
    whole = whole.view(np.uint32).reshape(*rows.shape[:-1], -1)
    return bool((whole[..., rows.shape[-1]:] == PAYLOAD).all())
