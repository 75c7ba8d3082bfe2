"""What linear and matmul multiply with: our kernels, or OpenBLAS."""
import os
from pathlib import Path

from ckernels import _ck

__all__ = ["get_matmul_backend", "set_matmul_backend"]


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


_ck.set_blas_path(Path(__file__).parent / "_libs" / "libscipy_openblas.so")
if "CK_MATMUL" in os.environ:
    try:
        set_matmul_backend(os.environ["CK_MATMUL"])
    except (ValueError, RuntimeError) as error:
        raise type(error)(f"CK_MATMUL={os.environ['CK_MATMUL']!r}: {error}") from None
