"""The same product by OpenBLAS, which this package calls with as many threads."""
import ckernels as ck


def through(call):
    """Return what to compare with: {"OpenBLAS": call through it}, or nothing where there is none."""
    if ck._ck.blas_info()["lacking"] is not None:
        return {}

    def by_openblas(s):
        before = ck.get_matmul_backend()
        ck.set_matmul_backend("openblas")
        try:
            return call(s)
        finally:
            ck.set_matmul_backend(before)
    return {"OpenBLAS": by_openblas}
