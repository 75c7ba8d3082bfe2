import math

import numpy as np
import pytest
import torch

import ckernels as ck
from ckernels.parity import assert_parity
from guard import gaps_untouched, guarded, spaced
from optimizers import assert_rounded_once, assert_same_course, normal, run_ours, run_torch

SHAPES = [(c,) for c in (1, 7, 8, 9, 15, 16, 17, 31, 32, 33)] + [(3, 5), (2, 3, 17), (20000,), (64, 96), ()]
OPTIONS = [
    {},
    {"lr": 0.03, "weight_decay": 0.0},
    {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-5, "weight_decay": 0.3},
    {"lr": 0.01, "amsgrad": True},
    {"lr": 0.01, "maximize": True, "weight_decay": 0.1},
    {"lr": 0.01, "betas": (0.3, 0.9), "eps": 0.01},
    {"lr": 0.01, "betas": (0.0, 0.0), "eps": 1e-3},
]
AdamW = ck.optim.AdamW


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_adamw_matches_torch(isa, dtype, rng, options):
    arrays, steps = [normal(rng, s, dtype) for s in SHAPES], [[normal(rng, s, dtype) for s in SHAPES] for _ in range(3)]
    assert_same_course("AdamW", arrays, steps, options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("max_norm", [0.7, 1e9])
def test_adamw_clips_as_torch(isa, dtype, rng, options, max_norm):
    shapes = [(33,), (5, 17), (1,), (40, 500)]
    arrays = [normal(rng, s, dtype) for s in shapes]
    assert_same_course("AdamW", arrays, [[normal(rng, s, dtype) for s in shapes] for _ in range(3)], options, max_norm)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_adamw_state_has_the_bits_of_torch(rng, options):
    """The parameter itself has not: torch's square root is not always the nearest float."""
    arrays, steps = [normal(rng, (40, 501))], [[normal(rng, (40, 501))] for _ in range(3)]
    theirs = run_torch("AdamW", None, arrays, steps, options)[1].state_dict()["state"][0]
    for isa in {"avx2", "avx512"} & set(ck.isas()):
        with ck.use(isa):
            ours = run_ours("AdamW", arrays, steps, options)[1].state[0]
        assert list(ours) == list(theirs)
        for name, value in ours.items():
            np.testing.assert_array_equal(value, theirs[name].numpy())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_adamw_rounds_16_bits_once(isa, dtype, rng, options):
    if isa == "reference":  # rounds from double, straight to 16 bits
        arrays = [normal(rng, (40, 37), dtype)]
        assert_same_course("AdamW", arrays, [[normal(rng, (40, 37), dtype)]], options)
    else:
        assert_rounded_once("AdamW", dtype, rng, options)


def test_adamw_has_the_same_bits_on_avx2_and_avx512(dtype, rng):
    arrays, steps = [normal(rng, (40, 37), dtype)], [[normal(rng, (40, 37), dtype)] for _ in range(2)]
    bits = set()
    for isa in {"avx2", "avx512"} & set(ck.isas()):
        with ck.use(isa):
            ours, optimizer, _ = run_ours("AdamW", arrays, steps, OPTIONS[3], 0.5)
        bits.add(b"".join([ours[0].tobytes(), *(a.tobytes() for a in optimizer.state[0].values())]))
    assert len(bits) <= 1


# ---- faults that a comparison must see ----


def by_hand(p, steps, *, lr, betas, eps, weight_decay, fault=None, max_norm=None):
    """AdamW as its paper writes it, in float64, with one thing wrong."""
    b1, b2 = betas
    p, m, v = p.astype("f8"), 0.0, 0.0
    for t, (grad,) in enumerate(steps, start=1):
        g = grad.astype("f8")
        scale = 1.0 if max_norm is None else min(1.0, max_norm / (math.sqrt((g * g).sum()) + 1e-6))
        g = g * (1.0 if fault == "clip after the step" else scale)
        if fault == "coupled decay":
            g = g + weight_decay * p
        before = p
        if fault not in ("coupled decay", "decay after", "no decay"):
            p = p * (1 - lr * weight_decay)
        m = (0.0 if fault == "stale average" else b1 * m) + (1 - b1) * g
        v = (0.0 if fault == "stale square" else b2 * v) + (1 - b2) * g * g
        n = {"correction off by one": t + 1, "correction of the step before": max(t - 1, 1), "no correction": math.inf}.get(fault, t)
        c1, c2 = (1 - b1**n, 1 - b2**n) if n != math.inf else (1.0, 1.0)
        if fault == "correction of the average alone":
            c2 = 1.0
        if fault == "eps inside":
            d = np.sqrt(v / c2 + eps)
        elif fault == "eps before the correction":
            d = (np.sqrt(v) + eps) / math.sqrt(c2)
        else:
            d = np.sqrt(v / c2) + (0.0 if fault == "no eps" else eps)
        p = p - lr / c1 * m / d
        if fault == "decay after":
            p = p * (1 - lr * weight_decay)
        if fault == "decay of the old":
            p = before - (before - p) + 0 * before - lr * weight_decay * (p - before)
        if fault == "clip after the step":
            p = before + (p - before) * scale
    return p


FAULTS = [
    "eps inside", "eps before the correction", "no eps", "no correction", "correction off by one",
    "correction of the step before", "correction of the average alone", "coupled decay", "decay after", "no decay",
    "stale average", "stale square", "clip after the step",
]  # fmt: skip
HAND = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.1}


def test_adamw_by_hand_is_torch(rng):
    p, steps = normal(rng, (33, 17)), [[normal(rng, (33, 17))] for _ in range(4)]
    exact = run_torch("AdamW", "float64", [p], steps, HAND, 3.0)[0][0].numpy()
    np.testing.assert_allclose(by_hand(p, steps, max_norm=3.0, **HAND), exact, rtol=1e-12)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_sees(rng, fault):
    p, steps = normal(rng, (33, 17)), [[normal(rng, (33, 17))] for _ in range(4)]
    exact, peer = (run_torch("AdamW", precision, [p], steps, HAND, 3.0)[0][0] for precision in ("float64", None))
    terms = float(max(np.abs(p).max(), *(np.abs(g[0]).max() for g in steps)))
    assert_parity(by_hand(p, steps, max_norm=3.0, **HAND).astype("f4"), exact, peer, terms=terms)
    with pytest.raises(AssertionError):
        assert_parity(by_hand(p, steps, max_norm=3.0, fault=fault, **HAND).astype("f4"), exact, peer, terms=terms)


# ---- what a step leaves alone ----


def test_adamw_leaves_a_parameter_without_gradient_alone(isa, dtype, rng):
    shapes = [(4, 9), (7,)]
    arrays = [normal(rng, s, dtype) for s in shapes]
    steps = [[normal(rng, (4, 9), dtype), None], [normal(rng, s, dtype) for s in shapes],
             [None, normal(rng, (7,), dtype)]]  # fmt: skip
    assert_same_course("AdamW", arrays, steps, {"lr": 0.1, "weight_decay": 0.3}, max_norm=2.0)
    params = {"a": guarded(arrays[0]), "b": guarded(arrays[1])}
    optimizer = AdamW(params, lr=0.1)
    optimizer.step({"a": steps[0][0]})
    assert params["b"].tobytes() == arrays[1].tobytes()
    assert list(optimizer.state) == [0]


def test_adamw_takes_groups(isa, rng):
    arrays, steps = {n: normal(rng, (3, 17)) for n in "abc"}, [{n: normal(rng, (3, 17)) for n in "cab"} for _ in range(3)]
    alone = {n: guarded(a) for n, a in arrays.items()}
    ours = AdamW([{"params": {"a": arrays["a"], "b": arrays["b"]}, "weight_decay": 0.0},
                  {"params": {"c": arrays["c"]}, "lr": 0.1}], lr=0.02)  # fmt: skip
    one, two = AdamW({n: alone[n] for n in "ab"}, lr=0.02, weight_decay=0.0), AdamW({"c": alone["c"]}, lr=0.1)
    for grads in steps:
        ours.step(grads)
        one.step({n: grads[n] for n in "ab"})
        two.step({"c": grads["c"]})
    assert all(arrays[n].tobytes() == alone[n].tobytes() for n in "abc")
    assert [group["params"] for group in ours.param_groups] == [[0, 1], [2]]
    assert [group["param_names"] for group in ours.param_groups] == [["a", "b"], ["c"]]
    assert (ours.param_groups[0]["weight_decay"], ours.param_groups[1]["lr"]) == (0.0, 0.1)


def test_adamw_takes_dtypes_side_by_side(isa, dtype, rng):
    arrays = {"weight": normal(rng, (5, 17), dtype), "norm": normal(rng, (17,))}
    alone = {n: guarded(a) for n, a in arrays.items()}
    grads = {"weight": normal(rng, (5, 17)), "norm": normal(rng, (17,))}  # float32 beside what may be 16 bits
    AdamW(arrays, lr=0.1).step(grads)
    for name in arrays:
        AdamW({name: alone[name]}, lr=0.1).step({name: grads[name]})
        assert arrays[name].tobytes() == alone[name].tobytes()


@pytest.mark.parametrize("wide", [False, True])
def test_adamw_zeroes_gradients_on_request(isa, dtype, rng, wide):
    shapes = [(5, 17), (40,)]
    arrays = [normal(rng, s, dtype) for s in shapes]
    grads = [normal(rng, s, np.float32 if wide else dtype) for s in shapes]
    other, kept = [guarded(a) for a in arrays], [guarded(g) for g in grads]
    bits = [g.tobytes() for g in kept]
    AdamW(arrays).step(grads, zero_grads=True)
    AdamW(other).step(kept)
    assert not any(g.any() for g in grads) and [g.tobytes() for g in kept] == bits
    assert [a.tobytes() for a in arrays] == [a.tobytes() for a in other]


def test_adamw_reads_options_at_every_step(isa, rng):
    p, g = normal(rng, (33,)), normal(rng, (33,))
    before = p.copy()
    optimizer = AdamW([p], lr=0.1)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step([g])
    assert p.tobytes() == before.tobytes() and float(optimizer.state[0]["step"]) == 1
    optimizer.param_groups[0]["amsgrad"] = True
    optimizer.step([g])
    assert list(optimizer.state[0]) == ["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"]


# ---- state that travels ----


@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
def test_adamw_state_travels(isa, dtype, rng, options):
    shapes = [(3, 17), (5,), ()]
    arrays, steps = [normal(rng, s, dtype) for s in shapes], [[normal(rng, s, dtype) for s in shapes] for _ in range(4)]
    whole, optimizer, _ = run_ours("AdamW", arrays, steps, options)
    half, first, _ = run_ours("AdamW", arrays, steps[:2], options)
    second = AdamW(half, lr=7.0)
    second.load_state_dict(first.state_dict())
    first.state[0]["exp_avg"][:] = np.nan  # a copy was taken
    for grads in steps[2:]:
        second.step(grads)
    assert [a.tobytes() for a in half] == [a.tobytes() for a in whole]

    peers, theirs, _ = run_torch("AdamW", None, arrays, steps[:2], options)
    assert set(optimizer.state_dict()) == set(theirs.state_dict())
    assert set(optimizer.state_dict()["param_groups"][0]) == set(theirs.state_dict()["param_groups"][0])
    assert list(optimizer.state_dict()["state"][0]) == list(theirs.state_dict()["state"][0])
    third = AdamW(half, lr=7.0)
    third.load_state_dict(theirs.state_dict())
    for i, entry in theirs.state_dict()["state"].items():
        for name, tensor in entry.items():
            assert third.state[i][name].dtype == np.float32
            np.testing.assert_array_equal(third.state[i][name], tensor.float().numpy())
    assert third.param_groups[0]["lr"] == options.get("lr", 1e-3)


def test_torch_takes_our_state(rng):
    arrays, steps = [normal(rng, (3, 17))], [[normal(rng, (3, 17))] for _ in range(4)]
    ours, optimizer, _ = run_ours("AdamW", arrays, steps[:2], {"lr": 0.02})
    state = optimizer.state_dict()
    state["state"] = {i: {name: torch.tensor(a) for name, a in entry.items()} for i, entry in state["state"].items()}
    parameter = torch.nn.Parameter(torch.tensor(ours[0]))
    peer = torch.optim.AdamW([parameter], lr=7.0)
    peer.load_state_dict(state)
    for (grad,) in steps[2:]:
        parameter.grad = torch.tensor(grad)
        peer.step()
        optimizer.step([grad])
    exact = run_torch("AdamW", "float64", arrays, steps, {"lr": 0.02})[0][0]
    assert_parity(ours[0], exact, parameter.detach())
    assert float(peer.state_dict()["state"][0]["step"]) == 4


# ---- where and how much ----


def test_adamw_bits_do_not_depend_on_threads(isa, dtype, rng):
    shapes = [(300, 333), (7,), (1,), (5, 5), (33, 500)]
    arrays, steps = [normal(rng, s, dtype) for s in shapes], [[normal(rng, s, dtype) for s in shapes] for _ in range(2)]

    def everything():
        params, optimizer, norms = run_ours("AdamW", arrays, steps, OPTIONS[3], 0.7)
        return [p.tobytes() for p in params], [a.tobytes() for s in optimizer.state.values() for a in s.values()], norms

    ck.set_num_threads(1)
    alone = everything()
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything() == alone


def test_adamw_of_a_list_is_that_of_each(isa, dtype, rng):
    """Small and empty tensors between large ones: what a task holds changes nothing."""
    shapes = [(1,), (0, 3), (16383,), (17,), (16385,), (2, 0), (3, 11), (40000,), (5,)]
    arrays, grads = ([normal(rng, s, dtype) for s in shapes] for _ in range(2))
    alone = [guarded(a) for a in arrays]
    AdamW(arrays, lr=0.1).step(grads)
    for a, g in zip(alone, grads, strict=True):
        AdamW([a], lr=0.1).step([g])
    assert [a.tobytes() for a in arrays] == [a.tobytes() for a in alone]


def test_adamw_takes_strided_views(isa, dtype, rng):
    plain, grads = normal(rng, (6, 5, 33), dtype), [normal(rng, (6, 5, 33), dtype) for _ in range(2)]
    apart = spaced(plain)
    one, two = AdamW([plain], **OPTIONS[3]), AdamW([apart], **OPTIONS[3])
    for g in grads:
        one.step([g])
        two.step([spaced(g)], zero_grads=True)
    assert apart.tobytes() == plain.tobytes()
    assert gaps_untouched(apart)


def test_adamw_takes_tensors(isa, dtype, rng):
    p, g = normal(rng, (3, 17), dtype), normal(rng, (3, 17), dtype)
    from parity import as_torch

    tensor = as_torch(p)
    AdamW({"w": tensor}, lr=0.1).step({"w": as_torch(g)})
    AdamW({"w": p}, lr=0.1).step({"w": g})
    np.testing.assert_array_equal(tensor.float().numpy(), p.astype("f4"))


def test_adamw_of_extremes(isa):
    p = np.array([1, 1, 1, 1, -200, np.inf], "f4")
    g = np.array([np.nan, np.inf, 0, 1e-42, 3e38, 1], "f4")
    optimizer = AdamW([p], lr=1.0, weight_decay=0.0)
    optimizer.step([g])
    want = torch.nn.Parameter(torch.tensor([1, 1, 1, 1, -200, np.inf]))
    want.grad = torch.tensor(g)
    torch.optim.AdamW([want], lr=1.0, weight_decay=0.0, foreach=False).step()
    np.testing.assert_array_equal(np.isnan(p), np.isnan(want.detach().numpy()))
    np.testing.assert_array_equal(np.isnan(p), [True, True, False, False, False, False])
    assert p[2] == 1
    p = np.ones(2, "f4")
    norm = AdamW([p], lr=1.0).step([np.array([np.nan, 1], "f4")], max_norm=1.0)
    assert math.isnan(norm) and np.isnan(p).all()  # as torch: a NaN norm makes NaN of all


def test_a_nan_square_stays_with_amsgrad(isa):
    p, nan = np.ones(2, "f4"), np.array([np.nan, 1], "f4")
    optimizer = AdamW([p], amsgrad=True)
    optimizer.step([nan])
    optimizer.step([np.ones(2, "f4")])
    assert np.isnan(optimizer.state[0]["max_exp_avg_sq"]).tolist() == [True, False]
    optimizer.state[0]["exp_avg_sq"][:] = optimizer.state[0]["exp_avg"][:] = 1
    optimizer.step([np.ones(2, "f4")])
    assert np.isnan(optimizer.state[0]["max_exp_avg_sq"]).tolist() == [True, False]


def test_adamw_takes_a_number_of_numpy_as_gradient(isa, dtype):
    """Sums of gradients come as scalars."""
    ours, twin, grad = np.ones((), dtype), np.ones((), dtype), np.full((), 0.5, dtype)
    AdamW({"w": ours}, lr=0.1).step({"w": grad[()]})
    AdamW({"w": twin}, lr=0.1).step({"w": grad})
    assert isinstance(grad[()], np.generic) and ours.tobytes() == twin.tobytes() and ours != 1


class Lends:
    """A gradient whose memory cannot be had, for a reason of its own."""

    shape = (2, 8)

    def __init__(self, error):
        self.error = error

    def __dlpack_device__(self):
        raise self.error

    __dlpack__ = __dlpack_device__


def test_what_interrupts_a_gradient_is_raised_as_it_is():
    p = np.ones((2, 8), "f4")
    for error in (KeyboardInterrupt("now"), SystemExit(3)):
        with pytest.raises(type(error)) as raised:
            AdamW({"w": p}).step({"w": Lends(error)})
        assert raised.value is error
    with pytest.raises(TypeError, match=r"AdamW.step\(\): 'grads'\['w'\] does not lend its memory: not today"):
        AdamW({"w": p}).step({"w": Lends(BufferError("not today"))})
    assert (p == 1).all()


def test_a_number_that_raises_is_quoted():
    class Raises:
        def __float__(self):
            raise ValueError("no number today")

    optimizer = AdamW([np.ones(3, "f4")])
    optimizer.param_groups[0]["lr"] = Raises()
    with pytest.raises(ValueError, match=r"AdamW.step\(\): no number today"):
        optimizer.step([np.ones(3, "f4")])


@pytest.mark.parametrize("op", ["adamw_step", "sgd_step"])
def test_what_is_zeroed_has_the_types_of_the_gradients(op, rng):
    """A kernel asks the gradient alone how wide both are."""
    import declared

    args = declared.arguments(op, rng, dtype=np.float16, weights=np.float32)
    names = [p.name for p in declared.parameters(op)]
    zeroed, grads = names.index("zeroed"), names.index("grads")
    args[zeroed] = [args[grads][0].astype("f2")]
    with pytest.raises(TypeError, match=r"step\(\): 'zeroed' must be 'grads', or of their dtypes"):
        getattr(ck._ck, op)(*args)


def test_adamw_of_nothing(isa, dtype):
    empty = np.ones((0, 5), dtype)
    assert AdamW([empty]).step([empty.copy()], max_norm=1.0) == 0.0
    assert AdamW({}).step({}) is None


# ---- refusals ----

P = np.ones((2, 8), "f4")
READ_ONLY = np.ones((2, 8), "f4")
READ_ONLY.flags.writeable = False
STATE = {"step": np.float32(1), "exp_avg": P, "exp_avg_sq": P}


def load(optimizer, **entry):
    optimizer.load_state_dict(optimizer.state_dict() | {"state": {0: entry}})


REFUSALS = [
    (TypeError, r"AdamW\(\): 'params' must be a dict or a list", lambda: AdamW(P)),
    (TypeError, r"AdamW\(\): 'params'\[0\] must be an array, not float", lambda: AdamW([1.0])),
    (TypeError, r"AdamW\(\): 'params'\['w'\] must be float32, float16 or bfloat16, not float64",
     lambda: AdamW({"w": P.astype("f8")})),
    (ValueError, r"AdamW\(\): 'params'\['w'\] is written, but read-only", lambda: AdamW({"w": READ_ONLY})),
    (ValueError, r"AdamW\(\): 'params'\['w'\] is written, and its elements overlap",
     lambda: AdamW({"w": np.lib.stride_tricks.as_strided(P.copy(), (2, 8), (0, 4))})),
    (ValueError, r"AdamW\(\): 'params'\[0\] must be contiguous along its last axis", lambda: AdamW([P[:, ::2]])),
    (ValueError, r"AdamW\(\): 'params' holds the same array twice", lambda: AdamW([P, P])),
    (ValueError, r"AdamW\(\): 'params'\['a'\] is written and overlaps 'params'\['b'\]",
     lambda: AdamW({"a": P, "b": P[:1]})),
    (TypeError, r"AdamW\(\): 'params'\['w'\] must be an array, not float32", lambda: AdamW({"w": np.float32(1)})),
    (TypeError, r"AdamW.step\(\): 'grads'\['w'\] must be an array to be zeroed, not float32",
     lambda: AdamW({"w": np.ones((), "f4")}).step({"w": np.float32(1)}, zero_grads=True)),
    (ValueError, r"AdamW\(\): a group of 'params' has no 'params'", lambda: AdamW([{"lr": 1}])),
    (ValueError, r"AdamW\(\): a group of 'params' has 'momentum', which is no option",
     lambda: AdamW([{"params": [P], "momentum": 1}])),
    (ValueError, r"AdamW\(\): a key of 'params' stands in two groups",
     lambda: AdamW([{"params": {"a": P}}, {"params": {"a": P + 1}}])),
    (TypeError, r"AdamW\(\): 'lr' must be a number, not str", lambda: AdamW([P], lr="1")),
    (ValueError, r"AdamW\(\): 'lr' must be at least 0, not -1", lambda: AdamW([P], -1)),
    (ValueError, r"AdamW\(\): 'lr' must be at least 0, not nan", lambda: AdamW([P], math.nan)),
    (ValueError, r"AdamW\(\): 'eps' must be at least 0, not -1", lambda: AdamW([P], eps=-1)),
    (ValueError, r"AdamW\(\): 'weight_decay' must be at least 0", lambda: AdamW([P], weight_decay=-1)),
    (TypeError, r"AdamW\(\): 'betas' must be two numbers, not 0.9", lambda: AdamW([P], betas=0.9)),
    (ValueError, r"AdamW\(\): 'betas\[1\]' must be at least 0 and below 1, not 1", lambda: AdamW([P], betas=(0.9, 1))),
    (ValueError, r"AdamW\(\): 'betas\[0\]' must be at least 0 and below 1, not -0.1", lambda: AdamW([P], betas=(-0.1, 0))),
    (ValueError, r"AdamW.step\(\): 'grads' has 'x', which is no parameter", lambda: AdamW({"w": P}).step({"x": P})),
    (ValueError, r"AdamW.step\(\): 'grads' must be keyed like the 1 parameters", lambda: AdamW([P]).step([P, P])),
    (ValueError, r"AdamW.step\(\): 'params'\[0\] is written and overlaps 'grads'\[0\]", lambda: AdamW([P]).step([P])),
    (ValueError, r"AdamW.step\(\): 'max_norm' must be at least 0, not -1", lambda: AdamW([P]).step([P + 1], max_norm=-1)),
    (ValueError, r"AdamW.step\(\): 'grads'\[0\] is written, but read-only",
     lambda: AdamW([P]).step([READ_ONLY], zero_grads=True)),
    (TypeError, r"AdamW.load_state_dict\(\): 'state_dict' must be a dict", lambda: AdamW([P]).load_state_dict(None)),
    (ValueError, r"AdamW.load_state_dict\(\): 'state_dict' has no 'state'", lambda: AdamW([P]).load_state_dict({})),
    (ValueError, r"AdamW.load_state_dict\(\): groups of 1 parameters expected",
     lambda: AdamW([P]).load_state_dict(AdamW([]).state_dict())),
    (ValueError, r"AdamW.load_state_dict\(\): the state of 0 has no 'exp_avg_sq'",
     lambda: load(AdamW([P]), step=np.float32(1), exp_avg=P)),
    (ValueError, r"AdamW.load_state_dict\(\): 'exp_avg' of 0 has shape \(1, 8\), not \(2, 8\)",
     lambda: load(AdamW([P]), **STATE | {"exp_avg": P[:1]})),
    (ValueError, r"AdamW.load_state_dict\(\): state of 0: 'step' must be at least 0, not -1",
     lambda: load(AdamW([P]), **STATE | {"step": np.float32(-1)})),
]  # fmt: skip


@pytest.mark.parametrize("error, text, call", REFUSALS)
def test_adamw_refuses(error, text, call):
    before = P.copy()
    with pytest.raises(error, match=text):
        call()
    np.testing.assert_array_equal(P, before)


@pytest.mark.parametrize(
    "bad, error, text",
    [
        (np.ones((2, 7), "f4"), ValueError, r"'grads'\['b'\] has shape \(2, 7\), the parameter \(2, 8\)"),
        (np.ones((2, 8)), TypeError, r"'grads'\['b'\] must be float32(, float16 or bfloat16)?, not float64"),
        (np.ones((2, 8), "f2"), TypeError, r"'grads'\['b'\] must be float32, not float16"),
        (np.ones((2, 16), "f4")[:, ::2], ValueError, r"'grads'\['b'\] must be contiguous"),
        (np.ones((2, 8), ">f4"), ValueError, r"'grads'\['b'\] must be aligned and of native byte order"),
        (np.ma.array(np.ones((2, 8), "f4")), TypeError, r"'grads'\['b'\] is a masked array"),
        (1.0, TypeError, r"'grads'\['b'\] must be an array, not float"),
    ],
)
@pytest.mark.parametrize("beside", ["f4", "f2"])
def test_adamw_updates_nothing_when_one_gradient_is_refused(isa, bad, error, text, beside):
    params = {"a": np.ones((2, 8), beside), "b": np.ones((2, 8), "f4")}
    optimizer = AdamW(params)
    with pytest.raises(error, match=r"AdamW.step\(\): " + text):
        optimizer.step({"a": np.ones((2, 8), beside), "b": bad}, max_norm=1.0)
    assert (params["a"] == 1).all() and (params["b"] == 1).all() and not optimizer.state
