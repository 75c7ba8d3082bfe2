"""Key-value caches: the matrix of equivalences, forms of the cache by ways to reach the same state.

Every cell is one comparison. What is a copy, a code or a choice of path has the bits of its counterpart; attention over
codes is compared with float64, where no other op computes the same. The storage of every cache is filled with NaN and
with codes of all ones first, so that what is read or written by mistake shows.
"""

import dataclasses
import time

import numpy as np

from . import kv_exact, probes
from .compare import compare
from .levels import DTYPES, OptionError, case_of, dtypes_of, error_case, not_measured

G, D, H = 2, 64, 6
LENGTHS = np.array([301, 17, 256])  # past a partition of 256 keys, few, a partition exactly
CHUNKS = (250, 1, 16, 34)


def run(options):
    """Compare every form of cache with its own counterparts.

    Parameters
    ----------
    options : Options
        ``dtype`` and ``isa`` choose rows; ``config`` one preset for the model's rows.  ``quick``: float32 alone.

    Yields
    ------
    Case
        With ``data["matrix"]``: the report prints these as one table.
    """
    import ckernels as ck
    from ckernels.models import configs

    if options.config is not None and options.config not in configs:
        raise OptionError(f"no preset {options.config!r}; there are {', '.join(configs)}")
    if options.isa is not None and options.isa not in ck.isas():
        yield not_measured("kv", "caches", "this CPU or build does not have it", isa=options.isa)
        return
    with ck.use(options.isa or ck.isa()):
        for dtype in dtypes_of(options) or (DTYPES[:1] if options.quick else DTYPES):
            for quant in kv_exact.QUANTS:
                options.tell(f"kv: {dtype} {quant or 'plain'}")
                yield from _form(dtype, quant, options.seed)
        if options.dtype is None or "float32" in dtypes_of(options):
            for name in [options.config] if options.config else ["gqa"]:
                for quant in (None, "int4") if options.quick else kv_exact.QUANTS:
                    options.tell(f"kv: {name} {quant or 'plain'}")
                    yield from _model(name, quant, options.seed)


class _Cells:
    """One row of the matrix."""

    def __init__(self, name, dtype):
        import ckernels as ck

        self.name, self.dtype, self.isa, self.start = name, dtype, ck.isa(), time.perf_counter()

    def __call__(self, what, compute):
        """One cell: ``compute()`` returns pairs of arrays with equal bits, or a report."""
        try:
            found = compute()
            report = found if hasattr(found, "verdict") else _bits(what, found)
            seconds, self.start = time.perf_counter() - self.start, time.perf_counter()
            case = case_of("kv", self.name, what, report, isa=self.isa, seconds=seconds, matrix=True)
        except Exception as error:
            case = error_case("kv", self.name, error, isa=self.isa)
            case.what, case.data = what, {"matrix": True}
        case.dtype = self.dtype
        return case


def _bits(what, pairs):
    """Compare pairs of arrays bit for bit, all as one: bytes as numbers of a float32."""

    def joined(i):
        return np.frombuffer(b"".join(np.ascontiguousarray(pair[i]).tobytes() for pair in pairs), np.uint8)

    sides = joined(0), joined(1)
    return compare(sides[0].astype(np.float32), sides[1].astype(np.float32), bitwise=True, name=what)


def _poison(raw):
    for array in raw.values():
        array.view(np.uint8)[...] = 0xFF


class _Tokens:
    """What all caches of a row hold: keys and values [B, G, n, D], their queries, and caches filled from them."""

    def __init__(self, dtype, quant, seed):
        from .kv_exact import dtype_named

        rng = np.random.default_rng([seed, 71])
        self.dtype, self.quant, self.rng = dtype_named(dtype), quant, rng
        shape = len(LENGTHS), G, int(LENGTHS.max()), D
        scale = np.exp2(rng.integers(-3, 4, (*shape[:3], 1)))  # rows of different sizes: a scale of another row shows
        self.k, self.v = ((rng.standard_normal(shape) * scale + 0.25).astype(self.dtype) for _ in range(2))
        self.q = rng.standard_normal((len(LENGTHS), H, 16, D)).astype(self.dtype)
        self.options = {"softcap": 20.0, "sinks": rng.standard_normal(H).astype(np.float32)}

    def cache(self, slack=13, batch=3, capacity=None, **options):
        import ckernels as ck

        made = ck.KVCache(G, D, capacity or int(LENGTHS.max()) + slack, batch=batch, dtype=self.dtype, quant=self.quant,
                          **options)
        _poison(made.raw)
        return made

    def whole(self):
        made = self.cache()
        made.append(self.k, self.v, LENGTHS)
        return made

    def part(self, begin, end):
        """Return tokens of each item from ``begin`` to ``end``, arrays [B], and how many: padded with NaN."""
        counts = np.maximum(np.minimum(end, LENGTHS) - begin, 0)
        width = int(counts.max())
        parts = []
        for x in (self.k, self.v):
            padded = np.full((len(LENGTHS), G, width, D), np.nan, np.float32).astype(self.dtype)
            for b, n in enumerate(counts):
                padded[b, :, :n] = x[b, :, begin[b] : begin[b] + n]
            parts.append(padded)
        return *parts, counts

    def held(self, x, b, n):
        """Return rows of item b as the numbers that attention sees."""
        rows = x[b, :, :n]
        return rows if self.quant is None else kv_exact.values(
            kv_exact.quantised(rows, self.quant, 32), self.quant, 32, D
        )


def _raw(a, b):
    return [(a.raw[name], b.raw[name]) for name in a.raw]


def _form(dtype, quant, seed):
    """The row of one dtype and format."""
    tokens, cell = _Tokens(dtype, quant, seed), _Cells(quant or "plain", dtype)
    try:
        whole = tokens.whole()
    except Exception as error:
        yield error_case("kv", quant or "plain", error)
        return
    want = whole.attend(tokens.q, **tokens.options)
    yield cell("stored", lambda: _stored(tokens, whole))
    yield cell("read back", lambda: [
        (array, np.ascontiguousarray(kv_exact.elements(x[b, :, :n], quant, 32)))
        for b, n in enumerate(LENGTHS)
        for array, x in ((whole.keys(b), tokens.k), (whole.values(b), tokens.v))
    ])
    yield cell("chunks", lambda: _chunks(tokens, whole))
    yield cell("batched", lambda: _batched(tokens))
    yield cell("paged", lambda: _paged(tokens, whole, want))
    yield cell("ring", lambda: _ring(tokens, whole))
    yield cell("truncated", lambda: _truncated(tokens, whole))
    yield cell("forked", lambda: _forked(tokens, whole))
    yield cell("16 queries", lambda: _queries(tokens, want))
    yield cell("refused", lambda: _refused(tokens, whole))
    yield cell("float64", lambda: _float64(tokens, want))


def _stored(tokens, whole):
    """What is stored where, and that nothing else is touched."""
    expected = {
        name: np.full((*array.shape[:-1], array.shape[-1] * array.itemsize), 0xFF, np.uint8)
        for name, array in whole.raw.items()
    }
    for side, x in ("k", tokens.k), ("v", tokens.v):
        for b, n in enumerate(LENGTHS):
            rows = np.ascontiguousarray(x[b, :, :n])
            parts = {"": rows} if tokens.quant is None else {
                f"_{part}": array for part, array in kv_exact.quantised(rows, tokens.quant, 32).items()
            }
            for part, array in parts.items():
                expected[side + part][b, :, :n] = array.view(np.uint8)
    return [(whole.raw[name], expected[name]) for name in whole.raw]


def _chunks(tokens, whole):
    made, at = tokens.cache(), np.zeros_like(LENGTHS)
    for size in CHUNKS:
        k, v, counts = tokens.part(at, at + size)
        made.append(k, v, counts)
        at += counts
    single = tokens.cache()
    for j in range(int(LENGTHS.max())):
        k, v, counts = tokens.part(np.minimum(j, LENGTHS), np.minimum(j + 1, LENGTHS))
        single.append(k, v, counts)
    return _raw(made, whole) + _raw(single, whole)


def _batched(tokens):
    import ckernels as ck

    sides = []
    for _ in range(2):
        caches = [tokens.cache(batch=1, capacity=20 + i) for i in range(4)]
        for cache, n in zip(caches, (0, 7, 11, 22), strict=True):
            cache.append(tokens.k[:1, :, :n], tokens.v[:1, :, :n])
        sides.append(caches)
    k, v = (np.ascontiguousarray(x[0].transpose(1, 0, 2)[30:34]) for x in (tokens.k, tokens.v))
    ck.kv_append_batched(sides[0], k, v)
    for i, cache in enumerate(sides[1]):
        cache.append(k[i][None, :, None], v[i][None, :, None])
    return [pair for a, b in zip(*sides, strict=True) for pair in [*_raw(a, b), (a.lengths, b.lengths)]]


def _paged(tokens, whole, want):
    import ckernels as ck

    pairs = []
    for size in (1, 7, 16):
        need = int((-(-LENGTHS // size)).sum())
        pool = ck.PagedKVCache(G, D, need + 4, size, dtype=tokens.dtype, quant=tokens.quant)
        _poison(pool.raw)
        tokens.rng.shuffle(pool._free)
        sequences, at = [pool.new() for _ in LENGTHS], np.zeros_like(LENGTHS)
        for step in (100, 150, 51):
            k, v, counts = tokens.part(at, at + step)
            pool.append(sequences, k, v, counts)
            at += counts
        pairs.append((pool.attend(sequences, tokens.q, **tokens.options), want))
        pairs += [(pool.keys(s), np.ascontiguousarray(whole.keys(b))) for b, s in enumerate(sequences)]
    return pairs


def _ring(tokens, whole):
    window, T = 40, 8
    made, at, pairs = tokens.cache(capacity=window + T, ring=True), np.zeros_like(LENGTHS), []
    other = tokens.cache()
    while (at < LENGTHS).any():
        k, v, counts = tokens.part(at, at + T)
        made.append(k, v, counts)
        other.append(k, v, counts)
        at += counts
        q = tokens.q[:, :, : min(T, int(at.min()))]
        pairs.append((made.attend(q, window=(window, None)), other.attend(q, window=(window, None))))
    return pairs


def _truncated(tokens, whole):
    made = tokens.cache()
    made.append(tokens.v, tokens.k, LENGTHS)
    keep = np.array([77, 3, 0])
    made.reset()
    made.append(tokens.k, tokens.v, LENGTHS)
    made.truncate(keep)
    k, v, counts = tokens.part(keep, LENGTHS)
    made.append(k, v, counts)
    return _raw(made, whole)


def _forked(tokens, whole):
    import ckernels as ck

    before = {name: array.copy() for name, array in whole.raw.items()}
    copy = whole.fork()
    copy.append(tokens.v[:, :, :5], tokens.k[:, :, :5])
    pairs = [(whole.raw[name], before[name]) for name in before]
    pool = ck.PagedKVCache(G, D, 60, 8, dtype=tokens.dtype, quant=tokens.quant)
    _poison(pool.raw)
    first = pool.new()
    pool.append([first], tokens.k[:1], tokens.v[:1], [45])
    second = pool.fork(first)
    old = pool.keys(first)
    pool.append([second], tokens.v[:1], tokens.k[:1], [9])
    pool.append([first], tokens.k[:1, :, 100:], tokens.v[:1, :, 100:], [4])
    pairs += [(pool.keys(first)[:, :45], old), (pool.keys(second)[:, :45], old)]
    for sequence, x in (first, tokens.k[0, :, 100:104]), (second, tokens.v[0, :, :9]):
        pairs.append((pool.keys(sequence)[:, 45:], kv_exact.elements(np.ascontiguousarray(x), tokens.quant, 32)))
    return pairs


def _queries(tokens, want):
    """Sixteen at once are one at a time, each over the tokens up to its own."""
    made, pairs = tokens.whole(), []
    for t in range(15, -1, -1):
        got = made.attend(np.ascontiguousarray(tokens.q[:, :, t : t + 1]), **tokens.options)
        pairs.append((got, np.ascontiguousarray(want[:, :, t : t + 1])))
        made.truncate(made.lengths - 1)
    return pairs


def _refused(tokens, whole):
    """Past the capacity, and NaN where there are codes: the storage has the bits it had."""
    before = {name: array.copy() for name, array in whole.raw.items()}
    bad = tokens.k[:, :, :2].copy()
    bad[-1, -1, -1, -1] = np.nan
    few, good = tokens.k[:, :, :20], tokens.k[:, :, :2]
    for k, v in [(few, few)] + ([(bad, good), (good, bad)] if tokens.quant else []):
        try:
            whole.append(k, v)
        except ValueError:
            continue
        raise AssertionError("an append that must be refused was not")
    return [(whole.raw[name], before[name]) for name in before] + [(whole.lengths, LENGTHS.copy())]


def _float64(tokens, want):
    b, n = 0, int(LENGTHS[0])
    k, v = tokens.held(tokens.k, b, n), tokens.held(tokens.v, b, n)
    exact = kv_exact.attention(tokens.q[b], k, v, **tokens.options)
    peer = kv_exact.attention(tokens.q[b], k, v, dtype=np.float32, **tokens.options).astype(tokens.dtype)
    return compare(want[b], exact, peer, name="attention")


# ---- a model's logits ----


def _model(name, quant, seed):
    """Rows of a model: whole prefill against chunks, single tokens, ragged steps and pages, in one format."""
    from ckernels.models import Model, configs

    from .invariance import _ragged_case, in_chunks

    config = configs[name]
    if quant not in (None, "int8_sym") and config.head_dim % 32:
        config = dataclasses.replace(config, head_dim=32)
    cell = _Cells(f"model {name}, {quant or 'plain'}", "float32")
    model = Model(config, probes.parameters(config, seed))
    ids = np.random.default_rng([seed, 73]).integers(0, config.vocab_size, (3, 45))
    try:
        whole = in_chunks(model, ids, [45], model.new_cache(45, 3, quant))
    except Exception as error:  # a row that cannot begin is red; the others are still wanted
        yield error_case("kv", cell.name, error, isa=cell.isa)
        return

    def chunked(sizes, paged):
        return [(in_chunks(model, ids, sizes, model.new_cache(48, 3, quant, paged)), whole)]

    if quant is None:
        yield cell("no cache", lambda: [(model(ids), whole)])
    yield cell("chunks", lambda: chunked((5, 1, 16, 7), False))
    yield cell("one by one", lambda: chunked((1,) * 45, False))
    yield cell("paged", lambda: chunked((5, 1, 16, 7), True) + chunked((1,) * 45, True))

    class Formed:
        """The model with caches of this format, for a case that makes its own."""

        new_cache = staticmethod(lambda capacity, batch: model.new_cache(capacity, batch, quant, True))
        __call__ = staticmethod(model)

    class Found:
        def __call__(self, what, got, want):
            return [(got, want)]

    yield cell("ragged", lambda: _ragged_case(Found(), Formed(), ids, whole))
