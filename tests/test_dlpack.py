"""Tensors of other libraries: their memory, no copy, read and written; what cannot be lent is named."""

import gc
import subprocess
import weakref

import numpy as np
import pytest
import torch

import ckernels as ck
import native

W = torch.linspace(0.5, 1.5, 48)


def values(*shape):
    """Return a tensor of normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def test_tensors_are_read(isa):
    x = values(6, 5, 48)
    assert ck.rms_norm(x, W).tobytes() == ck.rms_norm(x.numpy(), W.numpy()).tobytes()
    assert type(ck.rms_norm(x, W)) is np.ndarray


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t[::2],
        lambda t: t.transpose(0, 1),
        lambda t: t[:, 1:3, 7:20],
        lambda t: t[:0],
        lambda t: t[..., :0],
        lambda t: t[1].expand(3, 5, 48),
        lambda t: t[2:],
        lambda t: t.detach(),
    ],
    ids=["step", "transposed", "inner", "no rows", "no columns", "expanded", "offset", "detached"],
)
def test_views_are_read_as_they_lie(view):
    x = view(values(6, 5, 48))
    assert ck.add(x, x).tobytes() == (x + x).contiguous().numpy().tobytes()


def test_out_may_be_a_tensor_and_comes_back():
    x, out = values(6, 48), torch.full((6, 48), torch.nan)
    assert ck.add(x, x, out=out) is out
    assert torch.equal(out, x + x)
    columns = torch.zeros(6, 96)
    ck.add(x, x, out=columns[:, 48:])
    assert torch.equal(columns[:, 48:], x + x) and not columns[:, :48].any()
    assert ck.rms_norm(x, out=x) is x


def test_overlap_with_a_tensor_is_seen():
    base = values(12, 48)
    with pytest.raises(ValueError, match=r"add\(\): 'out' is written and overlaps 'x'"):
        ck.add(base[:6], base[:6], out=base[1:7])
    shared = base.numpy()
    with pytest.raises(ValueError, match="overlaps"):
        ck.add(base[:6], base[6:], out=shared[5:11])


@pytest.mark.parametrize(
    "bad, text",
    [
        (lambda: values(3, 48).requires_grad_(), "does not lend its memory: .*(grad|detach)"),
        (lambda: values(3, 48).to("meta"), "(is not in CPU memory|does not lend its memory)"),
        (lambda: values(3, 48).double(), "must be float32(, float16 or bfloat16)?, not float64"),
        (lambda: values(3, 48).to(torch.float8_e4m3fn), "(has dtype|does not lend its memory)"),
        (lambda: values(3, 48).to_sparse(), "does not lend its memory"),
        (lambda: torch.complex(values(3, 48), values(3, 48)), "has dtype complex64, which is not supported"),
    ],
    ids=["requires grad", "meta", "double", "float8", "sparse", "complex"],
)
def test_what_cannot_be_taken_is_a_type_error_that_names_it(bad, text):
    with pytest.raises(TypeError, match=r"rms_norm\(\): 'x' " + text):
        ck.rms_norm(bad(), W)
    with pytest.raises(TypeError, match=r"rms_norm\(\): 'out' " + text):
        ck.rms_norm(values(3, 48), W, out=bad())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
def test_tensors_of_16_bits_are_taken_and_written_in_place(kind):
    x = values(3, 48).to(kind)
    out = torch.zeros_like(x)
    assert ck.rms_norm(x, W, out=out) is out
    assert torch.equal(out.view(torch.int16), torch.from_numpy(ck.rms_norm(x, W).view(np.int16)))
    assert out.abs().max() > 0.5
    with pytest.raises(TypeError, match=rf"rms_norm\(\): 'out' must be {str(kind)[6:]}, not float32"):
        ck.rms_norm(x, W, out=values(3, 48))


def test_ids_may_be_tensors():
    table = values(10, 8)
    for dtype in (torch.int64, torch.int32):
        ids = torch.tensor([3, 0, 9], dtype=dtype)
        assert ck.embedding(ids, table).tobytes() == table[ids.long()].numpy().tobytes()


class Lender:
    """Lends a NumPy array as asked for."""

    device = (1, 0)

    def __init__(self, array, old=False):
        self.array, self.old = array, old

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **options):
        if self.old and options:
            raise TypeError("unexpected keyword argument 'max_version'")
        return self.array.__dlpack__(**options)


@pytest.mark.parametrize("old", [False, True])
def test_both_kinds_of_capsule(old):
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    lender, out = Lender(x, old), np.zeros((3, 4), np.float32)
    assert ck.add(lender, lender).tobytes() == (x + x).tobytes()
    given = Lender(out, old)
    assert ck.add(x, x, out=given) is given and (out == x + x).all()


def test_a_read_only_tensor_is_not_written():
    x = np.ones((3, 4), np.float32)
    frozen = np.zeros((3, 4), np.float32)
    frozen.flags.writeable = False
    assert ck.add(Lender(frozen), x).tobytes() == x.tobytes()
    with pytest.raises(ValueError, match=r"add\(\): 'out' is written, but read-only"):
        ck.add(x, x, out=Lender(frozen))


def test_another_device_is_refused():
    lender = Lender(np.ones((3, 4), np.float32))
    lender.device = (2, 0)
    with pytest.raises(TypeError, match=r"add\(\): 'x' is not in CPU memory \(DLPack device 2\)"):
        ck.add(lender, lender)


@pytest.mark.parametrize("device", [None, (1,), ("cpu", 0)])
def test_nonsense_is_refused(device):
    lender = Lender(np.ones((3, 4), np.float32))
    lender.device = device
    with pytest.raises(TypeError, match=r"add\(\): 'x' does not lend its memory"):
        ck.add(lender, lender)


def test_what_is_no_capsule_is_refused():
    class Liar(Lender):
        def __dlpack__(self, **options):
            return 3

    with pytest.raises(TypeError, match=r"add\(\): 'x' has a __dlpack__ that gives no tensor, but 3"):
        ck.add(Liar(np.ones((3, 4), np.float32)), np.ones((3, 4), np.float32))


@pytest.mark.parametrize("old", [False, True])
def test_the_tensor_is_let_go(old):
    x = np.ones((3, 4), np.float32)
    gone = weakref.ref(x)
    lender = Lender(x, old)
    for _ in range(10):
        ck.add(lender, lender)
        with pytest.raises(ValueError):
            ck.add(lender, np.ones((3, 5), np.float32))
    del x, lender
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("found, error", [(False, "TypeError: bfloat16 arrays need the ml_dtypes package"),
                                          (True, "OSError: a library is missing")])  # fmt: skip
def test_bfloat16_tells_why_ml_dtypes_cannot_be_had(found, error):
    """Not installed is one thing, broken another."""
    code = f"""if True:
        import sys, torch
        class Finder:
            def find_spec(name, path=None, target=None):
                if name == "ml_dtypes":
                    raise OSError("a library is missing") if {found} else ModuleNotFoundError(name, name=name)
        sys.meta_path.insert(0, Finder)
        sys.modules.pop("ml_dtypes", None)
        import ckernels as ck
        x = torch.ones(2, 8, dtype=torch.bfloat16)
        ck.add(x, x)
        """
    run = subprocess.run([native.PYTHON, "-c", code], env=native.ENVIRONMENT, capture_output=True, text=True)
    assert run.returncode != 0 and error in run.stderr, run.stderr
