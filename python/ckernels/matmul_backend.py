"""What linear and matmul multiply with: our kernels, or OpenBLAS; and how exactly, where there is a choice."""
import os
from pathlib import Path

from ckernels import _ck

__all__ = ["get_matmul_backend", "get_matmul_precision", "set_matmul_backend", "set_matmul_precision"]


def get_matmul_backend():
    """Return what ``linear`` and ``matmul`` multiply with.

    Returns
    -------
    {"ckernels", "openblas"}

    Examples
    --------
    >>> import ckernels as ck
    >>> ck.get_matmul_backend()
    'ckernels'
    """
    return _ck.get_matmul_backend()


def set_matmul_backend(name):
    """Choose what ``linear`` and ``matmul`` multiply with, for the process.

    Parameters
    ----------
    name : {"ckernels", "openblas"}
        Our kernels, the default, give a row the same bits in every batch; OpenBLAS does not.

    Raises
    ------
    ValueError
        Another name.
    RuntimeError
        OpenBLAS is not there; the message says why.

    Notes
    -----
    ``CK_MATMUL=openblas`` chooses at import, ``CK_BLAS_LIB`` names another library than the one in the package.  The
    instruction set ``reference`` always multiplies by its own loop.

    Examples
    --------
    >>> import ckernels as ck
    >>> ck.set_matmul_backend("ckernels")
    >>> ck.get_matmul_backend()
    'ckernels'
    """
    _ck.set_matmul_backend(name)


def get_matmul_precision():
    """Return how exactly float32 products are computed.

    Returns
    -------
    {"highest", "high", "medium"}

    Examples
    --------
    >>> import ckernels as ck
    >>> ck.get_matmul_precision()
    'highest'
    """
    return _ck.get_matmul_precision()


def set_matmul_precision(precision):
    """Choose how exactly ``linear`` and ``matmul`` compute float32 products, for the process.

    Parameters
    ----------
    precision : {"highest", "high", "medium"}
        "highest", the default, computes in float32.  On the instruction set ``amx``, "high" adds six products of
        bfloat16 parts of the numbers, and is at least as exact; "medium" adds three, with an error up to some
        50 times that of "highest".  docs/numerics.md has them measured.

    Raises
    ------
    TypeError, ValueError
        No name, or another one.

    Notes
    -----
    The names are those of ``torch.set_float32_matmul_precision``, which promises less by them.  The setting changes
    nothing on other instruction sets, nor with OpenBLAS, nor in 16 bits.  A row has the same bits in every batch under
    each of the three.  Under the last two numbers below 2^-126 count as 0, and a sum that overflows may be NaN.

    Examples
    --------
    >>> import ckernels as ck
    >>> ck.set_matmul_precision("high")
    >>> ck.get_matmul_precision()
    'high'
    >>> ck.set_matmul_precision("highest")
    """
    _ck.set_matmul_precision(precision)


_ck.set_blas_path(Path(__file__).parent / "_libs" / "libscipy_openblas.so")
if "CK_MATMUL" in os.environ:
    try:
        set_matmul_backend(os.environ["CK_MATMUL"])
    except (ValueError, RuntimeError) as error:
        raise type(error)(f"CK_MATMUL={os.environ['CK_MATMUL']!r}: {error}") from None
