"""Level 3: a decoder layer of a real model, stage by stage, forward and backward, on real weights and a real text.

Transformers runs the model once on a text, with its loss. What goes into the layer and the gradient that comes back to
its output are given to all parties: the float64 layer of `exact`, and ours. Transformers' own stages are the peer; for
models that are no Llama, whose stages have no hooks, the float32 equations of `exact`. So an error that a stage shows
is the layer's own, made with values and weights as they are in practice: a few channels a thousand times larger than
the others, probabilities near 0 and 1.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import numpy as np

from . import exact, peer
from .forward import MODEL, locate, read_peer, read_tokenizer
from .layer import CEILING_NMSE, condense, run_layer, under_ceiling
from .levels import OptionError, case_of, error_case, not_measured, unmeasured

LEVEL = "stages"
TOKENS = {"quick": 33, "default": 65, "full": 128}
CEILING_FORWARD, CEILING_GRADIENT = 1e-4, 1e-5  # relative to the largest of the array, or to 1


def run(options, *, build=None):
    """Compare one layer of a real model, or several, with float64 and with transformers.

    Parameters
    ----------
    options : Options
        ``model`` is a name that ``ck fetch`` knows, a GGUF file or a folder with safetensors; ``layer`` a number (from
        the last, where negative); ``text`` takes the place of one from the standard library.
    build : callable, optional
        ``build(config, params)`` makes the layer under test; ``ck.nn.DecoderLayer`` unless given.

    Yields
    ------
    Case
        Every stage and its gradient, the gradient of every parameter, ``dx``. Without ``layer``: the first layer, the
        middle one and the last, each condensed to the worst of each pass, unless ``full``.
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
        options.tell(f"{name}: read by transformers")
        module = read_peer(path)
        ids = _text(path, options)
        model = ck.models.load(path)
    except Exception as error:
        yield error_case(LEVEL, name, error)
        return
    if ids.size < 3:
        yield unmeasured(LEVEL, name, f"the text has {ids.size} tokens; a loss and positions need 3 or more")
        return
    layers = model.config.num_hidden_layers
    for index in _chosen(options, layers):
        label = f"{name}, layer {index}, {ids.size - 1} tokens"
        options.tell(label)
        try:
            with ck.use(options.isa or ck.isa()):
                cases = layer_cases(label, module, model, index, ids, ck.isa(), build)
                yield from cases if options.layer is not None or options.full else condense(cases, label)
        except Exception as error:
            yield error_case(LEVEL, label, error)


def _chosen(options, layers):
    """Numbers of layers."""
    if options.layer is not None:
        if not -layers <= options.layer < layers:
            raise OptionError(f"no layer {options.layer}; the model has {layers}, 0 to {layers - 1}")
        return [options.layer % layers]
    return sorted({layers // 2} if options.quick else {0, layers // 2, layers - 1})


def _text(path, options):
    """Ids of the text, at most as many as the size of the run has."""
    from . import probes

    encode, _ = read_tokenizer(path)
    size = "quick" if options.quick else "full" if options.full or options.stress else "default"
    text = probes.text(900, start=options.seed + 7) if options.text is None else options.text
    return np.array(encode(text)[: TOKENS[size] + 1], np.int64)


def layer_cases(label, module, model, index, ids, isa="", build=None):
    """The cases of one layer.

    Parameters
    ----------
    label : str
        Their names' beginning.
    module : torch.nn.Module
        A model of transformers in float32.
    model : ckernels.models.Model
        Ours, of the same file.
    index : int
        Of the layer.
    ids : int [T + 1]
        A text; the last token is only a target.
    isa : str
        Of the cases.
    build : callable, optional
        As for `run`.

    Yields
    ------
    Case
    """
    x, dy, beside = _in_place(module, index, ids)
    under_test = model.layers(len(ids))[index]
    params = _weights(module, model, index)
    want = exact.layer(model.config, params, x, dy=dy, index=index)
    if beside is None:
        beside = exact.layer(model.config, params, x, dy=dy, dtype="float32", index=index)
    if build is not None:
        under_test = build(model.config, {name: np.asarray(value) for name, value in params.items()})
    start = time.perf_counter()
    got, _ = run_layer(under_test, x, dy, None)
    seconds = time.perf_counter() - start
    for name, found, right, other in _pairs(got, want, beside):
        yield _judge(f"{label}: {name}", found, right, other, isa, seconds)
        seconds = 0.0  # the layer ran once for all stages


def _layers_of(module):
    """The list of decoder layers, wherever a family keeps it."""
    import torch

    count = module.config.num_hidden_layers
    for part in module.modules():
        if isinstance(part, torch.nn.ModuleList) and len(part) == count:
            return part
    raise ValueError(f"{type(module).__name__} has no list of {count} layers")


def _in_place(module, index, ids):
    """Input of the layer, gradient of its output and, of a Llama, its stages as a `Run`, from one pass over a text."""
    import torch

    from .trace import Recorder, hooked

    layer, caught = _layers_of(module)[index], {}
    known = module.config.model_type == "llama"

    def before(_module, args, kwargs):
        caught["x"] = args[0] if args else kwargs["hidden_states"]

    def after(_module, _args, result):
        caught["y"] = result[0] if isinstance(result, tuple) else result

    flags = {parameter: parameter.requires_grad for parameter in module.parameters()}
    handles = [layer.register_forward_pre_hook(before, with_kwargs=True), layer.register_forward_hook(after)]
    recorder = Recorder()
    try:
        with hooked(module, recorder) if known else contextlib.nullcontext():
            module.requires_grad_(False)
            layer.requires_grad_(True)
            start = module.get_input_embeddings()(torch.from_numpy(ids[None, :-1])).requires_grad_()
            logits = module(inputs_embeds=start, use_cache=False).logits[0]
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(ids[1:]))
            stages = {name: recorder.tensors[f"layers.{index}.{name}"] for name in exact.LAYER_STAGES} if known else {}
            weights = dict(layer.named_parameters()) if known else {}
            found = torch.autograd.grad(loss, [caught["y"], caught["x"], *stages.values(), *weights.values()])
    finally:
        for handle in handles:
            handle.remove()
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
    x, dy = np.array(caught["x"].detach().numpy()), np.array(found[0].numpy())
    if not known:
        return x, dy, None
    run = exact.Run(dx=found[1].numpy())
    run.stages = {name: recorder.array(f"layers.{index}.{name}", tensor) for name, tensor in stages.items()}
    for name, gradient in zip(stages, found[2:], strict=False):
        run.stages[exact.d_name(name)] = recorder.array(f"layers.{index}.{name}", gradient)
    run.grads = {name: gradient.numpy() for name, gradient in zip(weights, found[2 + len(stages) :], strict=True)}
    return x, dy, run


def _weights(module, model, index):
    """The layer's parameters as transformers read them, where it has them by the same name; else ours."""
    prefix = f"model.layers.{index}."
    theirs = module.state_dict()
    found = {}
    for name, ours in model.params.items():
        if name.startswith(prefix):
            other = theirs.get(name)
            fits = other is not None and tuple(other.shape) == ours.shape
            found[name.removeprefix(prefix)] = other.numpy() if fits else ours
    return found


def _pairs(got, want, beside):
    """Stage, gradient of a stage, dx, gradient of a parameter: name, ours or None, exact, peer."""
    for name, right in want.stages.items():
        yield name, got.stages.get(name), right, beside.stages.get(name)
    yield "dx", got.dx, want.dx, beside.dx
    for name, right in want.grads.items():
        yield f"d_{name}", got.grads.get(name), right, beside.grads.get(name)


def _judge(name, found, right, beside, isa, seconds):
    """The case of one array: the three-party rule, then the ceilings in proportion to the array."""
    from .compare import compare

    backward = name.split(": ")[-1].startswith(("d_", "dx"))
    what = "backward" if backward else "forward"
    missing = "the layer" if found is None else "the peer" if beside is None else ""
    if missing or np.shape(found) != right.shape:
        why = f"{missing} gave no such array" if missing else f"shape {np.shape(found)} instead of {right.shape}"
        return unmeasured(LEVEL, name, why, what, isa=isa)
    report = compare(np.asarray(found), right, beside, name=name)
    case = case_of(LEVEL, name, what, report, isa=isa, seconds=seconds)
    ceiling = CEILING_GRADIENT if backward else CEILING_FORWARD
    return under_ceiling(case, ceiling * max(1.0, report.exact_max), CEILING_NMSE)
