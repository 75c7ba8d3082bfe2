"""An optimizer's course of several steps, beside torch.optim in float64 and in the parameters' own dtype."""

import numpy as np
import torch

import ckernels as ck
from ckernels.parity import assert_parity
from guard import guarded
from parity import as_torch


def normal(rng, shape, dtype=np.float32):
    """Return a guarded array of random numbers."""
    return guarded(rng.standard_normal(shape).astype(dtype))


def run_torch(kind, precision, arrays, steps, options, max_norm=None):
    """Return parameters, the optimizer and the norms after ``torch.optim.<kind>``.

    ``precision`` is "float64", or None: float32, with the parameters rounded to their own dtype after every step.
    That is the peer: torch keeps the state of 16-bit parameters in 16 bits, where squares of gradients underflow.
    """
    params = [torch.nn.Parameter(as_torch(a, precision or "float32")) for a in arrays]
    optimizer, norms = getattr(torch.optim, kind)(params, foreach=False, **options), []
    for grads in steps:
        for p, g in zip(params, grads, strict=True):
            p.grad = None if g is None else as_torch(g, p.dtype)
        if max_norm is not None:
            norms.append(float(torch.nn.utils.clip_grad_norm_(params, max_norm, foreach=False)))
        optimizer.step()
        for p, a in zip(params, arrays, strict=True) if precision is None else ():
            p.data = p.data.to(getattr(torch, a.dtype.name)).float()
    return [p.detach() for p in params], optimizer, norms


def run_ours(kind, arrays, steps, options, max_norm=None):
    """Return the same of ``ck.optim.<kind>``."""
    params = [guarded(a) for a in arrays]
    optimizer = getattr(ck.optim, kind)(params, **options)
    norms = [optimizer.step(list(grads), max_norm=max_norm) for grads in steps]
    return params, optimizer, norms


def assert_same_course(kind, arrays, steps, options, max_norm=None):
    """Compare parameters, every array of the state and norms after ``steps``; return the reports of the parameters."""
    if any(a.dtype != np.float32 for a in arrays):  # a step must be seen beside half an ulp
        options = options | {"lr": 0.5}
    ours, opt, norms = run_ours(kind, arrays, steps, options, max_norm)
    exact, exact_opt, exact_norms = run_torch(kind, "float64", arrays, steps, options, max_norm)
    peer, peer_opt, _ = run_torch(kind, None, arrays, steps, options, max_norm)
    reports, scale = [], 1.0 if max_norm is None else min(1.0, max_norm / min(exact_norms))
    for i, (a, e, p) in enumerate(zip(ours, exact, peer, strict=True)):
        largest = max((np.abs(g[i].astype("f8")).max() for g in steps if g[i] is not None), default=0.0)
        terms = float(max(np.abs(arrays[i].astype("f8")).max(), largest))  # what cancels in sums
        one = a.size == 1
        trivial = {"not stepped": arrays[i]} if a.size >= 16 or a.dtype == np.float32 else None
        reports.append(assert_parity(a, e, p.to(as_torch(a).dtype), terms=terms, allow_constant=one, trivial=trivial))
        states = [o.state_dict()["state"].get(i, {}) for o in (opt, exact_opt, peer_opt)]
        wanted = [name for name in states[1] if states[1][name] is not None]
        assert list(states[0]) == wanted
        for name in wanted:
            mine, right, other = (state[name] for state in states)
            assert mine.dtype == np.float32
            if name == "step":
                assert float(mine) == float(right)
            else:
                sums = None if name.endswith("_sq") else largest * scale + options.get("weight_decay", 0) * terms
                assert_parity(mine, right, other, terms=sums, allow_constant=one)
    if max_norm is not None:
        np.testing.assert_allclose(norms, exact_norms, rtol=1e-12)
    return reports


def assert_rounded_once(kind, dtype, rng, options):
    """One step of 16-bit parameters has the bits of the float32 step of the same numbers, rounded."""
    narrow = [normal(rng, shape, dtype) for shape in ((40, 37), (5,), (3, 2, 17))]
    for wide_grads in (False, True):
        grads = [normal(rng, a.shape, np.float32 if wide_grads else dtype) for a in narrow]
        ours, small, _ = run_ours(kind, narrow, [grads], options, 3.0)
        wide = [a.astype(np.float32) for a in narrow]
        theirs, large, _ = run_ours(kind, wide, [[g.astype(np.float32) for g in grads]], options, 3.0)
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert a.tobytes() == b.astype(dtype).tobytes()
            for name, value in large.state.get(i, {}).items():
                assert small.state[i][name].tobytes() == value.tobytes()
