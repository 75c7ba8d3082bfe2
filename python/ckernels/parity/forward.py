"""Level 4: a real model's logits, position by position.

Three parties: the float64 model of `exact`, transformers in float32, and ours. Transformers reads the file with its own
reader, and the exact model computes with the weights that it read, so our reader is under test too: its weights are
compared bit for bit.
"""

from __future__ import annotations

import functools
import gc
import math
import time
from pathlib import Path

import numpy as np

from . import exact, peer, probes
from .compare import Verdict, compare
from .layer import under_ceiling
from .levels import Case, case_of, error_case, not_measured, unmeasured

LEVEL = "forward"
MODEL = "smollm2-135m"
CEILING = 1e-3  # of the logits of a 30-layer model
MOST_TOKENS = 512  # of a text that the user gives: exact logits take 8 bytes for every token and word

#: Tokens of the texts, each from another topic of the standard library.
LENGTHS = {"quick": (1, 33), "default": (1, 2, 17, 65, 200), "full": (1, 2, 3, 17, 33, 65, 128, 200)}


def run(options):
    """Compare the logits of a real model with float64 and with transformers.

    Parameters
    ----------
    options : Options
        ``model`` is a name that ``ck fetch`` knows, a GGUF file or a folder with safetensors; ``text`` takes the place
        of the texts from the standard library.

    Yields
    ------
    Case
        The weights; then for every text the logits, the KL divergence and the ranking. A model that cannot be had is
        UNMEASURED, which fails.
    """
    import ckernels as ck

    name = Path(options.model).name if options.model else MODEL
    reason = peer.missing("torch", "transformers", "gguf", "accelerate", "tokenizers")
    if reason:
        yield not_measured(LEVEL, name, reason)
        return
    if options.isa is not None and options.isa not in ck.isas():
        yield not_measured(LEVEL, name, "this CPU or build does not have it", isa=options.isa)
        return
    options.tell(f"{name}: the file")
    try:
        path = locate(options.model or MODEL)
    except (OSError, ValueError) as error:
        yield unmeasured(LEVEL, name, f"the model could not be had: {error}")
        return
    try:
        yield from _cases(name, path, options)
    except Exception as error:
        yield error_case(LEVEL, name, error)


def locate(name):
    """The file or folder of a model: what exists is taken as it is, anything else is a name for ``ck fetch``."""
    from ckernels.io.fetch import fetch

    path = Path(name)
    if path.exists():
        return path
    if path.suffix or len(path.parts) > 1:
        raise FileNotFoundError(f"{name}: no such file or folder")
    return Path(fetch(name))


@functools.lru_cache(maxsize=1)
def read_peer(path):
    """The model as transformers reads it, in float32; the last one is kept, until ``read_peer.cache_clear()``."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    folder, options = (path, {}) if path.is_dir() else (path.parent, {"gguf_file": path.name})
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # a level reports through its own bar
    try:
        module = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, **options)
    finally:
        if bars:
            logging.enable_progress_bar()
    return module.eval()


def read_tokenizer(path):
    """Two functions: text to ids, ids to text. All parties get the same ids."""
    if path.is_dir():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(path))
        return lambda text: tokenizer(text)["input_ids"], tokenizer.decode
    from ckernels.io.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_gguf(path)
    return tokenizer.encode, tokenizer.decode


def texts_of(options, encode):
    """Lists of ids with a label each: the user's text, or prose of several lengths."""
    if options.text is not None:
        ids = encode(options.text)
        cut = f"the first {MOST_TOKENS} of {len(ids)} tokens" if len(ids) > MOST_TOKENS else f"{len(ids)} tokens"
        return [(cut, np.array(ids[:MOST_TOKENS], np.int64))]
    size = "quick" if options.quick else "full" if options.full or options.stress else "default"
    texts = []
    for index, length in enumerate(LENGTHS[size]):
        ids = encode(probes.text(8 * length + 100, start=options.seed + 11 * index))[:length]
        texts.append((f"{len(ids)} token{'s' * (len(ids) != 1)}", np.array(ids, np.int64)))
    return texts


def _cases(name, path, options):
    """The weights, then every text."""
    import ckernels as ck

    start = time.perf_counter()
    options.tell(f"{name}: read by transformers")
    encode, decode = read_tokenizer(path)
    texts = texts_of(options, encode)
    if not texts or not all(ids.size for _, ids in texts):
        yield unmeasured(LEVEL, name, "the text has no tokens")
        return
    module = read_peer(path)
    beside = _peer_logits(module, texts)
    weights, config = module.state_dict(), module.config
    read = time.perf_counter() - start
    options.tell(f"{name}: read by ckernels")
    model = ck.models.load(path)
    yield _weights_case(name, model, weights, read)
    start = time.perf_counter()
    layers = model.config.num_hidden_layers
    right = exact.logits(
        config, weights, [ids for _, ids in texts],
        progress=lambda done: options.tell(f"{name}: float64, layer {done} of {layers}"),
    )  # fmt: skip
    seconds = time.perf_counter() - start
    del module, weights
    read_peer.cache_clear()
    gc.collect()

    def say(token):
        return repr(decode([int(token)]))

    with ck.use(options.isa or ck.isa()):
        for (label, ids), wide, other in zip(texts, right, beside, strict=True):
            options.tell(f"{name}: {label}")
            start = time.perf_counter()
            ours = model(ids)
            seconds += time.perf_counter() - start
            yield from judge(f"{name}, {label}", ours, wide, other, seconds=seconds, isa=ck.isa(), say=say)
            seconds = 0.0


def _peer_logits(module, texts):
    """What transformers gives, one text after the other."""
    import torch

    with torch.no_grad():
        return [module(torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy() for _, ids in texts]


def _weights_case(name, model, weights, seconds):
    """Our reader beside transformers': every parameter, bit for bit."""
    names = {key for key in weights if key in model.params or key != "lm_head.weight"}
    wrong = sorted(names ^ model.params.keys())
    total = 0
    for key in sorted(names & model.params.keys()):
        theirs, ours = weights[key].numpy(), model.params[key]
        total += ours.size
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype or ours.tobytes() != theirs.tobytes():
            wrong.append(key)
    note = f"{total:,} weights as transformers reads them, bit for bit"
    if wrong:
        note = f"{len(wrong)} of {len(names)} parameters are not what transformers reads, first '{wrong[0]}'"
    verdict = Verdict.STRUCTURAL if wrong or not total else Verdict.EXACT
    return Case(LEVEL, f"{name}, weights", "as read", "float32", verdict=verdict, note=note, seconds=seconds)


def judge(name, ours, right, beside, *, seconds=0.0, isa="", say=str):
    """Make the cases of one text.

    Parameters
    ----------
    name : str
        Of model and text.
    ours, right, beside : array
        Logits ``[T, V]``: ours, exact, and transformers'.
    seconds : float
        How long it took.
    isa : str
        Of ours.
    say : callable
        Turns an id into text, for naming ties.

    Yields
    ------
    Case
        Logits, KL divergence, ranking.
    """
    report = compare(ours, right, beside, name=name)
    case = case_of(LEVEL, name, "logits", report, isa=isa, seconds=seconds, positions=by_position(ours, right))
    under_ceiling(case, CEILING)
    if report.ok and case.verdict.ok and not report.ratio <= 3:
        case.verdict, case.note = Verdict.EXCESS_DRIFT, f"{report.ratio:.3g} times transformers' error; 3 is the limit"
    if not case.note:
        case.note = (
            f"max {report.max_abs:.2e} (transformers {report.peer_max:.2e}), "
            f"rms {report.rms:.2e} ({report.peer_rms:.2e}); by position {case.data['positions']}"
        )
    yield case
    # What one logit may be off by; without a budget the documented ceiling.
    allowed = min(CEILING, report.allowed_max) if report.allowed_max is not None else CEILING
    yield _divergence_case(name, ours, right, beside, allowed, isa)
    yield _ranking_case(name, ours, right, allowed, isa, say)


def by_position(ours, right):
    """The largest error over positions 0, 1 to 7, 8 to 31, 32 to 127 and above, as text."""
    errors = np.abs(np.asarray(ours, np.float64) - right).max(axis=-1)
    edges = [edge for edge in (0, 1, 8, 32, 128) if edge < errors.size] + [errors.size]
    parts = []
    for low, high in zip(edges, edges[1:], strict=False):
        where = f"{low}" if high == low + 1 else f"{low}-{high - 1}"
        parts.append(f"{where}: {errors[low:high].max():.1e}")
    return ", ".join(parts)


def divergence(logits, right):
    """KL(exact ‖ other) in nats for each position, without cancellation.

    With Δ = other - exact it is ``log E[exp Δ] - E[Δ]``, E over the exact distribution; both parts are of the size of
    Δ, so the small result keeps its digits.
    """
    weights = np.exp(right - right.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    change = np.asarray(logits, np.float64) - right
    middle = (weights * change).sum(axis=-1, keepdims=True)
    return np.log1p((weights * np.expm1(change - middle)).sum(axis=-1))


def _divergence_case(name, ours, right, beside, allowed, isa):
    """The KL divergence: where no logit is off by more than δ it is at most δ²/2 (Hoeffding's lemma)."""
    own, other = divergence(ours, right), divergence(beside, right)
    limit = allowed**2 / 2
    largest = float(own.max())
    margin = largest / limit if math.isfinite(largest) else math.inf
    note = f"mean {own.mean():.2e}, max {largest:.2e} nats; transformers mean {other.mean():.2e}, max {other.max():.2e}"
    return Case(
        LEVEL, name, "KL", "float32", isa, Verdict.WITHIN_BUDGET if margin <= 1 else Verdict.EXCESS_DRIFT,
        margin=margin, error=largest, peer_error=float(other.max()), note=note,
        data={"mean": float(own.mean()), "max": largest, "peer_mean": float(other.mean()), "limit": limit},
    )  # fmt: skip


def _best(logits, count):
    """The ids of the largest logits of each position, largest first."""
    some = np.argpartition(-logits, count - 1, axis=-1)[:, :count]
    order = np.argsort(-np.take_along_axis(logits, some, axis=-1), axis=-1, kind="stable")
    return np.take_along_axis(some, order, axis=-1)


def _ranking_case(name, ours, right, allowed, isa, say):
    """Top-1 and top-5: a difference between words nearer to one another than both errors is a tie, not a mismatch."""
    ours, gap = np.asarray(ours), 2 * allowed
    top = min(5, right.shape[-1])
    best, found = _best(right, top), _best(ours, top)
    agree = {"top1": 0, "top5": 0}
    ties, wrong = [], []
    for position, (mine, true) in enumerate(zip(found, best, strict=True)):
        for depth, key in ((1, "top1"), (top, "top5")):
            gained, lost = set(mine[:depth]) - set(true[:depth]), set(true[:depth]) - set(mine[:depth])
            if not gained:
                agree[key] += 1
                continue
            apart = max(right[position][list(lost)]) - min(right[position][list(gained)])
            text = f"position {position}: {say(min(gained))} for {say(min(lost))}, {apart:.1e} apart"
            (ties if apart <= gap else wrong).append(text)
    near = int((right[np.arange(len(best)), best[:, 0]] - right[np.arange(len(best)), best[:, 1]] <= gap).sum())
    verdict = Verdict.STRUCTURAL if wrong or not np.isfinite(ours).all() else Verdict.WITHIN_BUDGET
    verdict = Verdict.EXACT if verdict.ok and not ties else verdict
    count = len(best)
    note = f"top-1 {agree['top1']}/{count}, top-5 {agree['top5']}/{count}, {near} near ties"
    for label, found in (("mismatch", wrong), ("tie", ties)):
        note += f"; {label} at {found[0]}" if found else ""
    data = {**agree, "positions": count, "near_ties": near, "ties_swapped": len(ties), "mismatches": len(wrong)}
    return Case(LEVEL, name, "top-1, top-5", "float32", isa, verdict, note=note, data=data)
