"""A decoder written a second time, for trying `diagnose`: other loops, other orders of summation, mistakes on demand.

It shares nothing with `equations` but the names of stages. Tokens come before heads, queries and keys are complex
numbers, attention runs over blocks of keys with a running maximum, products are summed in four pieces from the last to
the first. Numbers are float32; in bfloat16 every stage is rounded once, when it is stored, as a fused kernel does.
"""

from __future__ import annotations

import math

import numpy as np

CONFIG = {
    "num_hidden_layers": 2, "hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 91, "vocab_size": 101, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 29,
    "attn_logit_softcapping": 9.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0},
}  # fmt: skip
_BLOCK = 16


def stored(x, dtype):
    """What memory holds of a result."""
    x = np.ascontiguousarray(x, np.float32)
    if dtype == "float32":
        return x
    bits = x.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def parameters(seed, dtype="float32"):
    """Parameters with biases and sinks; norm weights away from one."""
    rng = np.random.default_rng([seed, 5])
    c = CONFIG
    C, F, V, D = c["hidden_size"], c["intermediate_size"], c["vocab_size"], c["head_dim"]
    H, G = c["num_attention_heads"], c["num_key_value_heads"]
    params = {"model.embed_tokens.weight": rng.standard_normal((V, C))}
    params["model.embed_tokens.weight"][::5] /= 200  # rows whose mean square is near eps
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        for name, shape in {
            "self_attn.q_proj": (H * D, C), "self_attn.k_proj": (G * D, C), "self_attn.v_proj": (G * D, C),
            "self_attn.o_proj": (C, H * D), "mlp.gate_proj": (F, C), "mlp.up_proj": (F, C), "mlp.down_proj": (C, F),
        }.items():  # fmt: skip
            params[f"{at}{name}.weight"] = rng.standard_normal(shape) * 1.4 / shape[1] ** 0.5
        for name, width in (("q", H * D), ("k", G * D), ("v", G * D)):
            params[f"{at}self_attn.{name}_proj.bias"] = rng.standard_normal(width) * 0.5
        params[f"{at}self_attn.sinks"] = rng.standard_normal(H)
        for name in ("input_layernorm", "post_attention_layernorm"):
            params[f"{at}{name}.weight"] = rng.uniform(0.4, 2, C) * rng.choice([-1, 1, 1], C)
    params["model.norm.weight"] = rng.uniform(0.4, 2, C)
    params["lm_head.weight"] = rng.standard_normal((V, C)) * 1.5 / C**0.5
    return {name: stored(value, dtype) for name, value in params.items()}


def inputs(seed, tokens=37, start=0):
    """Ids, targets with ignored ones, positions."""
    rng = np.random.default_rng([seed, 7])
    ids, targets = rng.integers(0, CONFIG["vocab_size"], (2, 2, tokens))
    ids[:, 2::6] -= ids[:, 2::6] % 5  # rows of tiny RMS
    targets[0, 3] = targets[1, -2] = -100
    positions = np.arange(tokens) + np.array([[0], [3]]) + start
    return {"ids": ids, "targets": targets, "positions": positions}


class Block:
    """The decoder, with one mistake or none.

    Parameters
    ----------
    params : dict
    fault : str
        A key of `faults.FAULTS` or `faults.FOREIGN`, or "".
    dtype : str
        float32 or bfloat16.
    """

    def __init__(self, params, fault="", dtype="float32"):
        self.p, self.fault, self.dtype, self.arrays = params, fault, dtype, {}

    def put(self, name, x):
        self.arrays[name] = stored(x, self.dtype)
        return self.arrays[name]

    def heads(self, name, x):
        """Keep ``[B, T, heads, D]`` as the stage ``[B, heads, T, D]``; return it token by token."""
        return np.ascontiguousarray(self.put(name, x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3))

    # --- forward

    def total(self, x):
        """Sum over the last axis in pairs of halves."""
        x = np.array(x, np.float32)
        while x.shape[-1] > 1:
            half = (x.shape[-1] + 1) // 2
            low, high = x[..., :half].copy(), x[..., half:]
            low[..., : high.shape[-1]] += high
            x = low
        return x[..., 0]

    def norm(self, x, weight, site):
        f, eps, n = self.fault, np.float32(1e-5), x.shape[-1]
        if f == "norm missing" and site == "ln1":
            return x
        eps = {"norm eps 1e-6": np.float32(1e-6), "norm eps 1e-4": np.float32(1e-4), "norm eps 3e-6": np.float32(3e-6),
               "norm eps dropped": np.float32(0)}.get(f, eps)  # fmt: skip
        seen = x[..., : n - 8] if f == "norm last lanes skipped" else x
        square = self.total(seen * seen) / np.float32(n - 1 if f == "norm wrong n" else n)
        if f == "norm by the largest":
            square = np.max(x * x, -1)
        rms = np.sqrt(square) + eps if f == "norm eps outside" else np.sqrt(square + eps)
        y = x * (np.float32(1) / rms)[..., None]
        if f == "norm cast before weight":
            y = stored(y, "bfloat16")
        if f == "norm weight missing" and site == "ln2":
            return y
        return y * (weight + 1 if f == "norm 1+w" else weight)

    def product(self, x, name):
        f, w = self.fault, self.p[f"{name}.weight"]
        if f == "linear transposed" and name.endswith("o_proj"):
            w = w.T
        if f == "linear int8" and name.endswith("up_proj"):
            step = np.abs(w).max(1, keepdims=True) / 127
            w = np.rint(w / step) * step
        k = w.shape[1] - 16 if f == "linear K tail" and name.endswith("down_proj") else w.shape[1]
        flat = x.reshape(-1, x.shape[-1])
        if f == "linear 16-bit sums" and name.endswith("gate_proj"):
            y = np.zeros((len(flat), len(w)), np.float16)
            for j in range(k):
                y = (y.astype(np.float32) + flat[:, j, None] * w[:, j]).astype(np.float16)
            y = y.astype(np.float32)
        else:
            y = np.float32(0)
            for piece in reversed(np.array_split(np.arange(k), 4)):
                y = y + flat[:, piece] @ w[:, piece].T
        bias = self.p.get(f"{name}.bias")
        if bias is not None and not (f == "linear bias missing" and name.endswith("v_proj")):
            y = y + bias * (2 if f == "linear bias doubled" and name.endswith("k_proj") else 1)
        return y.reshape(*x.shape[:-1], -1)

    def turn(self, x, which):
        """Rotate ``[B, T, heads, D]``: a pair is a complex number."""
        f, d = self.fault, x.shape[-1]
        at = self.positions.astype(np.float64)
        at = {"rope +1": at + 1, "rope -1": at - 1, "rope frozen": 0 * at}.get(f, at)
        if f == "rope missing" or (f == "rope q only" and which == "k"):
            return x
        width = d // 2 if f == "rope partial" else d
        base = {"rope base 500000": 5e5, "rope base 26500": 26500.0}.get(f, 1e4)
        turns = base ** (-2 * np.arange(width // 2) / width) / (1 if f == "rope scaling ignored" else 2)
        if f == "rope wrong pair":
            turns = np.roll(turns, 1)
        phi = at[..., None] * turns
        if f == "rope float32 angles":
            phi = (at[..., None].astype(np.float32) * turns.astype(np.float32)).astype(np.float64)
        z = np.exp((-1j if f == "rope sign" else 1j) * phi).astype(np.complex64)[:, :, None]
        y = x.copy()
        if f == "rope interleaved":
            w = (x[..., 0:width:2] + 1j * x[..., 1:width:2]) * z
            y[..., 0:width:2], y[..., 1:width:2] = w.real, w.imag
        else:
            w = (x[..., : width // 2] + 1j * x[..., width // 2 : width]) * z
            y[..., : width // 2], y[..., width // 2 : width] = w.real, w.imag
        if f == "rope head 0":
            y[:, :, 1:] = x[:, :, 1:]
        return y

    def group(self, h, of):
        f, G, H = self.fault, 2, 6
        wrong = f in ("attention group map", f"attention group map {of}")
        return h % G if wrong else h // (H // G)

    def cached(self, x, i, of):
        """Keys or values ``[B, S, G, D]`` as the reader of the cache sees them."""
        f = self.fault
        B, S, G, D = x.shape
        if f == "kv layout":
            return np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(B, S, G, D)
        if f == "kv item 0":
            return np.repeat(x[:1], B, 0)
        if f == "kv slot":
            return np.concatenate((np.zeros_like(x[:, :1]), x[:, :-1]), 1)
        if f == "kv stride":
            memory = np.zeros((B, G, 64, D), np.float32)
            memory[:, :, :S] = x.transpose(0, 2, 1, 3)
            return memory.reshape(B, -1, D)[:, : G * S].reshape(B, G, S, D).transpose(0, 2, 1, 3)
        if f == "kv layer ignored" and i:
            name = "k_rope" if of == "k" else "v"
            return self.arrays[f"layers.0.{name}"].transpose(0, 2, 1, 3)
        return x

    def sees(self, t, s):
        f, window = self.fault, {"attention window +1": 30, "attention window -1": 28}.get(self.fault, 29)
        ahead = {"attention causal +1": 1, "attention causal -1": -1}.get(f, 0)
        if f == "attention mask ignored":
            return s > t - window
        if f == "attention every fifth":
            return s <= t and s > t - window and (s % 5 != 4 or s == t)
        return s <= t + ahead and s > t - window

    def attend(self, i, q, k, v):
        """Query by query over blocks of keys, with the running maximum and sum of flash attention."""
        f = self.fault
        B, T, H, D = q.shape
        k, v = self.cached(k, i, "k"), self.cached(v, i, "v")
        scale = {"attention scale missing": 1.0, "attention scale 1/D": 1 / D, "attention scale x1.05": 1.05 / 4}.get(
            f, 0.25
        )
        scores = np.zeros((B, H, T, T), np.float32)
        probs, out = np.zeros_like(scores), np.zeros((B, T, H, D), np.float32)
        seen = np.array([[self.sees(t, s) for s in range(T)] for t in range(T)])
        for b in range(B):
            for h in range(H):
                raw = np.stack([self.total(q[b, t, h] * k[b, :, self.group(h, "k")]) for t in range(T)]) * np.float32(
                    scale
                )
                s = raw if f == "attention softcap missing" else np.float32(9) * np.tanh(raw / np.float32(9))
                scores[b, h] = stored(s, self.dtype)
                sink = -np.inf if f == "attention sinks ignored" else self.p[f"model.layers.{i}.self_attn.sinks"][h]
                hidden = np.where(seen, scores[b, h], -np.inf)
                top = np.maximum(hidden.max(1), sink)
                top = np.where(np.isfinite(top), top, 0).astype(np.float32)
                p = np.exp2((hidden - top[:, None]) * np.float32(math.log2(math.e)))
                sums = self.total(p) + np.exp(sink - top)
                if f == "attention key tail":
                    sums = sums + (-T % 16) * np.exp(-top)
                probs[b, h] = stored(p / np.where(sums == 0, 1, sums)[:, None], self.dtype)
                out[b, :, h] = self.blocks(scores[b, h], probs[b, h], v[b, :, self.group(h, "v")], seen)
        self.put(f"layers.{i}.scores", scores)
        self.put(f"layers.{i}.probs", probs)
        if f == "attention last tile":
            out[:, T - T % 8 :] = 0
        return self.heads(f"layers.{i}.attn", out)

    def blocks(self, scores, probs, v, seen):
        T = len(probs)
        if self.fault != "attention no rescale":
            out = np.zeros((T, v.shape[1]), np.float32)
            for start in range(0, T, _BLOCK):
                out = out + probs[:, start : start + _BLOCK] @ v[start : start + _BLOCK]
            return out
        top, total, out = np.full(T, -np.inf, np.float32), np.float32(0), np.float32(0)
        for start in range(0, T, _BLOCK):
            part = np.where(seen, scores, -np.inf)[:, start : start + _BLOCK]
            top = np.maximum(top, part.max(1))
            with np.errstate(invalid="ignore"):
                p = np.where(np.isfinite(part), np.exp(part - top[:, None]), 0).astype(np.float32)
            total, out = total + p.sum(1), out + p @ v[start : start + _BLOCK]
        return out / total[:, None]

    def gated(self, gate, up):
        f, one = self.fault, np.float32(1)
        if f == "mlp swapped":
            gate, up = up, gate
        if f == "mlp gelu tanh":
            lit = gate * (np.tanh(np.float32(0.7978845608) * (gate + np.float32(0.044715) * gate**3)) + one) / 2
        elif f == "mlp gelu erf":
            lit = gate * (np.vectorize(math.erf, otypes=[np.float32])(gate / np.float32(math.sqrt(2))) + one) / 2
        elif f == "mlp gelu sigmoid":
            lit = gate / (one + np.exp(np.float32(-1.702) * gate))
        elif f == "mlp no gate":
            return up / (one + np.exp(-up))
        elif f == "mlp clipped":
            lit = np.minimum(gate / (one + np.exp(-gate)), np.float32(1.5))
        else:
            lit = gate * (np.tanh(gate / 2) + one) / 2
        return lit * up

    def added(self, base, branch, normed, site):
        f = self.fault if site == "residual1" or self.fault.endswith("scaled") else ""
        base = {"residual normed": normed, "residual missing": 0 * base, "residual doubled": 2 * base,
                "residual scaled": np.float32(0.9) * base}.get(f, base)  # fmt: skip
        return base + branch

    def forward(self, ids, targets, positions):
        """All stages; returns them."""
        self.ids, self.targets, self.positions = ids, targets, positions
        f, p, B, T = self.fault, self.p, *ids.shape
        x = self.put("embedding", p["model.embed_tokens.weight"][(ids + 1) % 101 if f == "embedding ids" else ids])
        for i in range(2):
            at, name = f"layers.{i}.", f"model.layers.{i}."
            ln1 = self.put(f"{at}ln1", self.norm(x, p[f"{name}input_layernorm.weight"], "ln1"))
            q, k, v = (
                self.heads(f"{at}{n}", self.product(ln1, f"{name}self_attn.{n}_proj").reshape(B, T, -1, 16))
                for n in "qkv"
            )
            q, k = (self.heads(f"{at}{n}_rope", self.turn(a, n)) for n, a in (("q", q), ("k", k)))
            attn = self.attend(i, q, k, v)
            proj = self.put(f"{at}proj", self.product(attn.reshape(B, T, -1), f"{name}self_attn.o_proj"))
            x = self.put(f"{at}residual1", self.added(x, proj, ln1, "residual1"))
            ln2 = self.put(f"{at}ln2", self.norm(x, p[f"{name}post_attention_layernorm.weight"], "ln2"))
            gate = self.put(f"{at}gate", self.product(ln2, f"{name}mlp.gate_proj"))
            up = self.put(f"{at}up", self.product(ln2, f"{name}mlp.up_proj"))
            act = self.put(f"{at}act", self.gated(gate, up))
            down = self.put(f"{at}down", self.product(act, f"{name}mlp.down_proj"))
            x = self.put(f"{at}output", self.added(x, down, ln2, "output"))
        y = self.put("final_norm", self.norm(x, p["model.norm.weight"], "final_norm"))
        self.loss(self.put("logits", self.product(y, "lm_head")))
        return self.arrays

    def loss(self, logits):
        f, targets = self.fault, self.targets
        targets = np.roll(targets, -1, 1) if f == "loss shifted" else targets
        counted = np.ones(targets.shape, bool) if f == "loss ignored counted" else targets != -100
        rows = np.exp(logits - logits.max(-1, keepdims=True))
        rows = rows / rows.sum(-1, keepdims=True, dtype=np.float32)
        picked = np.take_along_axis(rows, np.where(targets == -100, 0, targets)[..., None], -1)[..., 0]
        each = -np.log(picked + np.float32(1e-5 if f == "loss log(p + eps)" else 0))
        n = 1 if f == "loss sum" else targets.size if f == "loss all rows" else counted.sum()
        self.arrays["loss"] = np.float32(each[counted].sum(dtype=np.float64) / n)
