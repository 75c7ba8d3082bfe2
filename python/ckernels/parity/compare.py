"""One result against the exact one, with a peer's error as the measure of how hard the inputs are.

The rule, for the largest error and again for the root mean square::

    |actual - exact|  <=  3 * |peer - exact|  +  2 ulp(dtype of actual) * |exact|

``exact`` is float64 and written independently, ``peer`` is another implementation in the dtype of ``actual`` (PyTorch).
No tolerance is picked by hand. Where no peer exists, ``bound`` takes its place; without either there is no verdict.
docs/parity.md explains every verdict and figure.
"""

import math
from collections.abc import Mapping

import numpy as np

from .figures import FORMATS, WORST, Figures, as_array, blocks_of
from .verdicts import Element, Report, Verdict

# An error of this part of the result's size is no rounding, in any dtype.
_BROKEN = 0.1
# Index lists longer than this are cut when a failure is located.
_LOCATE = 1 << 20

#: Called with the report of every comparison that is made: how a test session gathers them.
LISTENERS = []


def _ratio(error, allowed):
    """Divide so that nothing over nothing is nothing, and something over nothing is infinite."""
    if math.isnan(error) or math.isnan(allowed):
        return math.nan
    if error == 0:
        return 0.0
    return math.inf if allowed == 0 else error / allowed


def _scale_of_terms(terms):
    """Return (largest, root mean square) of the cancelling terms."""
    if terms is None:
        return 0.0, 0.0
    array, _ = as_array(terms, "terms")
    largest = total = 0.0
    if array.size:
        for _, (block,) in blocks_of([array]):
            largest = max(largest, float(np.abs(block).max()))
            total += float(np.dot(block, block))
    if not math.isfinite(total):  # a sum keeps a NaN, Python's max does not
        raise ValueError("compare(): 'terms' holds NaN or inf, so it measures nothing")
    return largest, math.sqrt(total / max(array.size, 1))


def _check_bound(bound, shape):
    if bound is None:
        return None
    array, _ = as_array(bound, "bound")
    if array.size and not bool(np.all(array >= 0)):
        raise ValueError("compare(): 'bound' must be 0 or more everywhere, and not NaN")
    if array.ndim == 0:
        return float(array)
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(f"compare(): 'bound' of shape {array.shape} does not fit 'exact' of shape {shape}") from None


def _same_memory(a, b):
    try:
        return bool(a.size) and np.shares_memory(a, b, max_work=10_000)
    except np.exceptions.TooHardError:  # odd strides: leave it
        return False


def _trivial_items(trivial):
    if trivial is None:
        return []
    if isinstance(trivial, Mapping):
        return list(trivial.items())
    if isinstance(trivial, list | tuple):
        return [(f"trivial[{i}]", value) for i, value in enumerate(trivial)]
    return [("trivial", trivial)]


def compare(
    actual, exact, peer=None, *, terms=None, bound=None, bitwise=False, trivial=None, allow_constant=False, name=""
):
    """Compare a result with the exact one and say by what margin it holds.

    Parameters
    ----------
    actual : array or tensor
        The result under test: float32, float16, bfloat16, float64, integer or bool. Its dtype sets the ulp of the rule.
    exact : array or tensor
        The same quantity in float64, computed independently.
    peer : array or tensor, optional
        Another implementation's result in the dtype of ``actual``; its error against ``exact`` is the budget.
    terms : array or float, optional
        Where a result is a sum whose terms cancel, those terms: the largest of them takes the place of max|exact|.
    bound : float or array, optional
        The largest allowed |actual - exact|, for all or for each element. It takes the place of a peer. With both,
        both must hold.
    bitwise : bool, optional
        Compare the bits: same dtype, same zeros, same NaN payloads. For copies, indices and equal-bits promises.
    trivial : array, sequence or dict of arrays, optional
        Outputs that would mean nothing was computed (the input, the previous result). If one of them passes, the case
        is VACUOUS. An output of zeros is always tried.
    allow_constant : bool, optional
        Accept that ``exact`` is one number everywhere, where that is the point of the test.
    name : str, optional
        What is being compared, for the text.

    Returns
    -------
    Report
        ``str(report)`` says what, where and by how much.

    Raises
    ------
    ValueError
        Shapes differ; ``bound`` is negative or NaN; ``terms`` is not finite.
    TypeError
        A dtype that has no comparison; ``bitwise`` with two dtypes.

    Notes
    -----
    NaN and inf must stand where ``exact`` has them, inf with its sign. They are not counted as compared: NaN equal to
    NaN proves nothing. Values of ``exact`` beyond the dtype's range count as infinite.

    Examples
    --------
    >>> import numpy as np
    >>> from ckernels.parity import compare
    >>> exact = np.array([1.0, 2.0, 3.0])
    >>> print(compare(np.float32([1, 2, 3.5]), exact, peer=np.float32([1, 2, 3])).verdict)
    STRUCTURAL
    >>> compare(np.float32([1, 2, 3]) * np.float32(1 + 2e-7), exact, peer=np.float32([1, 2, 3])).margin <= 1
    True
    """
    actual, dtype = as_array(actual, "actual")
    exact, exact_dtype = as_array(exact, "exact")
    if actual.shape != exact.shape:
        raise ValueError(f"compare(): 'actual' of shape {actual.shape} does not fit 'exact' of shape {exact.shape}")
    if peer is not None:
        peer, _ = as_array(peer, "peer")
        if peer.shape != exact.shape:
            raise ValueError(f"compare(): 'peer' of shape {peer.shape} does not fit 'exact' of shape {exact.shape}")
    bound = _check_bound(bound, exact.shape)
    same = [
        what for what, other in (("exact", exact), ("peer", peer)) if other is not None and _same_memory(actual, other)
    ]
    if bitwise and dtype != exact_dtype:
        raise TypeError(
            f"compare(): 'actual' of dtype {dtype} and 'exact' of dtype {exact_dtype} have no bits to compare"
        )
    integers = dtype not in FORMATS
    fmt = FORMATS["float64" if integers else dtype]

    sums = Figures(fmt, bound, peer is not None)
    arrays = [actual, exact] + ([peer] if peer is not None else []) + ([bound] if isinstance(bound, np.ndarray) else [])
    if exact.size:
        for start, blocks in blocks_of(arrays):
            p = blocks[2] if peer is not None else None
            b = blocks[-1] if isinstance(bound, np.ndarray) else bound
            sums.add(start, blocks[0], blocks[1], p, b)

    report = Report(name=name, size=exact.size, shape=exact.shape, dtype=dtype, compared=sums.compared)
    _fill_figures(report, sums)
    if exact_dtype == dtype and not integers and not bitwise:
        report.notes.append(f"'exact' is itself {exact_dtype}: its own rounding is inside every figure")
    if bitwise:
        _decide_equal(report, sums, _differing_bits(actual, exact), "bit for bit")
    elif integers and bound is None:
        _decide_equal(report, sums, actual != exact, "as numbers")
    else:
        _decide(report, sums, fmt, terms, bound)
        if report.verdict in (Verdict.STRUCTURAL, Verdict.EXCESS_DRIFT) and report.compared:
            _locate(report, actual, exact, bound)
            report.slices = _slices(actual, exact)
    if report.ok:
        _look_for_nothing(report, sums, fmt, _trivial_items(trivial), allow_constant, exact)
    if same and report.verdict is not Verdict.STRUCTURAL:
        _settle(
            report, Verdict.VACUOUS, f"actual and {' and '.join(same)} are the same memory: it was compared with itself"
        )
    for listener in LISTENERS:
        listener(report)
    return report


def _place(flat, shape):
    return tuple(int(i) for i in np.unravel_index(flat, shape)) if shape else ()


def _fill_figures(report, sums):
    n = sums.compared
    report._worst = [Element(_place(f, report.shape), y, x, p, math.inf, math.inf) for f, y, x, p in sums.pattern]
    report._worst += [Element(_place(f, report.shape), y, x, p, e, u) for e, f, y, x, p, u in sums.worst]
    del report._worst[WORST:]
    if not n:
        return
    report.max_abs, report.rms, report.ulp = sums.max_abs, math.sqrt(sums.sum_ee / n), sums.max_ulp
    report.ulp_counts = sums.ulp_counts.tolist()
    report.exact_max, report.exact_rms = sums.max_x, math.sqrt(sums.sum_xx / n)
    report.nmse = sums.sum_ee / sums.sum_xx if sums.sum_xx / n >= 1e-30 else sums.sum_ee / n
    product = math.sqrt(sums.sum_xx) * math.sqrt(sums.sum_yy)
    report.cosine = sums.sum_xy / product if product else 0.0
    spread = (sums.sum_xx - sums.sum_x**2 / n) * (sums.sum_yy - sums.sum_y**2 / n)
    report.correlation = (sums.sum_xy - sums.sum_x * sums.sum_y / n) / math.sqrt(spread) if spread > 0 else 0.0
    report.correlation = min(1.0, max(-1.0, report.correlation))
    if sums.has_peer:
        report.peer_max, report.peer_rms = sums.peer_max, math.sqrt(sums.peer_ee / n)
        report.ratio_max = _ratio(report.max_abs, report.peer_max)
        report.ratio_rms = _ratio(report.rms, report.peer_rms)


def _settle(report, verdict, reason):
    report.verdict, report.reason = verdict, reason


def _misplaced(report, sums):
    """NaN and inf that stand where exact has none, or the reverse."""
    report.misplaced = sums.pattern_count
    if sums.pattern_count:
        report.margin = math.inf
        report.exceeding = sums.pattern_count
        _settle(
            report,
            Verdict.STRUCTURAL,
            f"{sums.pattern_count} of {report.size} elements have NaN or inf where exact has not, or the reverse",
        )
    return sums.pattern_count > 0


def _nothing_compared(report, sums):
    if not sums.compared:
        why = "the arrays are empty" if report.size == 0 else f"all {report.size} elements are NaN or inf"
        _settle(report, Verdict.VACUOUS, f"nothing was compared: {why}")
    return not sums.compared


def _decide(report, sums, fmt, terms, bound):
    """Apply the rule to floating-point figures."""
    terms_max, terms_rms = _scale_of_terms(terms)
    if _misplaced(report, sums) or _nothing_compared(report, sums):
        return
    if not all(map(math.isfinite, (report.max_abs, report.rms, report.nmse, report.exact_rms))):
        report.margin = math.inf
        return _settle(report, Verdict.STRUCTURAL, "a figure is not finite, so nothing can be said for it")
    largest, mean = max(report.exact_max, terms_max), max(report.exact_rms, terms_rms)
    step = 2.0**fmt.lowest
    floor_max, floor_rms = 2 * max(fmt.eps * largest, step), 2 * max(fmt.eps * mean, step)
    smallest = step / fmt.eps  # below the smallest normal number nothing is relative

    def relative(error_max, error_rms):
        return max(error_max / max(largest, smallest), error_rms / max(mean, smallest))

    own = relative(report.max_abs, report.rms)
    peer = relative(report.peer_max, report.peer_rms) if sums.has_peer else None
    if sums.has_peer and peer <= _BROKEN:
        report.allowed_max = 3 * report.peer_max + floor_max
        report.allowed_rms = 3 * report.peer_rms + floor_rms
        report.margin_max = _ratio(report.max_abs, report.allowed_max)
        report.margin_rms = _ratio(report.rms, report.allowed_rms)
        report.margin = max(report.margin_max, report.margin_rms)
    if bound is not None:
        tightest = float(np.max(bound))
        report.allowed_max = tightest if report.allowed_max is None else min(tightest, report.allowed_max)
        report.margin_max = (
            sums.bound_ratio if math.isnan(report.margin_max) else max(report.margin_max, sums.bound_ratio)
        )
        report.margin = report.margin_max if math.isnan(report.margin) else max(report.margin, report.margin_max)
    failed = Verdict.STRUCTURAL if own > _BROKEN else Verdict.EXCESS_DRIFT
    if math.isnan(report.margin):
        _decide_without_budget(report, sums, own, peer, fmt)
    elif not report.margin <= 1:
        which = (
            "largest error"
            if report.margin_max >= (0 if math.isnan(report.margin_rms) else report.margin_rms)
            else "rms error"
        )
        _settle(report, failed, f"the {which} is {report.margin:.3g} times what is allowed")
    elif sums.has_peer and (sums.peer_differs or peer > _BROKEN or (peer > math.sqrt(fmt.eps) and own * 100 < peer)):
        odd = f", with {sums.peer_differs} NaN or inf out of place" if sums.peer_differs else ""
        _settle(
            report,
            Verdict.REFERENCE_WRONG,
            f"the peer is off by {peer:.3g} of the result's size{odd}; actual is within {own:.3g}",
        )
    elif sums.rounded_equal:
        _settle(report, Verdict.EXACT, f"every element is the exact value rounded to {report.dtype}")
    else:
        _settle(report, Verdict.WITHIN_BUDGET, f"margin {report.margin:.3g}")
        if peer is not None and peer > math.sqrt(fmt.eps):
            report.notes.append(f"the peer's own error is {peer:.2g} of the result's size, so this budget is wide")


def _decide_without_budget(report, sums, own, peer, fmt):
    """No bound, and no peer or one that is itself broken."""
    if sums.has_peer:
        if own > _BROKEN and sums.between <= _BROKEN * report.max_abs:
            return _settle(
                report,
                Verdict.REFERENCE_WRONG,
                "actual and peer agree with one another and not with exact: exact is the outlier",
            )
        if own <= math.sqrt(fmt.eps):
            return _settle(
                report,
                Verdict.REFERENCE_WRONG,
                f"the peer is off by {peer:.3g} of the result's size; actual is within {own:.3g}",
            )
        if own <= _BROKEN:
            return _settle(
                report,
                Verdict.UNDECIDED,
                f"the peer is off by {peer:.3g} of the result's size and sets no budget; actual by {own:.3g}",
            )
    if own > _BROKEN:
        report.margin = math.inf
        return _settle(report, Verdict.STRUCTURAL, f"off by {own:.3g} of the result's size")
    if sums.rounded_equal:
        report.margin = 0.0
        return _settle(report, Verdict.EXACT, f"every element is the exact value rounded to {report.dtype}")
    return _settle(report, Verdict.UNDECIDED, "no peer and no bound, so nothing says what error is allowed")


def _differing_bits(actual, exact):
    unsigned = f"u{actual.dtype.itemsize}"
    return np.ascontiguousarray(actual).view(unsigned) != np.ascontiguousarray(exact).view(unsigned)


def _decide_equal(report, sums, differing, how):
    """Equal or not: no budget."""
    count = int(np.count_nonzero(differing))
    report.allowed_max = report.allowed_rms = 0.0
    if count:
        report.exceeding, report.margin = count, math.inf
        wild = not sums.compared or sums.pattern_count or report.max_abs > _BROKEN * report.exact_max
        _settle(
            report,
            Verdict.STRUCTURAL if wild else Verdict.EXCESS_DRIFT,
            f"{count} of {report.size} elements are not equal {how}",
        )
        report.where = _places(np.flatnonzero(differing)[:_LOCATE], report.shape)
        if not report._worst:
            report.notes.append("only signs of zero or NaN payloads differ")
    elif not _nothing_compared(report, sums):
        report.margin = report.margin_max = report.margin_rms = 0.0
        _settle(report, Verdict.EXACT, f"all {report.size} elements are equal {how}")


def _look_for_nothing(report, sums, fmt, trivial, allow_constant, exact):
    """Turn a pass into VACUOUS where an output that computed nothing would pass too."""
    low, high = sums.range_x
    floor = 2 * fmt.eps * report.exact_max
    limit_max = report.allowed_max if report.allowed_max is not None else 0.0
    limit_rms = report.allowed_rms if report.allowed_rms is not None else limit_max
    if allow_constant:
        pass
    elif report.exact_max <= limit_max and report.exact_rms <= limit_rms:
        _settle(report, Verdict.VACUOUS, "an output of zeros would pass")
    elif sums.compared > 1 and high - low <= floor:
        _settle(report, Verdict.VACUOUS, f"exact is {low:.6g} everywhere, so a constant would pass")
    for label, value in trivial:
        value, _ = as_array(value, label)
        if value.shape != exact.shape or not exact.size:
            continue
        worst = total = 0.0
        for _, (v, x) in blocks_of([value, exact]):
            gap = np.abs(v - x)[np.isfinite(x)]
            worst = max(worst, float(gap.max(initial=0.0))) if not np.isnan(gap).any() else math.inf
            total += float(np.dot(gap, gap))
        if worst <= limit_max and math.sqrt(total / sums.compared) <= limit_rms:
            _settle(report, Verdict.VACUOUS, f"{label} would pass unchanged")


def _locate(report, actual, exact, bound):
    """Count the elements beyond the allowance and say along which axes they lie."""
    limit = report.allowed_max
    if limit is None:
        return
    per_element = isinstance(bound, np.ndarray)
    if not per_element and not report.max_abs > limit:
        report.where = "no single element; the error as a whole is too large"
        return
    found, count = [], 0
    for start, blocks in blocks_of([actual, exact] + ([bound] if per_element else [])):
        with np.errstate(invalid="ignore"):
            beyond = np.flatnonzero(np.abs(blocks[0] - blocks[1]) > (blocks[2] if per_element else limit))
        if count < _LOCATE and beyond.size:
            found.append(beyond + start)
        count += beyond.size
    report.exceeding = count
    if found:
        report.where = f"{count} of {report.size} elements beyond the allowance; " + _places(
            np.concatenate(found), report.shape
        )


def _slices(actual, exact):
    """The slice of each axis that holds more than half of the squared error: (axis, index, share)."""
    if not exact.ndim:
        return []
    sums = [np.zeros(extent) for extent in exact.shape]
    step = max(1, _LOCATE * len(exact) // exact.size)  # so many rows at a time
    for start in range(0, len(exact), step):
        part = slice(start, start + step)
        with np.errstate(invalid="ignore", over="ignore"):
            square = (np.asarray(actual[part], np.float64) - np.asarray(exact[part], np.float64)) ** 2
        if not np.isfinite(square).all():
            return []
        for axis, into in enumerate(sums):
            along = square.sum(tuple(a for a in range(square.ndim) if a != axis))
            into[slice(None) if axis else part] += along
    total = float(sums[0].sum())
    return [
        (axis, int(into.argmax()), float(into.max() / total))
        for axis, into in enumerate(sums)
        if into.size > 1 and into.max() > 0.5 * total > 0
    ]


def _ranges(indices):
    """Write sorted indices as '3, 5..7'; None where that takes more than four parts."""
    breaks = np.flatnonzero(np.diff(indices) > 1)
    starts, ends = np.r_[indices[0], indices[breaks + 1]], np.r_[indices[breaks], indices[-1]]
    if starts.size > 4:
        return None
    return ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in zip(starts, ends, strict=True))


def _places(flat, shape):
    """Say to which indices along each axis a set of elements is confined."""
    if not shape or not flat.size:
        return ""
    parts = []
    for axis, indices in enumerate(np.unravel_index(flat, shape)):
        used = np.unique(indices)
        if used.size < shape[axis]:
            text = _ranges(used)
            parts.append(f"axis {axis}: {text if text else f'{used.size} indices'} of {shape[axis]}")
    return "; ".join(parts) if parts else "along every axis"


def assert_parity(actual, exact, peer=None, *, allow_empty=False, **options):
    """Raise AssertionError with the report's text unless the comparison passes.

    Takes what :func:`compare` takes. UNDECIDED, VACUOUS and REFERENCE_WRONG raise too: none of them shows that the
    result is right.

    Parameters
    ----------
    actual, exact, peer : array or tensor
        As in :func:`compare`.
    allow_empty : bool, optional
        Accept two arrays of size 0 and equal shape, where an empty result is the point of the test.
    **options
        Keywords of :func:`compare`.

    Returns
    -------
    Report
        The report that passed.
    """
    report = compare(actual, exact, peer, **options)
    if not report.ok and not (allow_empty and report.size == 0 and report.verdict is Verdict.VACUOUS):
        raise AssertionError(str(report))
    return report
