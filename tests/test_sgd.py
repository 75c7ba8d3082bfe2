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
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.03},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.03},
    {"lr": 0.1, "momentum": 0.9, "maximize": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sgd_matches_torch(isa, dtype, rng, options):
    arrays, steps = [normal(rng, s, dtype) for s in SHAPES], [[normal(rng, s, dtype) for s in SHAPES] for _ in range(3)]
    assert_same_course("SGD", arrays, steps, options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("max_norm", [12.0, 1e9])
def test_sgd_clips_as_torch(isa, dtype, rng, options, max_norm):
    shapes = [(33,), (5, 17), (1,), (10, 50)]
    arrays = [normal(rng, s, dtype) for s in shapes]
    assert_same_course("SGD", arrays, [[normal(rng, s, dtype) for s in shapes] for _ in range(3)], options, max_norm)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sgd_rounds_16_bits_once(isa, dtype, rng, options):
    if isa == "reference":  # rounds from double, straight to 16 bits
        arrays = [normal(rng, (40, 37), dtype)]
        assert_same_course("SGD", arrays, [[normal(rng, (40, 37), dtype)]], options)
    else:
        assert_rounded_once("SGD", dtype, rng, options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sgd_has_the_bits_of_torch(rng, options):
    arrays, steps = [normal(rng, (40, 501))], [[normal(rng, (40, 501))] for _ in range(3)]
    for isa in {"avx2", "avx512"} & set(ck.isas()):
        with ck.use(isa):
            ours = run_ours("SGD", arrays, steps, options)[0]
        np.testing.assert_array_equal(ours[0], run_torch("SGD", None, arrays, steps, options)[0][0].numpy())


def test_sgd_takes_a_dict(isa, rng):
    arrays, grads = {n: normal(rng, (3, 5)) for n in "ab"}, {n: normal(rng, (3, 5)) for n in "ba"}
    kept = {n: g.tobytes() for n, g in grads.items()}
    want = [a - np.float32(0.5) * grads[n] for n, a in arrays.items()]
    assert ck.optim.SGD(arrays, 0.5).step(grads) is None
    for (n, a), w in zip(arrays.items(), want, strict=True):
        np.testing.assert_array_equal(a, w)
        assert grads[n].tobytes() == kept[n]  # gradients are not modified


def test_sgd_leaves_a_parameter_without_gradient_alone(isa, dtype, rng):
    arrays = [normal(rng, (4, 9), dtype), normal(rng, (7,), dtype)]
    steps = [[normal(rng, (4, 9), dtype), None], [normal(rng, (4, 9), dtype), normal(rng, (7,), dtype)],
             [None, normal(rng, (7,), dtype)]]  # fmt: skip
    options = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}
    assert_same_course("SGD", arrays, steps, options, max_norm=2.0)
    params = {"a": guarded(arrays[0]), "b": guarded(arrays[1])}
    optimizer = ck.optim.SGD(params, **options)
    optimizer.step({"a": steps[0][0]})
    assert params["b"].tobytes() == arrays[1].tobytes()
    assert list(optimizer.state) == [0]


def test_sgd_reads_options_at_every_step(isa, rng):
    p, g = normal(rng, (33,)), normal(rng, (33,))
    before = p.copy()
    optimizer = ck.optim.SGD([p], lr=0.1)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step([g])
    assert p.tobytes() == before.tobytes()


def test_sgd_state_travels(isa, rng):
    arrays, steps = (
        [normal(rng, (3, 17)), normal(rng, (5,))],
        [[normal(rng, (3, 17)), normal(rng, (5,))] for _ in range(4)],
    )
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    whole, optimizer, _ = run_ours("SGD", arrays, steps, options)
    half, first, _ = run_ours("SGD", arrays, steps[:2], options)
    second = ck.optim.SGD(half, lr=7.0)
    second.load_state_dict(first.state_dict())
    first.state[0]["momentum_buffer"][:] = np.nan  # a copy was taken
    for grads in steps[2:]:
        second.step(grads)
    assert [a.tobytes() for a in half] == [a.tobytes() for a in whole]

    peers, theirs, _ = run_torch("SGD", None, arrays, steps[:2], options)
    assert set(optimizer.state_dict()) == set(theirs.state_dict())
    assert set(optimizer.state_dict()["param_groups"][0]) == set(theirs.state_dict()["param_groups"][0])
    assert set(optimizer.state_dict()["state"][0]) == set(theirs.state_dict()["state"][0])
    ours = [guarded(p.numpy()) for p in peers]
    third = ck.optim.SGD(ours, lr=7.0)
    third.load_state_dict(theirs.state_dict())
    for grads in steps[2:]:
        third.step(grads)
    exact, peer = (run_torch("SGD", p, arrays, steps, options)[0] for p in ("float64", None))
    for a, e, p in zip(ours, exact, peer, strict=True):
        assert_parity(a, e, p)


def test_sgd_bits_do_not_depend_on_threads(isa, dtype, rng):
    shapes = [(300, 333), (5,), (33, 500)]
    arrays, steps = [normal(rng, s, dtype) for s in shapes], [[normal(rng, s, dtype) for s in shapes] for _ in range(2)]

    def everything():
        params, optimizer, norms = run_ours("SGD", arrays, steps, OPTIONS[4], 0.7)
        return [p.tobytes() for p in params], [s["momentum_buffer"].tobytes() for s in optimizer.state.values()], norms

    ck.set_num_threads(1)
    alone = everything()
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything() == alone


def test_sgd_norm_does_not_depend_on_isa_or_strides(rng):
    g = (rng.standard_normal((7, 9, 333)) * 10.0 ** rng.integers(-15, 15, (7, 9, 1))).astype("f4")
    views = [g, spaced(g), spaced(g.transpose(1, 0, 2)).transpose(1, 0, 2)]
    norms = set()
    for isa in set(ck.isas()) - {"reference"}:
        with ck.use(isa):
            norms |= {ck.optim.SGD([np.zeros_like(g)]).step([v], max_norm=1.0) for v in views}
    assert len(norms) == 1
    exact = math.sqrt(math.fsum(float(v) ** 2 for v in g.ravel()))
    assert abs(norms.pop() - exact) <= 1e-14 * exact


def test_sgd_takes_strided_views(isa, dtype, rng):
    plain, grads = normal(rng, (6, 5, 33), dtype), [normal(rng, (6, 5, 33), dtype) for _ in range(2)]
    apart = spaced(plain)
    one, two = ck.optim.SGD([plain], **OPTIONS[3]), ck.optim.SGD([apart], **OPTIONS[3])
    for g in grads:
        one.step([g])
        two.step([spaced(g)])
    np.testing.assert_array_equal(apart, plain)
    assert gaps_untouched(apart)


def test_sgd_of_extremes(isa):
    p = np.array([1, 1, 1, 1e-42, -200, 3e38, np.inf], "f4")
    g = np.array([np.nan, np.inf, -np.inf, 1e-42, 200, -3e38, 1], "f4")
    ck.optim.SGD([p], lr=1.0).step([g])  # neither momentum nor decay 0 may meet inf
    np.testing.assert_array_equal(p, np.array([np.nan, -np.inf, np.inf, 0, -400, np.inf, np.inf], "f4"))
    p = np.ones(2, "f4")
    norm = ck.optim.SGD([p], lr=1.0).step([np.array([np.nan, 1], "f4")], max_norm=1.0)
    assert math.isnan(norm) and np.isnan(p).all()  # as torch: a NaN norm makes NaN of all


def test_sgd_of_nothing(isa, dtype):
    empty = np.ones((0, 5), dtype)
    assert ck.optim.SGD([empty], momentum=0.9).step([empty.copy()], max_norm=1.0) == 0.0
    assert ck.optim.SGD({}).step({}) is None


def test_sgd_zeroes_gradients_on_request(isa, dtype, rng):
    for wide in (False, True):
        p, g = normal(rng, (5, 17), dtype), normal(rng, (5, 17), np.float32 if wide else dtype)
        q, h = guarded(p), guarded(g)
        one, two = ck.optim.SGD([p], **OPTIONS[3]), ck.optim.SGD([q], **OPTIONS[3])
        for _ in range(2):
            g[...] = h
            one.step([g], zero_grads=True)
            two.step([h])
            assert not g.any() and p.tobytes() == q.tobytes()


def test_sgd_takes_groups(isa, rng):
    arrays, grads = {n: normal(rng, (3, 17)) for n in "abc"}, {n: normal(rng, (3, 17)) for n in "bca"}
    want = {"a": arrays["a"] - np.float32(0.5) * grads["a"], "b": arrays["b"] + 0, "c": arrays["c"] - grads["c"]}
    ck.optim.SGD([{"params": {"a": arrays["a"]}}, {"params": {"c": arrays["c"]}, "lr": 1.0}], 0.5).step(
        {n: grads[n] for n in "ac"})  # fmt: skip
    for n in "abc":
        np.testing.assert_array_equal(arrays[n], want[n])


P = np.ones((2, 8), "f4")
READ_ONLY = np.ones((2, 8), "f4")
READ_ONLY.flags.writeable = False
SGD = ck.optim.SGD
REFUSALS = [
    (TypeError, r"SGD\(\): 'params' must be a dict or a list", lambda: SGD(P)),
    (TypeError, r"SGD\(\): 'params'\[0\] must be an array, not float", lambda: SGD([1.0])),
    (TypeError, r"SGD\(\): 'params'\['w'\] must be float32, float16 or bfloat16, not float64", lambda: SGD({"w": P.astype("f8")})),
    (ValueError, r"SGD\(\): 'params'\['w'\] is written, but read-only", lambda: SGD({"w": READ_ONLY})),
    (ValueError, r"SGD\(\): 'params'\[0\] must be contiguous along its last axis", lambda: SGD([P[:, ::2]])),
    (ValueError, r"SGD\(\): 'params' holds the same array twice", lambda: SGD([P, P])),
    (ValueError, r"SGD\(\): 'params'\[0\] is written and overlaps 'params'\[1\]", lambda: SGD([P, P[:1]])),
    (ValueError, r"SGD\(\): 'params'\['a'\] is written and overlaps 'params'\['c'\]",
     lambda: SGD({"a": P, "b": P + 1, "c": torch.from_numpy(P)[1]})),
    (TypeError, r"SGD\(\): 'momentum' must be a number, not str", lambda: SGD([P], momentum="1", nesterov=True)),
    (ValueError, r"SGD\(\): 'lr' must be at least 0, not -1", lambda: SGD([P], -1)),
    (ValueError, r"SGD\(\): 'lr' must be at least 0, not nan", lambda: SGD([P], math.nan)),
    (TypeError, r"SGD\(\): 'lr' must be a number, not str", lambda: SGD([P], "1")),
    (ValueError, r"SGD\(\): 'momentum' must be at least 0", lambda: SGD([P], momentum=-0.1)),
    (ValueError, r"SGD\(\): 'nesterov' needs a momentum", lambda: SGD([P], nesterov=True)),
    (
        ValueError,
        r"SGD\(\): 'nesterov' needs .* zero dampening",
        lambda: SGD([P], momentum=1, dampening=1, nesterov=True),
    ),
    (ValueError, r"SGD.step\(\): 'grads' has 'x', which is no parameter", lambda: SGD({"w": P}).step({"x": P})),
    (ValueError, r"SGD.step\(\): 'grads' must be keyed like the 1 parameters", lambda: SGD([P]).step([P, P])),
    (ValueError, r"SGD.step\(\): 'max_norm' must be at least 0, not -1", lambda: SGD([P]).step([P + 1], max_norm=-1)),
    (TypeError, r"SGD.step\(\): 'max_norm' must be a number", lambda: SGD([P]).step([P.copy()], max_norm="1")),
    (TypeError, r"SGD.load_state_dict\(\): 'state_dict' must be a dict", lambda: SGD([P]).load_state_dict(None)),
    (ValueError, r"SGD.load_state_dict\(\): 'state_dict' has no 'state'", lambda: SGD([P]).load_state_dict({})),
    (
        ValueError,
        r"SGD.load_state_dict\(\): the state of 'a' fits no parameter",
        lambda: SGD([P]).load_state_dict(SGD([P]).state_dict() | {"state": {"a": {"momentum_buffer": P}}}),
    ),
    (ValueError, r"SGD.load_state_dict\(\): groups of 1 parameters expected", lambda: SGD([P]).load_state_dict(SGD([]).state_dict())),
]


@pytest.mark.parametrize("error, text, call", REFUSALS)
def test_sgd_refuses(error, text, call):
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize(
    "bad, error, text",
    [
        (
            np.ones((2, 7), "f4"),
            ValueError,
            r"SGD.step\(\): 'grads'\['b'\] has shape \(2, 7\), the parameter \(2, 8\)",
        ),
        (np.ones((2, 8)), TypeError, r"SGD.step\(\): 'grads'\['b'\] must be float32(, float16 or bfloat16)?, not float64"),
        (np.ones((2, 16), "f4")[:, ::2], ValueError, r"SGD.step\(\): 'grads'\['b'\] must be contiguous"),
        (1.0, TypeError, r"SGD.step\(\): 'grads'\['b'\] must be an array, not float"),
    ],
)
def test_sgd_updates_nothing_when_one_gradient_is_refused(isa, bad, error, text):
    params = {"a": np.ones((2, 8), "f4"), "b": np.ones((2, 8), "f4")}
    optimizer = SGD(params, momentum=0.9)
    with pytest.raises(error, match=text):
        optimizer.step({"a": np.ones((2, 8), "f4"), "b": bad}, max_norm=1.0)
    assert (params["a"] == 1).all() and not optimizer.state


@pytest.mark.parametrize("kind", ["f4", "f2"])
def test_sgd_refuses_memory_that_groups_share(isa, kind):
    """A gradient of one group is a parameter, or a part of the state, of another; so are two parameters."""
    a, b = np.ones((2, 8), "f4"), np.ones((2, 8), kind)
    as_b = a.reshape(-1).view(kind)[:16].reshape(2, 8)
    groups = [{"params": {"a": a}}, {"params": {"b": b}, "lr": 0.5}]
    optimizer = SGD(groups, momentum=0.9)
    with pytest.raises(ValueError, match=r"SGD.step\(\): 'params'\['a'\] is written and overlaps 'grads'\['b'\]"):
        optimizer.step({"a": a + 1, "b": as_b})
    with pytest.raises(ValueError, match=r"SGD.step\(\): 'params'\['a'\] is written and overlaps 'grads'\['b'\]"):
        optimizer.step({"a": a + 1, "b": torch.from_numpy(as_b)})
    assert (a == 1).all() and (b == 1).all() and not optimizer.state
    optimizer.step({"a": a + 1, "b": b + 1})
    buffer = optimizer.state[0]["momentum_buffer"].reshape(-1).view(kind)[:16].reshape(2, 8)
    with pytest.raises(ValueError, match=r"'momentum_buffer'\['a'\] is written and overlaps 'grads'\['b'\]"):
        optimizer.step({"a": a + 1, "b": buffer})
    with pytest.raises(ValueError, match=r"SGD\(\): 'params'\['[ab]'\] is written and overlaps 'params'\['[ab]'\]"):
        SGD([{"params": {"a": a}}, {"params": {"b": as_b}}])


def test_sgd_takes_groups_that_interleave_in_memory(isa):
    whole = np.ones((2, 8), "f4")
    groups = [{"params": [whole[:, :4]]}, {"params": [whole[:, 4:]], "lr": 2.0}]
    SGD(groups, lr=1.0).step([np.ones((2, 4), "f4"), np.ones((2, 4), "f4")])
    assert (whole == [0] * 4 + [-1] * 4).all()


def test_sgd_takes_parameters_that_interleave_in_memory(isa):
    whole = np.ones((2, 8), "f4")
    SGD([whole[:, :4], whole[:, 4:]], lr=1.0).step([np.ones((2, 4), "f4"), np.full((2, 4), 2, "f4")])
    assert (whole == [0] * 4 + [-1] * 4).all()
