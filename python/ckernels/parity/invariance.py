"""Bits that must be equal: caches, threads, batches, capture, instruction sets.

Nothing here has a budget: two ways to compute the same thing give the same bits, or the case fails. Neither torch nor
transformers is needed.

Level "kv" is about the cache: whole prefill, chunks, and one token at a time, items of different lengths, truncation.
Level "invariance" is all of that, and threads, batches, capture and instruction sets.
"""

from __future__ import annotations

import time

import numpy as np

from . import probes
from .compare import compare
from .levels import OptionError, case_of, error_case, not_measured, unmeasured

THREADS = (1, 2, 3, 7)
TOKENS = 67  # of the small models: more than one tile and one block, and no multiple of either
REAL_TOKENS = 21
CHUNKS = (5, 1, 16, 7)


def run(options, *, model=None):
    """Compare bits.

    Parameters
    ----------
    options : Options
        ``level`` "kv" asks for the cache alone; ``config`` names one preset; ``model`` the real model (smollm2-135m).
        ``quick`` leaves the real model out.
    model : callable, optional
        ``model(config, params)``, what is under test; ``ck.models.Model`` unless given.

    Yields
    ------
    Case
        EXACT, or a failure.
    """
    import ckernels as ck
    from ckernels.models import configs

    level = "kv" if options.level == "kv" else "invariance"
    if options.config is not None and options.config not in configs:
        raise OptionError(f"no preset {options.config!r}; there are {', '.join(configs)}")
    if options.isa is not None and options.isa not in ck.isas():
        yield not_measured(level, "bits", "this CPU or build does not have it", isa=options.isa)
        return
    if model is None:
        from ckernels.models import Model as model
    threads = ck.get_num_threads()
    with ck.use(options.isa or ck.isa()):
        for name in [options.config] if options.config else ["tiny", "gqa"]:
            options.tell(f"bits: {name}")
            try:
                small = model(configs[name], probes.parameters(configs[name], options.seed))
                ids = np.random.default_rng([options.seed, 61]).integers(0, small.config.vocab_size, (3, TOKENS))
                yield from _cases(level, name, small, ids)
                if level == "invariance":
                    yield from _training(level, name, small, ids)
            except Exception as error:
                yield error_case(level, name, error, isa=ck.isa())
            finally:
                ck.set_num_threads(threads)
        if not options.quick and options.config is None:
            yield from _real(level, options)
            ck.set_num_threads(threads)


def _real(level, options):
    """The same with a real model, on a short text."""
    import ckernels as ck

    from .forward import MODEL, locate

    name = options.model or MODEL
    options.tell(f"bits: {name}")
    try:
        path = locate(name)
    except (OSError, ValueError, ImportError) as error:
        yield unmeasured(level, name, f"the model could not be had: {error}")
        return
    try:
        model = ck.models.load(path)
        ids = np.random.default_rng([options.seed, 67]).integers(0, model.config.vocab_size, (2, REAL_TOKENS))
        yield from _cases(level, path.name if options.model else name, model, ids)
    except Exception as error:
        yield error_case(level, name, error, isa=ck.isa())


class _Equal:
    """Makes the cases of one model and keeps the time."""

    def __init__(self, level, name):
        import ckernels as ck

        self.level, self.name, self.isa, self.start = level, name, ck.isa(), time.perf_counter()

    def __call__(self, what, got, want):
        """One case: `got` has the bits of `want`."""
        report = compare(np.ascontiguousarray(got), np.ascontiguousarray(want), bitwise=True, name=what)
        seconds, self.start = time.perf_counter() - self.start, time.perf_counter()
        return case_of(self.level, self.name, what, report, isa=self.isa, seconds=seconds)


def _cases(level, name, model, ids):
    """The cases of one model's logits."""
    equal = _Equal(level, name)
    whole = model(ids)
    yield from _cache_cases(equal, model, ids, whole)
    if level != "kv":
        yield from _forward_cases(equal, model, ids, whole)


def in_chunks(model, ids, sizes, cache=None):
    """The logits of a text that is given to a cache in chunks: these sizes, then what is left in one."""
    cache = model.new_cache(ids.shape[1], batch=ids.shape[0]) if cache is None else cache
    parts, at = [], 0
    for size in [*sizes, ids.shape[1]]:
        size = min(size, ids.shape[1] - at)
        if size > 0:
            parts.append(model(ids[:, at : at + size], cache=cache))
            at += size
    return np.concatenate(parts, axis=1)


def _cache_cases(equal, model, ids, whole):
    """Prefill, chunks and decode give the bits of the forward pass without a cache."""
    batch, tokens = ids.shape
    yield equal("prefill into a cache", in_chunks(model, ids, [tokens]), whole)
    yield equal(f"chunks of {', '.join(map(str, CHUNKS))} and the rest", in_chunks(model, ids, CHUNKS), whole)
    yield equal("one token at a time", in_chunks(model, ids, [1] * tokens), whole)
    roomy = model.new_cache(tokens + 13, batch=batch)
    yield equal("a cache with room to spare", in_chunks(model, ids, CHUNKS, roomy), whole)
    roomy.truncate(tokens // 2)
    again = model(ids[:, tokens // 2 :], cache=roomy)
    yield equal("truncated and appended again", again, whole[:, tokens // 2 :])
    yield _ragged_case(equal, model, ids, whole)
    last = model(ids, last_only=True)
    yield equal("last token alone", last, whole[:, -1:])


def _ragged_case(equal, model, ids, whole):
    """Items of different lengths grow in one cache, by different amounts in every step."""
    batch, tokens = ids.shape
    cache = model.new_cache(tokens, batch=batch)
    held = np.zeros(batch, np.int64)
    got = np.full_like(whole, np.nan)
    for step in range(4 * tokens):
        if (held == tokens).all():
            break
        counts = np.minimum([(5 * b + 3 * step) % 7 for b in range(batch)], tokens - held)
        width = int(counts.max())
        if width == 0:
            continue
        padded = np.zeros((batch, width), ids.dtype)
        for b in range(batch):
            padded[b, : counts[b]] = ids[b, held[b] : held[b] + counts[b]]
        logits = model(padded, cache=cache, counts=counts)
        for b in range(batch):
            got[b, held[b] : held[b] + counts[b]] = logits[b, : counts[b]]
        held += counts
    return equal("items of different lengths in one cache", got, whole)


def _forward_cases(equal, model, ids, whole):
    """Run to run, threads, batches, capture and instruction sets."""
    import ckernels as ck

    batch = len(ids)
    yield equal("run again", model(ids), whole)
    before = ck.get_num_threads()
    for count in THREADS:
        ck.set_num_threads(count)
        found = model(ids)
        decoded = in_chunks(model, ids[:, :9], [1] * 9)
        ck.set_num_threads(before)
        yield equal(f"{count} thread{'s' * (count > 1)}, forward", found, whole)
        yield equal(f"{count} thread{'s' * (count > 1)}, decode", decoded, whole[:, :9])
    yield equal("each item alone", np.stack([model(ids[b]) for b in range(batch)]), whole)
    order = np.roll(np.arange(batch), 1)
    yield equal("items in another order", model(ids[order]), whole[order])
    many = model(np.concatenate([ids, ids[::-1], ids]))
    yield equal("at another place in a larger batch", many[batch : 2 * batch], whole[::-1])
    yield equal("a text's beginning alone", model(ids[:, :7]), whole[:, :7])
    yield equal("with every stage captured", model.trace(ids).arrays["logits"], whole)
    yield from _isa_cases(equal, model, ids, whole)


def _isa_cases(equal, model, ids, whole):
    """avx2 and avx512 share lanes and order."""
    import ckernels as ck

    for first, second in (("avx2", "avx512"),):
        lacking = [isa for isa in (first, second) if isa not in ck.isas()]
        if lacking:
            reason = f"{' and '.join(lacking)}: not on this CPU or not in this build"
            yield not_measured(equal.level, equal.name, reason, f"{first} and {second}")
            continue
        found = []
        for isa in (first, second):
            with ck.use(isa):
                found.append(model(ids))
        yield equal(f"{first} and {second}", *found)


def _training(level, name, model, ids):
    """Loss and gradients: threads, capture, run to run."""
    import ckernels as ck

    equal = _Equal(level, name)
    ids, targets = ids[:, :-1], ids[:, 1:].copy()
    targets[0, 2] = -100
    loss, grads = model.loss_and_grads(ids, targets)
    names = list(grads)

    def flat(loss, grads):
        return np.concatenate([np.float32([loss]), *(np.asarray(grads[key]).ravel() for key in names)])

    want = flat(loss, grads)
    yield equal("loss and gradients, run again", flat(*model.loss_and_grads(ids, targets)), want)
    before = ck.get_num_threads()
    for count in THREADS:
        ck.set_num_threads(count)
        found = flat(*model.loss_and_grads(ids, targets))
        ck.set_num_threads(before)
        yield equal(f"loss and gradients, {count} thread{'s' * (count > 1)}", found, want)
    arrays = model.trace(ids, targets).arrays
    captured = {key: arrays[f"d_{key}"] for key in names}
    yield equal("loss and gradients, with every stage captured", flat(arrays["loss"], captured), want)
    again = model.loss_and_grads(ids, targets, recompute=True)
    yield equal("loss and gradients, layers recomputed", flat(*again), want)
    rows = [model.loss_and_grads(ids[b : b + 1], targets[b : b + 1], reduction="sum") for b in range(len(ids))]
    total = {key: np.array(value) for key, value in rows[0][1].items()}
    for _, grads in rows[1:]:  # as ranks would be reduced, in their order
        for key in names:
            total[key] += grads[key]
    into = None
    for b in range(len(ids)):
        _, into = model.loss_and_grads(ids[b : b + 1], targets[b : b + 1], reduction="sum", accumulate_into=into)
    yield equal("gradients accumulated, and added up in the same order", flat(0, into), flat(0, total))
