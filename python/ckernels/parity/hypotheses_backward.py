"""The mistakes people make in a backward pass: edits of the equations of `backward`."""

from __future__ import annotations

from .equations import LINEAR


def gradients(s, index):
    """Hypotheses about gradients of a layer, or outside of layers where `index` is None."""
    from .hypotheses import Hypothesis

    def make(name, fix, **edits):
        return Hypothesis(f"backward: {name}", edits, fix)

    jacobian = "dx = r · (w·dy - x · r² · mean(w·dy·x)): the second term belongs to it"
    for stage in ("d_embedding",) if index is None else ("d_output", "d_residual1"):
        yield make("a term of the norm's Jacobian missing", jacobian, **{stage: {"projection": False}})
        yield make("norm's weight missing", "multiply dy by the weight first", **{stage: {"weightless": True}})
        yield make("saved tensor overwritten (the norm's input by its output)", "save x, or divide by r",
                   **{stage: {"saved": "normed"}})  # fmt: skip
        yield make("gradient of the residual missing", "add what comes past the norm", **{stage: {"skip": False}})
        yield make("gradient through the norm missing", "add what comes through the norm", **{stage: {"norm": False}})
    yield from _parameters(make) if index is None else _layer(s, make)


def _parameters(make):
    """Gradients of parameters, of every layer: their names have no layer in front."""
    products = [place.split(".")[1] for place in LINEAR.values()] + ["lm_head"]
    norms = ["input_layernorm", "post_attention_layernorm", "norm"]
    for name in products:
        yield make("dW transposed", "dW = dyᵀ x, [out, in]", **{f"d_{name}.weight": {"transposed": True}})
    for name in (*products, *norms, "embed_tokens"):
        yield make("gradient not zeroed (twice its value)", "zero the gradients before a step",
                   **{f"d_{name}.weight": {"gain": 2}})  # fmt: skip
    for name in norms:
        yield make("norm weight's gradient without the norm", "dw = Σ dy · x · r",
                   **{f"d_{name}.weight": {"unnormed": True}})  # fmt: skip
    yield make("onehot missing", "d_logits = softmax - onehot, over the number of targets", d_logits={"hot": False})
    yield make("dx from W transposed", "dx = dy W", d_final_norm={"transposed": True})
    table = "d_embed_tokens.weight"
    yield make("rows overwritten, not added", "ids that repeat add up", **{table: {"last": True}})
    yield make("tied head missing", "add the gradient of the output projection", **{table: {"headless": True}})
    yield make("tied embedding missing", "add the gradient of the looked-up rows", **{table: {"tableless": True}})


def _layer(s, make):
    yield make("a term of the softmax's Jacobian missing", "d_scores = p · (dp - Σ p · dp)",
               d_scores={"projection": False})  # fmt: skip
    yield make("softmax's probabilities missing", "d_scores = p · (dp - Σ p · dp)", d_scores={"unweighted": True})
    if s.heads > s.kv_heads:
        last = s.heads // s.kv_heads - 1
        for only, which in ((0, "first"), (last, "last")):
            fix = "sum over the query heads that read a key head"
            name = f"GQA sum missing ({which} head of a group)"
            yield make(name, fix, d_k_rope={"only": only}, d_v={"only": only})
            yield make(f"{name}, keys alone", fix, d_k_rope={"only": only})
            yield make(f"{name}, values alone", fix, d_v={"only": only})
        if s.kv_heads > 1:
            fix = "query head h belongs to key head h // (H / G)"
            for stage in ("d_k_rope", "d_v", "d_q_rope", "d_probs"):
                yield make(f"group map h % G at {stage}", fix, **{stage: {"grouping": "modulo"}})
    for stages, which in ((("d_q_rope", "d_k_rope"), ""), (("d_q_rope",), " (q alone)"), (("d_k_rope",), " (k alone)")):
        edits = {stage: {"factor": 1.0} for stage in stages}
        yield make(f"scale missing{which}", f"multiply d_scores by {s.scale:.6g}", **edits)
        edits = {stage: {"factor": s.scale**2} for stage in stages}
        yield make(f"scale applied twice{which}", f"multiply d_scores by {s.scale:.6g} once", **edits)
    for stages, which in ((("d_q", "d_k"), ""), (("d_q",), " (q alone)"), (("d_k",), " (k alone)")):
        fix = "turn back: by minus the position"
        yield make(f"rope turned forward again{which}", fix, **{stage: {"inverse": False} for stage in stages})
        yield make(f"rope missing{which}", fix, **{stage: {"off": True} for stage in stages})
        if s.interleaved:
            yield make(f"rope half-split{which}", fix, **{stage: {"toggle": True} for stage in stages})
        else:
            yield make(f"rope interleaved{which}", fix, **{stage: {"toggle": True} for stage in stages})
    yield make("a term of the activation's derivative missing", "silu' = σ(x) · (1 + x · (1 - σ(x)))",
               d_gate={"whole": False})  # fmt: skip
    yield make("d_gate without up", "d_gate = d_act · up · silu'(gate)", d_gate={"upless": True})
    yield make("d_up without the activation", "d_up = d_act · silu(gate)", d_up={"raw": True})
    for stage, names in (("d_ln1", ("q", "k", "v")), ("d_ln2", ("gate", "up"))):
        for name in names:
            fix = f"the norm feeds {', '.join(names)}: add all their gradients"
            yield make(f"branch of {name} missing", fix, **{stage: {"without": (name,)}})
            yield make(f"dx of {name} from W transposed", "dx = dy W", **{stage: {"transposed": (name,)}})
    for stage in ("d_act", "d_attn"):
        yield make("dx from W transposed", "dx = dy W", **{stage: {"transposed": True}})
    yield make(
        "heads reshaped, not transposed", "split the heads, then move their axis", d_attn={"order": "not transposed"}
    )
