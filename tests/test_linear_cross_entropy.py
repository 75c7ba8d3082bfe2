import numpy as np
import pytest
import torch

import ckernels as ck
from ckernels.ops.linear_cross_entropy import Gradients
from ckernels.parity import assert_parity
from differences import assert_gradient
from guard import gaps_untouched, guarded, spaced, unwritten
from parity import as_torch
from test_cross_entropy import OPTIONS, torch_loss

# R, C, V: around vector widths, a block of rows (256) and of classes (2048) and more than one of each, one of all.
SIZES = [(5, 7, 9), (3, 16, 33), (17, 33, 2047), (7, 40, 2049), (9, 64, 4099), (255, 24, 65), (257, 17, 130), (600, 8, 31)]
CASES = [(size, "mean", OPTIONS[i % 2 * 4]) for i, size in enumerate(SIZES)] + [((1, 1, 3), "mean", OPTIONS[2])]
CASES += [((11, 20, 2060), reduction, OPTIONS[i]) for reduction in ("mean", "sum", "none") for i in (0, 4)]
CASES += [((259, 12, 70), "none", o) for o in OPTIONS[1:4]]
PRECISIONS = "float64", "float32"  # logits are never rounded, so the peer of 16 bits computes in float32, too


def inputs(rng, R, C, V, spread=3.0, dtype="f4"):
    """Hidden states, a weight, and targets that include the first class, the last, and one that is ignored."""
    target = rng.integers(0, V, R)
    target[: min(R, 3)] = [V - 1, -100, 0][: min(R, 3)]
    x, weight = spread * rng.standard_normal((R, C)), C**-0.5 * rng.standard_normal((V, C))
    return guarded(x.astype(dtype)), guarded(weight.astype(dtype)), guarded(target)


def both_at(precision, x, weight, target, dy, reduction, **options):
    """Loss and gradients of the two ops of PyTorch."""
    x, weight = as_torch(x, precision, grad=True), as_torch(weight, precision, grad=True)
    logits = torch.nn.functional.linear(x, weight)
    loss = torch_loss(logits, torch.tensor(target), reduction, **options)
    return loss.detach(), *torch.autograd.grad(loss, (x, weight), torch.as_tensor(dy).to(loss.dtype))


def upstream(rng, R, reduction):
    return guarded(rng.standard_normal(R).astype("f4")) if reduction == "none" else 1.5


@pytest.mark.parametrize("size, reduction, options", CASES, ids=str)
def test_linear_cross_entropy_matches_torch_and_autograd(isa, dtype, rng, size, reduction, options):
    R, C, V = size
    x, weight, target = inputs(rng, *size, dtype=dtype)
    dy = upstream(rng, R, reduction)
    exact, peer = (both_at(p, x, weight, target, dy, reduction, **options) for p in PRECISIONS)
    loss, ctx = ck.linear_cross_entropy_forward(x, weight, target, reduction=reduction, out=unwritten(exact[0].shape),
                                                **options)
    assert loss.shape == exact[0].shape and loss.dtype == np.float32
    lse = 3 * 5 + np.log(V)  # what cancels in a loss: lse and the target's logit
    assert_parity(loss, exact[0], peer[0], terms=lse * (R if reduction == "sum" else 1))
    grads = ck.linear_cross_entropy_backward(dy, ctx, out=Gradients(unwritten((R, C), dtype), unwritten((V, C), dtype)))
    g = np.abs(dy) / (np.sum(target != -100) if reduction == "mean" else 1)  # two terms of this size cancel at a target
    sizes = [np.max(g) * np.abs(a.astype("f4")).max() for a in (weight, x)]
    for actual, dexact, dpeer, terms in zip(grads, exact[1:], peer[1:], sizes, strict=True):
        assert_parity(actual, dexact, dpeer.to(as_torch(actual).dtype), terms=terms)
    assert (grads.x[target == -100] == 0).all()


def test_linear_cross_entropy_gradient_matches_differences(isa, rng):
    x, weight, target = inputs(rng, 4, 6, 33)
    dy = upstream(rng, 4, "none")
    options = {"reduction": "none", "label_smoothing": 0.2, "z_loss": 0.05, "softcap": 5.0}
    grads = ck.linear_cross_entropy_backward(dy, ck.linear_cross_entropy_forward(x, weight, target, **options)[1])
    assert_gradient(lambda a: ck.linear_cross_entropy(a, weight, target, **options), x, grads.x, dy, rng)
    assert_gradient(lambda a: ck.linear_cross_entropy(x, a, target, **options), weight, grads.weight, dy, rng)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_linear_cross_entropy_losses_have_the_bits_of_the_two_ops(isa, rng, options):
    x, weight, target = inputs(rng, 300, 33, 4500)
    options |= {"reduction": "none"}
    losses, ctx = ck.linear_cross_entropy_forward(x, weight, target, **options)
    separate, whole = ck.cross_entropy_forward(ck.linear(x, weight), target, **options)
    if isa == "reference":  # which sums a whole row in one go
        assert_parity(losses, separate.astype("f8"), bound=1e-6)
        return
    for ours, theirs in (losses, separate), (ctx.peak, whole.peak), (ctx.sum, whole.sum):
        assert ours.tobytes() == theirs.tobytes()


def test_linear_cross_entropy_takes_any_leading_axes(isa, dtype, rng):
    x, weight, target = inputs(rng, 6, 10, 17, dtype=dtype)
    losses, ctx = ck.linear_cross_entropy_forward(x, weight, target, reduction="none")
    grads = ck.linear_cross_entropy_backward(losses, ctx)
    batch, ctx = ck.linear_cross_entropy_forward(x.reshape(2, 3, 10), weight, target.reshape(2, 3), reduction="none")
    np.testing.assert_array_equal(batch, losses.reshape(2, 3))
    again = ck.linear_cross_entropy_backward(batch, ctx)
    assert again.x.shape == (2, 3, 10) and again.x.tobytes() == grads.x.tobytes()
    assert again.weight.tobytes() == grads.weight.tobytes()
    alone, ctx = ck.linear_cross_entropy_forward(x[2], weight, np.array(0))
    assert alone.shape == () and alone == losses[2]
    assert ck.linear_cross_entropy_backward(1.0, ctx).x.shape == (10,)


@pytest.mark.parametrize("ignored", [-100, 3, -(2**63)])
def test_linear_cross_entropy_ignores(isa, dtype, rng, ignored):
    x, weight, _ = inputs(rng, 4, 6, 5, dtype=dtype)
    target = np.array([ignored, 2, ignored, 0])
    counted = target != ignored
    loss, ctx = ck.linear_cross_entropy_forward(x, weight, target, ignore_index=ignored)
    assert loss == ck.linear_cross_entropy(x[counted], weight, target[counted])
    grads = ck.linear_cross_entropy_backward(1.0, ctx)
    fresh = ck.linear_cross_entropy_backward(
        1.0, ck.linear_cross_entropy_forward(x[counted], weight, target[counted])[1])
    np.testing.assert_array_equal(grads.x[counted], fresh.x)
    np.testing.assert_array_equal(grads.weight, fresh.weight)
    assert (grads.x[~counted] == 0).all()


@pytest.mark.parametrize("reduction, expected", [("mean", np.nan), ("sum", 0), ("none", [0, 0])])
def test_linear_cross_entropy_of_ignored_rows_alone(isa, reduction, expected):
    x, weight, target = np.ones((2, 3), "f4"), np.ones((5, 3), "f4"), np.array([-100, -100])
    loss, ctx = ck.linear_cross_entropy_forward(x, weight, target, reduction=reduction)
    np.testing.assert_array_equal(loss, np.array(expected, "f4"))
    for grad, like in zip(ck.linear_cross_entropy_backward(loss, ctx), (x, weight), strict=True):
        np.testing.assert_array_equal(grad, np.zeros(like.shape))


@pytest.mark.parametrize("R", [100, 300])
def test_linear_cross_entropy_accumulates_in_one_addition(isa, dtype, rng, R):
    x, weight, target = inputs(rng, R, 20, 35, dtype=dtype)
    ctx = ck.linear_cross_entropy_forward(x, weight, target, reduction="sum")[1]
    fresh = ck.linear_cross_entropy_backward(1.0, ctx).weight
    before = rng.standard_normal(weight.shape).astype(dtype)
    out = Gradients(np.empty_like(x), spaced(before.copy()))
    added = ck.linear_cross_entropy_backward(1.0, ctx, out=out, accumulate=True).weight
    assert gaps_untouched(added)
    if dtype == np.float32 and isa != "reference":
        np.testing.assert_array_equal(added, before + fresh)
    else:  # the sum itself is not rounded before it is added
        exact = both_at("float64", x, weight, target, 1.0, "sum")[2].numpy() + before.astype("f8")
        assert_parity(added, exact, as_torch(before) + as_torch(fresh))


@pytest.mark.parametrize("R", [100, 600])
@pytest.mark.parametrize("accumulate", [False, True])
def test_linear_cross_entropy_in_one_pass_has_the_bits_of_two(isa, dtype, rng, R, accumulate):
    x, weight, target = inputs(rng, R, 20, 2100, dtype=dtype)
    options = {"reduction": "mean" if accumulate else "sum", "label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 8.0}
    before = rng.standard_normal(weight.shape).astype(dtype)
    out = [Gradients(unwritten(x.shape, dtype), before.copy()) for _ in range(2)]
    loss, ctx = ck.linear_cross_entropy_forward(x, weight, target, **options)
    grads = ck.linear_cross_entropy_backward(0.7, ctx, out=out[0], accumulate=accumulate)
    once, both = ck.linear_cross_entropy_grads(x, weight, target, dy=0.7, out=out[1], accumulate=accumulate, **options)
    assert once.tobytes() == loss.tobytes()
    assert both.x.tobytes() == grads.x.tobytes() and both.weight.tobytes() == grads.weight.tobytes()


@pytest.mark.parametrize("size", [(700, 48, 2500), (3, 100, 20000)], ids=str)
def test_linear_cross_entropy_bits_do_not_depend_on_threads_or_batch(isa, dtype, rng, size):
    x, weight, target = inputs(rng, *size, dtype=dtype)

    def everything(rows):
        losses, ctx = ck.linear_cross_entropy_forward(x[rows], weight, target[rows], reduction="none",
                                                      label_smoothing=0.1)
        grads = ck.linear_cross_entropy_backward(losses, ctx)
        mean = ck.linear_cross_entropy(x[rows], weight, target[rows])
        return losses.tobytes(), grads.x.tobytes(), grads.weight.tobytes(), mean.tobytes()

    if isa == "reference":
        x, weight, target = x[-5:, :7], weight[:50, :7], target[-5:] % 50
    ck.set_num_threads(1)
    alone = everything(slice(None))
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything(slice(None)) == alone
    for row in 0, len(x) - 1:
        losses, dx = everything(slice(row, row + 1))[:2]
        assert losses == alone[0][4 * row : 4 * row + 4]
        assert dx == alone[1][row * len(dx) : (row + 1) * len(dx)]


def test_linear_cross_entropy_bits_are_the_same_on_avx2_and_avx512(dtype, rng):
    (x, weight, _), target, bits = inputs(rng, 300, 50, 5003, dtype=dtype), rng.integers(0, 5003, 300), set()
    for isa in {"avx2", "avx512"} & set(ck.isas()):
        with ck.use(isa):
            loss, ctx = ck.linear_cross_entropy_forward(x, weight, target, label_smoothing=0.1, softcap=9.0, z_loss=0.1)
            grads = ck.linear_cross_entropy_backward(1.0, ctx)
            bits.add(loss.tobytes() + grads.x.tobytes() + grads.weight.tobytes())
    assert len(bits) == 1


@pytest.mark.parametrize("spread", [1.0, 60.0])
def test_linear_cross_entropy_is_as_exact_as_the_two_ops(dtype, rng, spread):
    """Beside our own linear and cross_entropy, which round logits and their gradient to 16 bits on the way."""
    x, weight, target = inputs(rng, 400, 96, 3000, spread=spread, dtype=dtype)
    exact = both_at("float64", x, weight, target, 1.0, "mean")
    loss, ctx = ck.linear_cross_entropy_forward(x, weight, target)
    logits, inner = ck.linear_forward(x, weight)
    separate, outer = ck.cross_entropy_forward(logits, target)
    back = ck.linear_backward(ck.cross_entropy_backward(1.0, outer).logits, inner)
    for ours, theirs, want in zip((loss, *ck.linear_cross_entropy_backward(1.0, ctx)), (separate, back.x, back.weight),
                                  exact, strict=True):
        ours, theirs = (np.sqrt(np.mean((a.astype("f8") - want.numpy()) ** 2)) for a in (ours, theirs))
        scale = np.abs(want.numpy()).max()
        assert ours <= 1.05 * theirs + np.finfo("f4").eps * scale


@pytest.mark.parametrize("R, C, V", [(2000, 16, 10000), (300, 16, 60000)])
def test_linear_cross_entropy_holds_no_matrix_of_logits(dtype, rng, R, C, V):
    x, weight, target = inputs(rng, R, C, V, dtype=dtype)
    ctx = ck.linear_cross_entropy_forward(x, weight, target)[1]
    grads = ck.linear_cross_entropy_backward(1.0, ctx)
    ck.empty_cache()
    before = ck.memory_stats()["in_use"]
    ck.linear_cross_entropy_backward(1.0, ck.linear_cross_entropy_forward(x, weight, target)[1], out=grads)
    block, copies = 256 * 2048, 2 * R * C + 2 * 2048 * C if dtype != np.float32 else 0
    threads = ck.get_num_threads() * (2 << 20)  # the pool's scratch
    assert ck.memory_stats()["peak"] - before <= 4 * (block + copies + 10 * R) + threads + (4 << 20)
    assert ck.memory_stats()["peak"] - before < R * V * dtype.itemsize / 4


@pytest.mark.parametrize("R, C, V", [(0, 4, 8), (0, 0, 0), (3, 0, 8)])
def test_linear_cross_entropy_of_nothing(isa, dtype, R, C, V):
    x, weight, target = np.ones((R, C), dtype), np.ones((V, C), dtype), np.zeros(R, np.int64)
    loss, ctx = ck.linear_cross_entropy_forward(x, weight, target)
    assert np.isnan(loss) if R == 0 else loss == np.float32(np.log(V))
    grads = ck.linear_cross_entropy_backward(1.0, ctx, out=Gradients(np.full_like(x, 7), np.full_like(weight, 7)))
    assert not grads.x.any() and not grads.weight.any() and grads.weight.shape == (V, C)
    assert ck.linear_cross_entropy(x, weight, target, reduction="none").shape == (R,)


def test_linear_cross_entropy_of_no_class(isa):
    x, weight, target = np.ones((3, 2), "f4"), np.ones((0, 2), "f4"), np.full(3, -100)
    loss, ctx = ck.linear_cross_entropy_forward(x, weight, target, reduction="sum")
    assert loss == 0 and not ck.linear_cross_entropy_backward(1.0, ctx).x.any()


def test_linear_cross_entropy_of_extremes(isa, dtype, rng):
    x, weight, target = inputs(rng, 6, 8, 2100, dtype=dtype)
    target[:] = [5, 2099, 0, 2050, 7, 2048]
    x[0, 3], x[1, 2], weight[2060, 1] = np.nan, np.inf, -np.inf
    dy = np.ones(6, "f4")
    exact, peer = (both_at(p, x, weight, target, dy, "none") for p in PRECISIONS)
    losses, ctx = ck.linear_cross_entropy_forward(x, weight, target, reduction="none")
    np.testing.assert_array_equal(np.isnan(losses), np.isnan(exact[0].numpy()))
    fine = ~np.isnan(losses)
    if fine.any():
        assert_parity(losses[fine], exact[0][fine], peer[0][fine], terms=30.0)
    for actual, want in zip(ck.linear_cross_entropy_backward(dy, ctx), exact[1:], strict=True):
        np.testing.assert_array_equal(np.isnan(actual.astype("f4")), np.isnan(want.numpy()))


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_linear_cross_entropy_takes_strided_views(isa, dtype, rng, kind):
    ids = rng.integers(0, 2100, (3, 3)).astype(kind)
    x, target = spaced(rng.standard_normal((2, 3, 12)).astype(dtype)).transpose(1, 0, 2), ids[:, 1:]
    weight = spaced(rng.standard_normal((2100, 12)).astype(dtype))
    dy = rng.standard_normal((2, 3)).astype("f4").T
    losses, ctx = ck.linear_cross_entropy_forward(x, weight, target, reduction="none")
    out = Gradients(spaced(np.zeros((2, 3, 12), dtype)).transpose(1, 0, 2), spaced(np.zeros((2100, 12), dtype)))
    grads = ck.linear_cross_entropy_backward(dy, ctx, out=out)
    flat, flat_ctx = ck.linear_cross_entropy_forward(x.copy(), weight.copy(), target.copy(), reduction="none")
    np.testing.assert_array_equal(losses, flat)
    for strided, plain in zip(grads, ck.linear_cross_entropy_backward(dy.copy(), flat_ctx), strict=True):
        np.testing.assert_array_equal(strided, plain)
    assert gaps_untouched(grads.weight) and gaps_untouched(grads.x.transpose(1, 0, 2))


def test_linear_cross_entropy_takes_tensors(rng):
    x, weight, target = inputs(rng, 4, 5, 9)
    assert ck.linear_cross_entropy(*map(torch.tensor, (x, weight, target))) == ck.linear_cross_entropy(x, weight, target)


@pytest.mark.parametrize("bad", [-1, 9, 2**63 - 1])
def test_linear_cross_entropy_refuses_a_target_before_it_writes(isa, rng, bad):
    x, weight, target = inputs(rng, 6, 4, 9)
    losses, out = np.full(6, 7, "f4"), Gradients(np.full((6, 4), 7, "f4"), np.full((9, 4), 7, "f4"))
    ctx = ck.linear_cross_entropy_forward(x, weight, target)[1]
    target[4] = bad
    where = rf"'target' holds {bad} at position 4, and 'weight' has classes 0 to 8"
    with pytest.raises(IndexError, match=r"linear_cross_entropy\(\): " + where):
        ck.linear_cross_entropy(x, weight, target, reduction="none", out=losses)
    with pytest.raises(IndexError, match=r"linear_cross_entropy_backward\(\): " + where):
        ck.linear_cross_entropy_backward(1.0, ctx, out=out)
    assert all((a == 7).all() for a in (losses, *out))


X, W, T = np.ones((2, 4), "f4"), np.ones((8, 4), "f4"), np.zeros(2, np.int64)
MEAN = lambda: ck.linear_cross_entropy_forward(X, W, T)[1]  # noqa: E731


@pytest.mark.parametrize("error, text, call", [
    (TypeError, r"linear_cross_entropy\(\): 'x' must be float32, float16 or bfloat16, not float64",
     lambda: ck.linear_cross_entropy(X.astype("f8"), W, T)),
    (TypeError, r"linear_cross_entropy\(\): 'weight' must be float32, not float16",
     lambda: ck.linear_cross_entropy(X, W.astype("f2"), T)),
    (ValueError, r"linear_cross_entropy\(\): 'weight' of shape \(8, 3\) does not fit \[V, C\], where C=4",
     lambda: ck.linear_cross_entropy(X, W[:, :3], T)),
    (ValueError, r"linear_cross_entropy\(\): 'target' of shape \(3,\) does not fit \[...\], where ...=\(2,\)",
     lambda: ck.linear_cross_entropy(X, W, np.zeros(3, np.int64))),
    (ValueError, r"linear_cross_entropy\(\): 'reduction' must be 'none', 'mean' or 'sum', not 'avg'",
     lambda: ck.linear_cross_entropy(X, W, T, reduction="avg")),
    (ValueError, r"linear_cross_entropy\(\): 'label_smoothing' must be 0 to 1, not 1.5",
     lambda: ck.linear_cross_entropy(X, W, T, label_smoothing=1.5)),
    (ValueError, r"linear_cross_entropy\(\): 'z_loss' must be finite and not negative, not -1",
     lambda: ck.linear_cross_entropy(X, W, T, z_loss=-1)),
    (ValueError, r"linear_cross_entropy\(\): 'softcap' must be positive, not 0",
     lambda: ck.linear_cross_entropy(X, W, T, softcap=0)),
    (TypeError, r"linear_cross_entropy_backward\(\): 'dy' must be a number",
     lambda: ck.linear_cross_entropy_backward(None, MEAN())),
    (ValueError, r"linear_cross_entropy_grads\(\): 'reduction' must be 'mean' or 'sum', not 'none'",
     lambda: ck.linear_cross_entropy_grads(X, W, T, reduction="none")),
    (IndexError, r"linear_cross_entropy_grads\(\): 'target' holds 9 at position 1, and 'weight' has classes 0 to 7",
     lambda: ck.linear_cross_entropy_grads(X, W, np.array([0, 9]))),
    (ValueError, r"linear_cross_entropy_backward\(\): 'out.weight' is written and overlaps 'weight'",
     lambda: ck.linear_cross_entropy_backward(1.0, MEAN(), out=Gradients(None, W))),
    (ValueError, r"linear_cross_entropy_backward\(\): 'out.x' is written and overlaps 'x'",
     lambda: ck.linear_cross_entropy_backward(1.0, MEAN(), out=Gradients(X))),
])
def test_linear_cross_entropy_refuses(error, text, call):
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_linear_cross_entropy_reports_a_lack_of_memory(dtype):
    x, weight, target = np.ones((300, 600), dtype), np.ones((3000, 600), dtype), np.zeros(300, np.int64)
    ctx = ck.linear_cross_entropy_forward(x, weight, target)[1]
    loss, out = np.full((), 7, "f4"), Gradients(np.full_like(x, 7), np.full_like(weight, 7))
    ck._ck.fail_allocation(1)
    with pytest.raises(MemoryError, match="linear_cross_entropy"):
        ck.linear_cross_entropy(x, weight, target, out=loss)
    ck._ck.fail_allocation(1)
    with pytest.raises(MemoryError, match="linear_cross_entropy_backward"):
        ck.linear_cross_entropy_backward(1.0, ctx, out=out)
    for n in 1, 2:
        ck._ck.fail_allocation(n)
        with pytest.raises(MemoryError, match="linear_cross_entropy_grads"):
            ck.linear_cross_entropy_grads(x, weight, target, out=out)
    assert loss == 7 and (out.x == 7).all() and (out.weight == 7).all()
