import math

import numpy as np
import pytest
import torch

import ckernels as ck
from ckernels.parity import assert_parity
from guard import gaps_untouched, guarded, spaced
from optimizers import normal
from parity import as_torch

SHAPES = [(33,), (5, 17), (1,), (), (0, 4), (40, 500), (2, 3, 17)]
clip_grad_norm = ck.optim.clip_grad_norm


@pytest.mark.parametrize("max_norm", [0.0, 0.7, 1e9])
def test_clip_matches_torch(isa, dtype, rng, max_norm):
    grads = [normal(rng, s, dtype) for s in SHAPES]
    sides = []
    for precision in ("float64", "float32"):
        params = [torch.nn.Parameter(as_torch(g, precision)) for g in grads]
        for p in params:
            p.grad = p.detach().clone()
        sides.append((float(torch.nn.utils.clip_grad_norm_(params, max_norm, foreach=False)), [p.grad for p in params]))
    before = [g.tobytes() for g in grads]
    norm = clip_grad_norm(dict(enumerate(grads)), max_norm)
    assert type(norm) is float and abs(norm - sides[0][0]) <= 1e-14 * sides[0][0]
    for g, exact, peer in zip(grads, sides[0][1], sides[1][1], strict=True):
        if g.size:
            assert_parity(g, exact, peer.to(as_torch(g).dtype), allow_constant=g.size == 1 or max_norm == 0)
    if max_norm == 1e9:
        assert [g.tobytes() for g in grads] == before  # not even rounded again


def test_clip_takes_dtypes_side_by_side(isa, dtype, rng):
    grads = {"a": normal(rng, (5, 17), dtype), "b": normal(rng, (40,)), "c": None}
    total = math.fsum(float(v) ** 2 for g in (grads["a"], grads["b"]) for v in g.ravel())
    copies = [grads[n].astype("f4") * np.float32(0.5 / (math.sqrt(total) + 1e-6)) for n in "ab"]
    norm = clip_grad_norm(grads, 0.5)
    assert abs(norm - math.sqrt(total)) <= 1e-14 * norm
    for n, want in zip("ab", copies, strict=True):
        if isa != "reference":  # which multiplies in double
            np.testing.assert_array_equal(grads[n], want.astype(grads[n].dtype))


def test_norm_does_not_depend_on_isa_strides_or_threads(dtype, rng):
    g = (rng.standard_normal((7, 9, 333)) * 10.0 ** rng.integers(-2, 2, (7, 9, 1))).astype(dtype)
    views = [g, spaced(g), spaced(g.transpose(1, 0, 2)).transpose(1, 0, 2), g[..., None][..., 0]]
    beside = np.ones(5, dtype)
    norms = set()
    for isa in set(ck.isas()) - {"reference"}:
        for threads in (1, 2, 7):
            ck.set_num_threads(threads)
            with ck.use(isa):
                norms |= {clip_grad_norm([beside, v.copy() if v is g else v], 1e9) for v in views}
    assert len(norms) == 1
    exact = math.sqrt(5 + math.fsum(float(v) ** 2 for v in g.ravel()))
    assert abs(norms.pop() - exact) <= 1e-14 * exact


def test_norm_neither_overflows_nor_underflows(isa):
    for size in (3e38, 1e-42):
        g = np.full(1000, size, "f4")
        exact = math.sqrt(1000) * float(g[0])
        assert abs(clip_grad_norm([g], math.inf) - exact) <= 1e-14 * exact


def test_clip_of_what_is_not_finite_is_torch_s(isa):
    for bad in (math.nan, math.inf, -math.inf):
        g, t = np.array([bad, 1, -2], "f4"), torch.nn.Parameter(torch.zeros(3))
        t.grad = torch.tensor(g)
        theirs = float(torch.nn.utils.clip_grad_norm_([t], 1.0))
        assert clip_grad_norm([g.copy()], 1.0) == theirs or math.isnan(theirs)
        kept = g.copy()
        with pytest.raises(RuntimeError, match=r"clip_grad_norm\(\): the norm of 'grads' is (nan|inf)"):
            clip_grad_norm([g], 1.0, error_if_nonfinite=True)
        np.testing.assert_array_equal(g, kept)
        clip_grad_norm([g], 1.0)
        np.testing.assert_array_equal(g, t.grad.numpy())


def test_a_float32_max_norm_is_a_number_as_any(isa):
    """A norm may be beyond float32, whatever the kind of the number beside it."""
    for size in (0.3, 3e38):
        one, two = np.full(1000, size, "f4"), np.full(1000, size, "f4")
        assert clip_grad_norm([one], np.float32(0.75)) == clip_grad_norm([two], 0.75)
        assert one.tobytes() == two.tobytes() and (one != 0).all()


def test_clip_touches_nothing_beside(isa, dtype, rng):
    rows, tail = spaced(normal(rng, (6, 33), dtype)), guarded(np.ones(33, dtype))
    clip_grad_norm([rows, tail], 0.1)
    assert gaps_untouched(rows)


def test_clip_of_nothing():
    assert clip_grad_norm({}, 1.0) == 0.0
    assert clip_grad_norm([None, np.ones((0, 3), "f4")], 1.0) == 0.0


P = np.ones((2, 8), "f4")
READ_ONLY = np.ones((2, 8), "f4")
READ_ONLY.flags.writeable = False
REFUSALS = [
    (TypeError, r"clip_grad_norm\(\): 'grads' must be a dict or a list of arrays, not ndarray", lambda: clip_grad_norm(P, 1.0)),
    (TypeError, r"clip_grad_norm\(\): 'grads'\['w'\] must be an array, not float", lambda: clip_grad_norm({"w": 1.0}, 1.0)),
    (TypeError, r"clip_grad_norm\(\): 'grads'\['w'\] must be float32, float16 or bfloat16, not float64",
     lambda: clip_grad_norm({"v": P, "w": P.astype("f8")}, 1.0)),
    (ValueError, r"clip_grad_norm\(\): 'grads'\[1\] is written, but read-only", lambda: clip_grad_norm([P, READ_ONLY], 9e9)),
    (ValueError, r"clip_grad_norm\(\): 'grads'\['v'\] is written and overlaps 'grads'\['w'\]",
     lambda: clip_grad_norm({"v": P, "w": P[1:]}, 1.0)),
    (ValueError, r"clip_grad_norm\(\): 'grads'\[0\] must be contiguous along its last axis",
     lambda: clip_grad_norm([P[:, ::2], P + 1], 1.0)),
    (TypeError, r"clip_grad_norm\(\): 'grads'\['w'\] must be an array, not float32",
     lambda: clip_grad_norm({"w": np.float32(1)}, 1.0)),
    (TypeError, r"clip_grad_norm\(\): 'max_norm' must be a number, not str", lambda: clip_grad_norm([P], "1")),
    (ValueError, r"clip_grad_norm\(\): 'max_norm' must be at least 0, not -1", lambda: clip_grad_norm([P], -1)),
    (ValueError, r"clip_grad_norm\(\): 'max_norm' must be at least 0, not nan", lambda: clip_grad_norm([P], math.nan)),
]  # fmt: skip


@pytest.mark.parametrize("error, text, call", REFUSALS)
def test_clip_refuses_and_scales_nothing(isa, error, text, call):
    with pytest.raises(error, match=text):
        call()
    assert (P == 1).all() and (READ_ONLY == 1).all()
