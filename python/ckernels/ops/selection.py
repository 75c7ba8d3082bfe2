"""From scores to the number of one of them: the largest, the k largest, or a drawn one."""
import numbers

from ckernels import _ck
from ckernels.ops.checks import several

__all__ = ["argmax", "sample", "topk"]

ALL = 2**63 - 1  # of the C function's top_k: no limit


def argmax(x, *, out=None):
    """Index of the largest element along the last axis.

    Parameters
    ----------
    x : float32, float16 or bfloat16 [..., C]
        Any strides but the last.
    out : int64 [...], optional
        Where to write; any strides.

    Returns
    -------
    int64 [...]
        The lowest index of equals (+0 and -0 are equal); a NaN wins over every number, and the first of them over all.

    Raises
    ------
    ValueError
        There are rows, and they have no elements.
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``.

    Notes
    -----
    Error: none.  Rows of more than 65536 elements are shared among threads.  Source: `torch.argmax`, which promises no
    order of equals; `numpy.argmax` does what this does.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.argmax(np.array([[1, 5, 5], [2, np.nan, 9]], "f4"))
    array([1, 1])
    """
    return _ck.argmax_fwd(out, x)


def topk(x, k, *, out=None):
    """Return the k largest elements along the last axis, and where they are.

    Parameters
    ----------
    x : float32, float16 or bfloat16 [..., C]
        Any strides but the last.
    k : int
        0 to C.
    out : tuple of two arrays, optional
        Where to write values, like x [..., k], and indices, int64 [..., k]; None for one makes it.

    Returns
    -------
    values : like x [..., k]
        Descending, bit for bit; NaN first.
    indices : int64 [..., k]
        Equals (+0 and -0 are equal, and so are NaN here) by ascending index.

    Raises
    ------
    ValueError
        k below 0 or above C.
    OverflowError
        Rows of 2^32 elements or more.
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``.

    Notes
    -----
    Error: none.  Reads the row once, and sorts no more than k of it.  Source: `torch.topk`, which promises no order
    of equals.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> ck.topk(np.array([3, 7, 1, 7], "f4"), 3)
    (array([7., 7., 3.], dtype=float32), array([1, 3, 0]))
    """
    values, indices = several("topk", "out", out, ("values", "indices"))
    return _ck.topk_fwd(values, indices, x, k)


def sample(logits, *, temperature=1.0, top_k=None, top_p=None, min_p=None, seed, out=None):
    """Draw one index a row, with the probabilities of its softmax, from what the filters leave.

    Parameters
    ----------
    logits : float32, float16 or bfloat16 [..., V]
        Any strides but the last.  -inf is never drawn.
    temperature : float
        Logits are divided by it; 0 is :func:`argmax`, whatever the filters.
    top_k : int, optional
        Keep the k largest, and those equal to the last of them.
    top_p : float, optional
        Above 0, at most 1.  Of what top_k kept, in descending order (equals by ascending index), keep those that have
        less than ``top_p`` of the probability before them: the one that crosses it is kept, the first always.
    min_p : float, optional
        0 to 1.  Of what is left, keep those at least ``min_p`` times as likely as the first.
    seed : int, or int32 or int64 [...]
        One for all rows, of 64 bits, or one for each.
    out : int64 [...], optional
        Where to write; any strides.

    Returns
    -------
    int64 [...]

    Raises
    ------
    ValueError
        A row that holds NaN or inf, or -inf alone (unless ``temperature`` is 0); rows without elements; an option out
        of its range; nothing is written.
    OverflowError
        A seed of more than 64 bits, signed; rows of 2^32 elements or more.
    TypeError, ValueError
        An argument of the wrong kind, dtype, shape, layout, or overlapping ``out``.

    Notes
    -----
    A draw depends on its row, the options, and either (``seed``, number of the row in C order) or, with a seed for
    every row, on that alone: not on threads, nor on the rest of the batch.  The same bits on avx2 and avx512;
    elsewhere the last bit of a weight may move a draw that falls on the border of two.  Weights are float32, within 2
    ulp; their sums are double.  Seeds are keys of Philox 4x32-10, so that any two give unrelated draws.  Source: the
    filters are those of Hugging Face transformers in its order, `TopKLogitsWarper`, `TopPLogitsWarper`,
    `MinPLogitsWarper`; the generator is from Salmon et al. 2011, doi:10.1145/2063384.2063405.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> logits = np.log(np.array([[0.1, 0.2, 0.7]] * 1000, "f4"))
    >>> np.bincount(ck.sample(logits, top_k=2, seed=0), minlength=3).tolist()
    [0, 237, 763]
    """
    one = isinstance(seed, numbers.Integral)
    if not one and not hasattr(seed, "__dlpack__"):
        raise TypeError(f"sample(): 'seed' must be an integer, or an array of one for each row, not {type(seed)!r}")
    try:
        return _ck.sample_fwd(out, logits, None if one else seed, seed if one else 0, temperature,
                              ALL if top_k is None else top_k, 1.0 if top_p is None else top_p,
                              0.0 if min_p is None else min_p)
    except (TypeError, ValueError) as error:  # which the user calls 'seed'
        raise type(error)(str(error).replace("'seeds'", "'seed'")) from None
