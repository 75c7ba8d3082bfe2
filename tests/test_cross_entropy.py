import numpy as np
import pytest
import torch
from torch.nn import functional as F

import ckernels as ck
from ckernels.ops.cross_entropy import Gradients
from ckernels.parity import assert_parity
from differences import assert_gradient
from guard import gaps_untouched, guarded, spaced, unwritten
from parity import as_torch

# R, V: around each vector width, around a block of the sum and more than one, rows of a real model, one row of one,
# rows that are cut into pieces.
SIZES = [(5, v) for v in (2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 2047, 2049)] + [(40, 300), (3, 49152), (1, 3), (4, 65537)]
PRECISIONS = "float64", "float32"  # a loss is float32, and its peer computes in float32 whatever the logits
OPTIONS = [{}, {"label_smoothing": 0.1}, {"z_loss": 1e-2}, {"softcap": 3.0},
           {"label_smoothing": 0.3, "z_loss": 0.1, "softcap": 30.0}]
CASES = [(size, "mean", OPTIONS[i]) for size in SIZES for i in (0, 4)]
CASES += [((5, 33), reduction, o) for reduction in ("mean", "sum", "none") for o in OPTIONS]
CASES += [((5, 2049), reduction, o) for reduction, o in zip(("sum", "none", "mean"), OPTIONS[1:], strict=False)]


def inputs(rng, R, V, spread=3.0, dtype="f4"):
    """Logits, and targets that include the first class, the last, and one that is ignored."""
    target = rng.integers(0, V, R)
    target[: min(R, 3)] = [V - 1, -100, 0][: min(R, 3)]
    return guarded((spread * rng.standard_normal((R, V))).astype(dtype)), guarded(target)


def torch_loss(logits, target, reduction, label_smoothing=0.0, z_loss=0.0, softcap=None):
    """The loss in PyTorch's words, in the dtype of the logits; plain where PyTorch has it as it is."""
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if not z_loss:
        return F.cross_entropy(logits, target, reduction=reduction, label_smoothing=label_smoothing)
    counted = target != -100
    losses = F.cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing)
    losses = losses + z_loss * torch.where(counted, torch.logsumexp(logits, -1) ** 2, 0)
    return {"none": losses, "sum": losses.sum(), "mean": losses.sum() / counted.sum()}[reduction]


def both_at(precision, logits, target, dy, reduction, **options):
    """Loss and gradient."""
    logits = as_torch(logits, precision, grad=True)
    loss = torch_loss(logits, torch.tensor(target), reduction, **options)
    return loss.detach(), torch.autograd.grad(loss, logits, torch.as_tensor(dy).to(loss.dtype))[0]


def upstream(rng, R, reduction):
    return guarded(rng.standard_normal(R).astype("f4")) if reduction == "none" else 1.5


def largest_term(dy, target, reduction):
    """Of the two that cancel in the gradient of a target: g p and g."""
    return np.abs(dy) / (np.sum(target != -100) if reduction == "mean" else 1)


@pytest.mark.parametrize("size, reduction, options", CASES, ids=str)
def test_cross_entropy_matches_torch_and_autograd(isa, dtype, rng, size, reduction, options):
    logits, target = inputs(rng, *size, dtype=dtype)
    dy = upstream(rng, size[0], reduction)
    (exact, dexact), (peer, dpeer) = (both_at(p, logits, target, dy, reduction, **options) for p in PRECISIONS)
    loss, ctx = ck.cross_entropy_forward(logits, target, reduction=reduction, out=unwritten(exact.shape), **options)
    assert loss.shape == exact.shape and loss.dtype == np.float32
    lse = np.abs(logits.astype("f4")).max() + np.log(size[1])  # what cancels in a loss: lse and the target's logit
    assert_parity(loss, exact, peer, terms=lse * (size[0] if reduction == "sum" else 1))
    dlogits, = ck.cross_entropy_backward(dy, ctx, out=Gradients(unwritten(size, dtype)))
    dpeer = dpeer.to(as_torch(dlogits).dtype)
    assert_parity(dlogits, dexact, dpeer, terms=largest_term(dy, target, reduction))
    assert (dlogits[target == -100] == 0).all()


def test_cross_entropy_gradient_matches_differences(isa, rng):
    logits, target = inputs(rng, 4, 33)
    dy = upstream(rng, 4, "none")
    options = {"reduction": "none", "label_smoothing": 0.2, "z_loss": 0.05, "softcap": 5.0}
    dlogits, = ck.cross_entropy_backward(dy, ck.cross_entropy_forward(logits, target, **options)[1])
    assert_gradient(lambda moved: ck.cross_entropy(moved, target, **options), logits, dlogits, dy, rng)


def test_cross_entropy_takes_any_leading_axes(isa, rng):
    logits, target = inputs(rng, 6, 17)
    losses = ck.cross_entropy(logits, target, reduction="none")
    batch, ctx = ck.cross_entropy_forward(logits.reshape(2, 3, 17), target.reshape(2, 3), reduction="none")
    np.testing.assert_array_equal(batch, losses.reshape(2, 3))
    assert ck.cross_entropy_backward(batch, ctx).logits.shape == (2, 3, 17)
    alone, ctx = ck.cross_entropy_forward(logits[2], np.array(0))
    assert alone.shape == () and alone == losses[2]
    assert ck.cross_entropy_backward(1.0, ctx).logits.shape == (17,)


@pytest.mark.parametrize("ignored", [-100, 3, -(2**63)])
def test_cross_entropy_ignores(isa, dtype, rng, ignored):
    logits, _ = inputs(rng, 4, 5, dtype=dtype)
    target = np.array([ignored, 2, ignored, 0])
    logits[target == ignored] = np.nan  # nobody should read these
    counted = target != ignored
    loss, ctx = ck.cross_entropy_forward(logits, target, ignore_index=ignored)
    assert loss == ck.cross_entropy(logits[counted], target[counted])
    dlogits, = ck.cross_entropy_backward(1.0, ctx)
    fresh, = ck.cross_entropy_backward(1.0, ck.cross_entropy_forward(logits[counted], target[counted])[1])
    np.testing.assert_array_equal(dlogits[counted], fresh)
    assert (dlogits[~counted] == 0).all()


@pytest.mark.parametrize("reduction, expected", [("mean", np.nan), ("sum", 0), ("none", [0, 0])])
def test_cross_entropy_of_ignored_rows_alone(isa, reduction, expected):
    logits, target = np.ones((2, 5), "f4"), np.array([-100, -100])
    loss, ctx = ck.cross_entropy_forward(logits, target, reduction=reduction)
    np.testing.assert_array_equal(loss, np.array(expected, "f4"))
    np.testing.assert_array_equal(ck.cross_entropy_backward(loss, ctx).logits, np.zeros((2, 5)))


@pytest.mark.parametrize("size", [(7, 333), (3, 66000)], ids=str)
@pytest.mark.parametrize("options", OPTIONS[::4], ids=str)
def test_cross_entropy_in_place(isa, dtype, rng, options, size):
    logits, target = inputs(rng, *size, dtype=dtype)
    loss, ctx = ck.cross_entropy_forward(logits, target, **options)
    fresh = ck.cross_entropy_backward(1.0, ctx).logits
    assert ck.cross_entropy_backward(1.0, ctx, out=Gradients(logits)).logits is logits
    assert logits.tobytes() == fresh.tobytes()


@pytest.mark.parametrize("size", [(500, 777), (4, 150001)], ids=str)
def test_cross_entropy_bits_do_not_depend_on_threads_or_batch(isa, dtype, rng, size):
    logits, target = inputs(rng, *size, dtype=dtype)

    def everything():
        losses, ctx = ck.cross_entropy_forward(logits, target, reduction="none", label_smoothing=0.1)
        means = ck.cross_entropy(logits, target), ck.cross_entropy(logits, target, reduction="sum")
        return [a.tobytes() for a in (losses, ck.cross_entropy_backward(losses, ctx).logits, *means)]

    ck.set_num_threads(1)
    alone = everything()
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything() == alone
    r, nbytes = size[0] - 1, size[1] * dtype.itemsize
    losses, ctx = ck.cross_entropy_forward(logits[r:], target[r:], reduction="none", label_smoothing=0.1)
    assert losses.tobytes() == alone[0][r * 4:]
    assert ck.cross_entropy_backward(losses, ctx).logits.tobytes() == alone[1][r * nbytes:]


def test_cross_entropy_bits_are_the_same_on_avx2_and_avx512(dtype, rng):
    for size in (50, 5003), (2, 70001):
        (logits, _), target, bits = inputs(rng, *size, dtype=dtype), rng.integers(0, size[1], size[0]), set()
        for isa in {"avx2", "avx512"} & set(ck.isas()):
            with ck.use(isa):
                loss, ctx = ck.cross_entropy_forward(logits, target, label_smoothing=0.1, softcap=20.0, z_loss=0.1)
                bits.add(loss.tobytes() + ck.cross_entropy_backward(1.0, ctx).logits.tobytes())
                loss, ctx = ck.cross_entropy_forward(logits, target)
                bits.add(loss.tobytes() + ck.cross_entropy_backward(1.0, ctx).logits.tobytes())
        assert len(bits) == 2


def test_cross_entropy_of_large_arrays_passes_the_caches_unharmed(rng):
    """Streaming stores: rows that start anywhere within a line, a size that only they have."""
    logits, target = rng.standard_normal((4300, 1003), np.float32), rng.integers(0, 1003, 4300)
    for isa in {"avx2", "avx512", "baseline"} & set(ck.isas()):
        with ck.use(isa):
            dlogits, = ck.cross_entropy_backward(1.0, ck.cross_entropy_forward(logits, target, reduction="sum")[1])
            for r in 0, 1, 2, 3, 2000, 4299:
                ctx = ck.cross_entropy_forward(logits[r], target[r, ...], reduction="sum")[1]
                np.testing.assert_array_equal(dlogits[r], ck.cross_entropy_backward(1.0, ctx).logits)


def test_cross_entropy_counts_what_it_divides_by(isa, rng):
    """A mean is over the rows that count, whether ignored or not: gradients of parts add up by their counts."""
    logits, target = inputs(rng, 9, 17)
    target[4:8] = -100
    (whole, ctx), counts = ck.cross_entropy_forward(logits, target), [(target[:5] >= 0).sum(), (target[5:] >= 0).sum()]
    parts = [ck.cross_entropy_forward(logits[rows], target[rows]) for rows in (slice(0, 5), slice(5, 9))]
    weights = counts / np.sum(counts)
    assert_parity(whole, sum(w * np.float64(loss) for w, (loss, _) in zip(weights, parts, strict=True)), bound=1e-6)
    dlogits = np.concatenate([ck.cross_entropy_backward(w, c).logits for w, (_, c) in zip(weights, parts, strict=True)])
    assert_parity(ck.cross_entropy_backward(1.0, ctx).logits, dlogits.astype("f8"), bound=1e-7)


@pytest.mark.parametrize("shift", [-200.0, 200.0])
def test_cross_entropy_of_large_logits(isa, rng, shift):
    logits, target = inputs(rng, 9, 3000, spread=1.0)
    logits += np.float32(shift)
    dy = upstream(rng, 9, "none")
    (exact, dexact), (peer, dpeer) = (both_at(p, logits, target, dy, "none") for p in PRECISIONS)
    losses, ctx = ck.cross_entropy_forward(logits, target, reduction="none")
    assert_parity(losses, exact, peer, terms=200.0)
    dlogits = ck.cross_entropy_backward(dy, ctx).logits
    assert_parity(dlogits, dexact, dpeer)
    # as exact as without the shift: peak and log of the sum are kept apart
    others = np.arange(3000) != target[:, None]
    np.testing.assert_array_less(np.abs(dlogits - dexact.numpy())[others], 1e-6 * np.abs(dexact.numpy())[others].max())


def test_cross_entropy_of_increasing_logits(isa):
    logits = np.stack([np.linspace(-200, 200, 9000), np.linspace(200, -200, 9000)]).astype("f4")
    target = np.array([4000, 4000])
    (exact, dexact), (peer, dpeer) = (both_at(p, logits, target, [1, 1], "none") for p in PRECISIONS)
    losses, ctx = ck.cross_entropy_forward(logits, target, reduction="none")
    assert_parity(losses, exact, peer)
    assert_parity(ck.cross_entropy_backward(np.ones(2, "f4"), ctx).logits, dexact, dpeer)


def test_cross_entropy_is_not_capped(isa):
    logits = np.array([[0, 1e4, -1e4]], "f4")
    assert ck.cross_entropy(logits, np.array([2])) == 2e4
    assert ck.cross_entropy(logits, np.array([1])) == 0


def test_cross_entropy_of_extremes(isa, dtype):
    inf, nan, tiny = np.inf, np.nan, 1e-42 if dtype == np.float32 else 1e-7
    logits = np.array([[1, nan, 2, 3], [inf, 1, 2, 3], [-inf] * 4, [0, -inf, 0, -inf], [-inf, -inf, 0, nan],
                       [7, 7, 7, 7], [tiny, -tiny, 0, 0], [-inf, -inf, -inf, 5], [nan, 1, 2, nan]], dtype)
    for target in np.zeros(9, np.int64), np.full(9, 3):
        dy = np.ones(9, "f4")
        (exact, dexact), (peer, dpeer) = (both_at(p, logits, target, dy, "none") for p in PRECISIONS)
        losses, ctx = ck.cross_entropy_forward(logits, target, reduction="none")
        assert_parity(losses, exact, peer)
        dlogits = ck.cross_entropy_backward(dy, ctx).logits
        assert_parity(dlogits, dexact, dpeer.to(as_torch(dlogits).dtype))


def test_cross_entropy_of_extremes_in_pieces(isa, dtype, rng):
    inf, nan = np.inf, np.nan
    logits = inputs(rng, 6, 140000, dtype=dtype)[0]
    logits[0, 70000:] = -inf  # the last pieces
    logits[1, :70000] = -inf
    logits[2] = -inf
    logits[3, 139999] = nan
    logits[4, 66000] = inf
    target, dy = np.array([5, 139998, 3, 70000, 66000, 131072]), np.ones(6, "f4")
    (exact, dexact), (peer, dpeer) = (both_at(p, logits, target, dy, "none") for p in PRECISIONS)
    losses, ctx = ck.cross_entropy_forward(logits, target, reduction="none")
    assert_parity(losses, exact, peer)
    dlogits = ck.cross_entropy_backward(dy, ctx).logits
    assert_parity(dlogits, dexact, dpeer.to(as_torch(dlogits).dtype))


def test_cross_entropy_softcaps_what_is_infinite(isa):
    logits = np.array([[np.inf, 1, -np.inf, 2]], "f4")
    (exact, dexact), (peer, dpeer) = (both_at(p, logits, np.array([1]), [1], "none", softcap=5.0) for p in PRECISIONS)
    losses, ctx = ck.cross_entropy_forward(logits, np.array([1]), reduction="none", softcap=5.0)
    assert_parity(losses, exact, peer, allow_constant=True)
    assert_parity(ck.cross_entropy_backward(np.ones(1, "f4"), ctx).logits, dexact, dpeer)


@pytest.mark.parametrize("R, V", [(0, 8), (0, 0)])
def test_cross_entropy_of_nothing(isa, R, V):
    logits, target = np.ones((R, V), "f4"), np.zeros(R, np.int64)
    loss, ctx = ck.cross_entropy_forward(logits, target)
    assert np.isnan(loss) and ck.cross_entropy_backward(1.0, ctx).logits.shape == (R, V)
    assert ck.cross_entropy(logits, target, reduction="sum") == 0
    assert ck.cross_entropy(logits, target, reduction="none").shape == (R,)


def test_cross_entropy_of_no_class(isa):
    loss, ctx = ck.cross_entropy_forward(np.ones((3, 0), "f4"), np.full(3, -100), reduction="sum")
    assert loss == 0 and ck.cross_entropy_backward(1.0, ctx).logits.shape == (3, 0)


@pytest.mark.parametrize("kind", [np.int32, np.int64])
@pytest.mark.parametrize("V", [33, 65539])
def test_cross_entropy_takes_strided_views(isa, dtype, rng, kind, V):
    ids = rng.integers(0, V, (3, 3)).astype(kind)
    logits, target = spaced(rng.standard_normal((2, 3, V)).astype(dtype)).transpose(1, 0, 2), ids[:, 1:]
    dy = rng.standard_normal((2, 3)).astype("f4").T
    losses, ctx = ck.cross_entropy_forward(logits, target, reduction="none")
    dlogits, = ck.cross_entropy_backward(dy, ctx, out=Gradients(spaced(np.zeros((3, 2, V), dtype))))
    flat, flat_ctx = ck.cross_entropy_forward(logits.copy(), target.copy(), reduction="none")
    np.testing.assert_array_equal(losses, flat)
    np.testing.assert_array_equal(dlogits, ck.cross_entropy_backward(dy.copy(), flat_ctx).logits)
    assert gaps_untouched(dlogits)


def test_cross_entropy_takes_tensors(rng):
    logits, target = inputs(rng, 4, 9)
    assert ck.cross_entropy(torch.tensor(logits), torch.tensor(target)) == ck.cross_entropy(logits, target)


@pytest.mark.parametrize("bad", [-1, 9, 2**63 - 1])
def test_cross_entropy_refuses_a_target_before_it_writes(isa, rng, bad):
    logits, target = inputs(rng, 6, 9)
    target = target.reshape(2, 3)
    losses, dlogits = np.full((2, 3), 7, "f4"), np.full((2, 3, 9), 7, "f4")
    ctx = ck.cross_entropy_forward(logits.reshape(2, 3, 9), target)[1]
    target[1, 1] = bad
    where = rf"'target' holds {bad} at position 4, and 'logits' has classes 0 to 8"
    with pytest.raises(IndexError, match=r"cross_entropy\(\): " + where):
        ck.cross_entropy(ctx.logits, target, reduction="none", out=losses)
    with pytest.raises(IndexError, match=r"cross_entropy_backward\(\): " + where):
        ck.cross_entropy_backward(1.0, ctx, out=Gradients(dlogits))
    assert (losses == 7).all() and (dlogits == 7).all()


X, T = np.ones((2, 8), "f4"), np.zeros(2, np.int64)
MEAN, NONE = (lambda: ck.cross_entropy_forward(X, T)[1]), (lambda: ck.cross_entropy_forward(X, T, reduction="none")[1])


@pytest.mark.parametrize("error, text, call", [
    (TypeError, r"cross_entropy\(\): 'logits' must be float32, float16 or bfloat16, not float64",
     lambda: ck.cross_entropy(X.astype("f8"), T)),
    (TypeError, r"cross_entropy\(\): 'target' must be int32 or int64, not float32",
     lambda: ck.cross_entropy(X, T.astype("f4"))),
    (TypeError, r"cross_entropy\(\): 'ignore_index' must be an integer",
     lambda: ck.cross_entropy(X, T, ignore_index=0.5)),
    (ValueError, r"cross_entropy\(\): 'target' of shape \(3,\) does not fit \[...\], where ...=\(2,\)",
     lambda: ck.cross_entropy(X, np.zeros(3, np.int64))),
    (ValueError, r"cross_entropy\(\): 'logits' must be contiguous along its last axis",
     lambda: ck.cross_entropy(X[:, ::2], T)),
    (ValueError, r"cross_entropy\(\): 'reduction' must be 'none', 'mean' or 'sum', not 'avg'",
     lambda: ck.cross_entropy(X, T, reduction="avg")),
    (ValueError, r"cross_entropy\(\): 'label_smoothing' must be 0 to 1, not 1.5",
     lambda: ck.cross_entropy(X, T, label_smoothing=1.5)),
    (ValueError, r"cross_entropy\(\): 'label_smoothing' must be 0 to 1, not nan",
     lambda: ck.cross_entropy(X, T, label_smoothing=np.nan)),
    (ValueError, r"cross_entropy\(\): 'z_loss' must be finite and not negative, not -1",
     lambda: ck.cross_entropy(X, T, z_loss=-1)),
    (ValueError, r"cross_entropy\(\): 'softcap' must be positive, not 0", lambda: ck.cross_entropy(X, T, softcap=0)),
    (ValueError, r"cross_entropy\(\): 'softcap' must be positive, not 1e-60",
     lambda: ck.cross_entropy(X, T, softcap=1e-60)),
    (ValueError, r"cross_entropy\(\): 'out' of shape \(1,\) does not fit \[\]",
     lambda: ck.cross_entropy(X, T, out=X[0, :1])),
    (ValueError, r"cross_entropy_backward\(\): 'dy' of shape \(3,\) does not fit|'logits' of shape",
     lambda: ck.cross_entropy_backward(np.ones(3, "f4"), NONE())),
    (TypeError, r"cross_entropy_backward\(\): 'dy' must be a number", lambda: ck.cross_entropy_backward(None, NONE())),
    (TypeError, r"cross_entropy_backward\(\): 'dy' must be a number", lambda: ck.cross_entropy_backward("1", MEAN())),
    (TypeError, r"cross_entropy_backward\(\): 'dy' must be a NumPy array",
     lambda: ck.cross_entropy_backward(1.0, NONE())),
    (ValueError, r"cross_entropy_backward\(\): 'out.logits' is written and overlaps 'logits'",
     lambda: (lambda a: ck.cross_entropy_backward(1.0, ck.cross_entropy_forward(a[:2], T)[1], out=Gradients(a[1:])))(
         np.ones((3, 8), "f4"))),
])
def test_cross_entropy_refuses(error, text, call):
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize("shape", [(1000, 40000), (2, 70000)], ids=str)
def test_cross_entropy_reports_a_lack_of_memory(shape):
    logits, target = np.broadcast_to(np.zeros(shape[1], "f4"), shape), np.zeros(shape[0], np.int64)
    out = np.full((), 7, "f4")
    ck._ck.fail_allocation(1)
    with pytest.raises(MemoryError, match="cross_entropy"):
        ck.cross_entropy(logits, target, out=out)
    assert out == 7
