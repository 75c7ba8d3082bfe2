"""Plant faults in the sources, one at a time, and see which tests turn red.

    python tests/faults.py                                 all of them
    python tests/faults.py "attention: causal off by one"  those named

The lines of what was planted are written to the table of docs/faults.md, the others stay.

Each fault is a few replaced words in a copy of the repository, which is built there and tested with the tests named
beside it.  Kernels are built anew for the best instruction set alone, on which tests run first.  A fault that leaves them green is a hole: the exit code is 1.  ``tests/test_faults.py`` keeps the replaced
words in step with the sources.
"""
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import native

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "faults.md"


@dataclass
class Fault:
    """What is wrong, how it is planted, and the tests that must notice."""

    name: str
    edits: list  # (file, words, words instead)
    tests: str

    def patched(self, root):
        """Yield each file with its new text; ValueError where the words do not stand there exactly once."""
        texts = {}
        for file, old, new in self.edits:
            text = texts.get(file) or (root / file).read_text()
            if text.count(old) != 1:
                raise ValueError(f"{self.name}: {file} has {old!r} {text.count(old)} times")
            texts[file] = text.replace(old, new)
        for file, text in texts.items():
            yield root / file, text


FAULTS = [
    Fault("rope: interleaved for half-split",
          [("csrc/kernels/rope.c", "    if (h.interleaved)\n        turn_neighbours", "    if (!h.interleaved)\n        turn_neighbours")],
          "tests/test_rope.py"),
    Fault("rope: the other direction",
          [("csrc/kernels/rope.c", "v16_fma(hi, h.back ? s : v16_neg(s), v16_mul(lo, c))", "v16_fma(hi, h.back ? v16_neg(s) : s, v16_mul(lo, c))"),
           ("csrc/kernels/rope.c", "v16_fma(hi, c, v16_mul(lo, h.back ? v16_neg(s) : s))", "v16_fma(hi, c, v16_mul(lo, h.back ? s : v16_neg(s)))")],
          "tests/test_rope.py"),
    Fault("rope: backward turns as forward does",
          [("csrc/kernels/rope.c", "a->N, a->T, a->D, a->S, a->K, 1, a->P};\n    turn(&same, task, true);", "a->N, a->T, a->D, a->S, a->K, 1, a->P};\n    turn(&same, task, false);")],
          "tests/test_rope.py"),
    Fault("rope: positions ignored",
          [("csrc/kernels/rope.c", "a->positions.data != NULL ? ck_position(&a->positions, p, t + i) : (int64_t)(t + i);", "(int64_t)(t + i);")],
          "tests/test_rope.py"),
    Fault("rope: head 0 only",
          [("csrc/kernels/rope.c", "    if (x.head < x.token) {", "    heads = 1;\n    if (x.head < x.token) {")],
          "tests/test_rope.py"),
    Fault("rope: the lanes behind a partial width lost",
          [("csrc/kernels/rope.c", "    if (D > 2 * K && y != x)", "    if (D > 2 * K + 1 && y != x)")],
          "tests/test_rope.py"),
    Fault("rope: positions one too high",
          [("csrc/kernels/rope_table.c", "(double)ck_id(&a->positions, t);", "(double)ck_id(&a->positions, t) + 1;")],
          "tests/test_rope.py"),
    Fault("rope: angles in float32",
          [("csrc/kernels/rope_table.c", "const double angle = position * a->frequency[k];", "const float angle = (float)position * (float)a->frequency[k];")],
          "tests/test_rope.py"),
    Fault("rope: another base",
          [("csrc/ops/rope_table.c", "const double f = pow(base, -(double)k / (double)a->K);", "const double f = pow(1.01 * base, -(double)k / (double)a->K);")],
          "tests/test_rope.py"),
    Fault("rope: scaling ignored",
          [("csrc/ops/rope_table.c", "a->rule == CK_ROPE_LLAMA3 ? llama3(a, f)", "a->rule == CK_ROPE_LLAMA3 ? 0 * llama3(a, f) + f")],
          "tests/test_rope_scaling.py"),
    Fault("mrope: every pair by the first axis",
          [("csrc/kernels/rope.c", "ck_position(&a->positions, axis * a->P + p, t + i)", "ck_position(&a->positions, p, t + i)")],
          "tests/test_mrope.py"),
    Fault("qk_norm_rope: the norm missing",
          [("csrc/kernels/qk_norm_rope.c", "return v16_mul(v16_mul(v16_load(of->x + c, n), of->scale), v16_load_f32(of->weight + c, n));",
            "return v16_mul(v16_load(of->x + c, n), v16_load_f32(of->weight + c, n));")],
          "tests/test_qk_norm_rope.py"),
    Fault("rms_norm: eps times ten",
          [("csrc/kernels/rms_norm.c", "/ (double)C + a->eps));", "/ (double)C + 10 * a->eps));")],
          "tests/test_rms_norm.py"),
    Fault("rms_norm: eps dropped",
          [("csrc/kernels/rms_norm.c", "/ (double)C + a->eps));", "/ (double)C + 0 * a->eps));")],
          "tests/test_rms_norm.py"),
    Fault("rms_norm: eps outside the root",
          [("csrc/kernels/rms_norm.c", "(1 / sqrt(sum.a / (double)C + a->eps))", "(1 / (sqrt(sum.a / (double)C) + a->eps))")],
          "tests/test_rms_norm.py"),
    Fault("rms_norm: the mean over another n",
          [("csrc/kernels/rms_norm.c", "/ (double)C + a->eps));", "/ (double)(C + 1) + a->eps));")],
          "tests/test_rms_norm.py"),
    Fault("rms_norm: w for 1 + w",
          [("csrc/kernels/rms_norm.c", "return v16_add(v16_load_f32(row->weight + c, n), row->offset);", "return v16_load_f32(row->weight + c, n);")],
          "tests/test_rms_norm.py"),
    Fault("rms_norm: rounded to 16 bits before the weight",
          [("csrc/kernels/rms_norm.c", "return v16_mul(scaled(of, c, n), weights(of, c, n));",
            "elem cut[16]; v16_store(cut, scaled(of, c, n), 16); return v16_mul(v16_load(cut, 16), weights(of, c, n));")],
          "tests/test_rms_norm.py"),
    Fault("norms: last lanes not summed",
          [("csrc/kernels/norm.h", "    if (c + 16 < to)\n        hi = term(of, c + 16, to - c - 16, hi);\n", "")],
          "tests/test_rms_norm.py tests/test_layer_norm.py"),
    Fault("norms: a write one past a row",
          [("csrc/kernels/norm.h", "v16_put(y + c, value(of, c, n), n, false)", "v16_put(y + c, value(of, c, n), n + (n < 16), false)")],
          "tests/test_rms_norm.py"),
    Fault("norms: a read one past a row",
          [("csrc/kernels/norm.h", "        lo = term(of, c, to - c, lo);", "        lo = term(of, c, to - c + 1, lo);")],
          "tests/test_rms_norm.py"),
    Fault("norms: the last element never written",
          [("csrc/kernels/norm.h", "v16_put(y + c, value(of, c, n), n, false)", "v16_put(y + c, value(of, c, n), n - (n < 16), false)")],
          "tests/test_rms_norm.py"),
    Fault("norms: a row's share of the weight's gradient lost",
          [("csrc/kernels/norm.h", "first ? v16_zero() : v16_load_f32(part, n)", "first ? v16_zero() : v16_zero()")],
          "tests/test_rms_norm.py"),
    Fault("norms: the work of a call before it read as a share",
          [("csrc/kernels/norm.h", "first ? v16_zero() : v16_load_f32(part, n)", "first && n == 0 ? v16_zero() : v16_load_f32(part, n)")],
          "tests/test_rms_norm.py"),
    Fault("rms_norm: a term of the Jacobian missing",
          [("csrc/kernels/rms_norm.c", "return v16_mul(row->scale, v16_fma(x, row->pull, g));", "return (void)x, v16_mul(row->scale, g);")],
          "tests/test_rms_norm.py"),
    Fault("layer_norm: a term of the Jacobian missing",
          [("csrc/kernels/layer_norm.c", "v16_fma(d, row->pull, v16_sub(g, row->about))", "v16_fma(d, row->pull, g)")],
          "tests/test_layer_norm.py"),
    Fault("layer_norm: the mean not subtracted",
          [("csrc/kernels/layer_norm.c", "v16_sub(v16_load(row->x + c, n), row->mean);\n    const v16 normed", "v16_load(row->x + c, n);\n    const v16 normed")],
          "tests/test_layer_norm.py"),
    Fault("layer_norm: the unbiased variance",
          [("csrc/kernels/layer_norm.c", "sqrt(squares / (double)C + a->eps)", "sqrt(squares / (double)(C - (C > 1)) + a->eps)")],
          "tests/test_layer_norm.py"),
    Fault("l2_norm: a term of the Jacobian missing",
          [("csrc/kernels/l2_norm.c", "v16_fma(v16_load(row->x + c, n), row->pull, v16_load(row->dy + c, n))", "v16_load(row->dy + c, n)")],
          "tests/test_l2_norm.py"),
    Fault("add_rms_norm: the residual missing",
          [("csrc/kernels/add_rms_norm.c", "v16_add(v16_load(row->residual + c, n), v16_load(row->x + c, n))", "v16_load(row->x + c, n)")],
          "tests/test_add_rms_norm.py"),
    Fault("add_rms_norm: the residual doubled",
          [("csrc/kernels/add_rms_norm.c", "v16_add(v16_load(row->residual + c, n), v16_load(row->x + c, n))",
            "v16_fma(v16_load(row->residual + c, n), v16_splat(2.0f), v16_load(row->x + c, n))")],
          "tests/test_add_rms_norm.py"),
    Fault("add_rms_norm: the normed row returned as the sum",
          [("csrc/kernels/add_rms_norm.c", "        v16_store(row->h + c, h, n);", "        v16_store(row->h + c, v16_mul(h, row->scale), n);")],
          "tests/test_add_rms_norm.py"),
    Fault("add_rms_norm: the gradient of the sum lost",
          [("csrc/kernels/add_rms_norm.c", "v16_add(dh, v16_mul(row->scale, v16_fma(h, row->pull, g)))", "((void)dh, v16_mul(row->scale, v16_fma(h, row->pull, g)))")],
          "tests/test_add_rms_norm.py"),
    Fault("add: written over an input that is read again",
          [("csrc/kernels/add.c", "            const v16 d = v16_load(dout + c, w);\n", "            const v16 d = v16_load(dout + c, w);\n            v16_store((elem *)dout + c, v16_zero(), w);\n")],
          "tests/test_add.py"),
    Fault("gelu: the tanh form for erf",
          [("csrc/kernels/activation.c", "PLAIN(gelu, v16_gelu_elem(x), v16_mul(dy, v16_gelu_slope_elem(x)))", "PLAIN(gelu, v16_gelu_tanh_elem(x), v16_mul(dy, v16_gelu_slope_elem(x)))")],
          "tests/test_activation.py"),
    Fault("gelu: silu for the sigmoid form",
          [("csrc/kernels/activation.c", "PLAIN(gelu_sigmoid, v16_gelu_sigmoid_elem(x),", "PLAIN(gelu_sigmoid, v16_silu_elem(x),")],
          "tests/test_activation.py"),
    Fault("silu: the slope of gelu",
          [("csrc/kernels/activation.c", "v16_mul(dy, v16_silu_slope_elem(x))", "v16_mul(dy, v16_gelu_sigmoid_slope_elem(x))")],
          "tests/test_activation.py"),
    Fault("swiglu: gate and up exchanged",
          [("csrc/kernels/glu.c", "v16_mul(f(v16_load(gate + c, w)), v16_load(up + c, w))", "v16_mul(f(v16_load(up + c, w)), v16_load(gate + c, w))")],
          "tests/test_glu.py"),
    Fault("swiglu: no gate",
          [("csrc/kernels/glu.c", "v16_mul(f(v16_load(gate + c, w)), v16_load(up + c, w))", "((void)gate, (void)f, v16_load(up + c, w))")],
          "tests/test_glu.py"),
    Fault("geglu: the gate of swiglu",
          [("csrc/kernels/glu.c", "GATED_UNIT(geglu, gelu_elem)", "GATED_UNIT(geglu, silu_elem)")],
          "tests/test_glu.py"),
    Fault("gradients: not accumulated",
          [("csrc/kernels/sum_rows.c", "sum[i] = before[i] + sum[i];", "sum[i] = 0 * before[i] + sum[i];")],
          "tests/test_rms_norm.py"),
    Fault("gradients: the last row of partial sums lost",
          [("csrc/kernels/sum_rows.c", "for (size_t r = 0; r < a->R; r++) {", "for (size_t r = 0; r + (a->R > 1) < a->R; r++) {")],
          "tests/test_rms_norm.py"),
    Fault("rope: all tokens of a block at the first one's position",
          [("csrc/kernels/rope.c", "ck_position(&a->positions, p, t + i) :", "ck_position(&a->positions, p, t) :")],
          "tests/test_rope.py tests/test_decoder.py"),
    Fault("rope: the angles of the next position",
          [("csrc/kernels/rope_table.c", "(double)ck_id(&a->positions, t);", "(double)ck_id(&a->positions, t) + 1;")],
          "tests/test_rope.py tests/test_rope_scaling.py"),
    Fault("rope: the width of the head instead of the rotated part",
          [("csrc/kernels/rope.c", "turn_halves(y, x, cos, sin, k, n, K, h);", "turn_halves(y, x, cos, sin, k, n, D / 2, h);"),
           ("csrc/kernels/rope.c", "size_t k, size_t n, size_t K, how h)\n{\n    if (h", "size_t k, size_t n, size_t D, how h)\n{\n    if (h"),
           ("csrc/kernels/rope.c", "        turn_pairs(y, x, cos, sin, k, 16, K, h);", "        turn_pairs(y, x, cos, sin, k, 16, D, h);"),
           ("csrc/kernels/rope.c", "        turn_pairs(y, x, cos, sin, k, K - k, K, h);", "        turn_pairs(y, x, cos, sin, k, K - k, D, h);")],
          "tests/test_rope.py"),
    Fault("rope: attention factor dropped",
          [("csrc/kernels/rope_table.c", "(float)(a->attention * cos(angle))", "(float)cos(angle)")],
          "tests/test_rope_scaling.py"),
    Fault("rope: long factors for short texts",
          [("csrc/ops/rope_table.c", "length_of(a) > a->original", "length_of(a) <= a->original")],
          "tests/test_rope_scaling.py"),
    Fault("norms: the first elements of a row that is streamed left out",
          [("csrc/kernels/norm.h", "{ v16_put(y + c, value(of, c, n), n, true); }",
            "if (c != 0 || n == 16) v16_put(y + c, value(of, c, n), n, true);")],
          "tests/test_rms_norm.py"),
    Fault("add_rms_norm: the norm of the sum before it is rounded",
          [("csrc/kernels/add_rms_norm.c", "    if (CK_IS_FLOAT)\n        return sum;\n", "    return sum;\n")],
          "tests/test_add_rms_norm.py"),
    Fault("layer_norm: eps outside the root",
          [("csrc/kernels/layer_norm.c", "1 / sqrt(squares / (double)C + a->eps)",
            "1 / (sqrt(squares / (double)C) + a->eps)")],
          "tests/test_layer_norm.py"),
    Fault("layer_norm: what the mean lacks ignored",
          [("csrc/kernels/layer_norm.c", "{about + d.a * inverse, d.b - d.a * (d.a * inverse), 0}",
            "{about, d.b, 0}")],
          "tests/test_layer_norm.py"),
    Fault("layer_norm: blocks of a row put together without the distance of their means",
          [("csrc/kernels/layer_norm.c", "more.b + step * step * ((double)before * share)", "more.b")],
          "tests/test_layer_norm.py"),
    Fault("norms: the pieces of a row that is cut put together but the last",
          [("csrc/kernels/norm.h", "for (size_t i = 0; i < s.pieces; i++)\n        sum", "for (size_t i = 0; i + 1 < s.pieces; i++)\n        sum")],
          "tests/test_rms_norm.py"),
    Fault("norms: the last slice of rows that are cut never written",
          [("csrc/ops/norm_rows.c", "job.n = ck_blocks(C, CK_NORM_SLICE);", "job.n = ck_blocks(C, CK_NORM_SLICE) - 1;")],
          "tests/test_l2_norm.py"),
    Fault("layer_norm: the mean of g missing from the Jacobian",
          [("csrc/kernels/layer_norm.c", "(float)(sum.a / n - lacks * pull)", "(float)(-lacks * pull)")],
          "tests/test_layer_norm.py"),
    Fault("l2_norm: mean for sum",
          [("csrc/kernels/l2_norm.c", "sqrt(sum.a + a->eps)",
            "sqrt(sum.a / (double)a->C + a->eps)")],
          "tests/test_l2_norm.py"),
    Fault("qk_norm_rope: turned back by the angle itself",
          [("csrc/kernels/qk_norm_rope.c", "v16_splat(-1.0f)", "v16_splat(1.0f)")],
          "tests/test_qk_norm_rope.py"),
    Fault("qk_norm_rope: the weight of the partner",
          [("csrc/kernels/qk_norm_rope.c", "of->scale), v16_load_f32(of->weight + c, n));",
            "of->scale), v16_load_f32(of->weight + c % 16, n));")],
          "tests/test_qk_norm_rope.py"),
    Fault("attention: causal off by one",
          [("csrc/kernels/attention_rule.h", "    if (u->causal && p < to)\n        to = p + 1;",
            "    if (u->causal && p + 1 < to)\n        to = p + 2;")],
          "tests/test_attention.py tests/test_decoder.py"),
    Fault("attention: group map h % G",
          [("csrc/kernels/attention.c", "rows_at(&a->q, at.b, head_of(&s, r))", "rows_at(&a->q, at.b, head_of(&s, r) / s.heads + head_of(&s, r) % s.heads * a->G)"),
           ("csrc/kernels/attention.c", "const size_t h = head_of(s, r), t =", "const size_t h = head_of(s, r) / s->heads + head_of(s, r) % s->heads * a->G, t =")],
          "tests/test_attention.py tests/test_decoder.py"),
    Fault("attention: window off by one",
          [("csrc/kernels/attention_rule.h", "from = p - u->left;", "from = p - u->left + 1;")],
          "tests/test_attention.py"),
    Fault("attention: no rescaling when a later part has the larger maximum",
          [("csrc/kernels/attention_forward.h", "stays ? v16_fma(new, by, old) : v16_fma(old, by, new)",
            "stays ? v16_fma(new, by, old) : v16_add(old, new)")],
          "tests/test_attention.py"),
    Fault("attention: the maximum not subtracted",
          [("csrc/kernels/attention_forward.h", "v16_exp_below(v16_sub(v16_load_f32(x + i, 16), top))",
            "((void)top, v16_exp(v16_load_f32(x + i, 16)))")],
          "tests/test_attention.py"),
    Fault("kv cache: written at the start of the item",
          [("csrc/kernels/kv_cache.c", "(size_t)a->lengths[b] + j, &one)", "j, &one)")],
          "tests/test_kv_cache.py"),
    Fault("kv cache: every item at item 0's length",
          [("csrc/kernels/kv_cache.c", "(size_t)a->lengths[b] + j, &one)", "(size_t)a->lengths[0] + j, &one)")],
          "tests/test_kv_cache.py"),
    Fault("kv cache: writer head-major, reader token-major",
          [("csrc/kernels/attention_source.h", "        const size_t row = ck_kv_run(x->form, x->b, x->g, s + i, &run);\n        for",
            "        const size_t row = (x->b * x->form->S + s + i) * x->form->G + x->g;\n        run = 1;\n        for")],
          "tests/test_kv_cache.py"),
    Fault("kv cache: the stride of heads is the length, not the capacity",
          [("csrc/kernels/kv_cache.c",
            "    const ck_kv_form form = CK_KV_FORM(a);\n    const ck_kv_part k = CK_KV_PART(a, k), v = CK_KV_PART(a, v);",
            "    ck_kv_form form = CK_KV_FORM(a);\n    const ck_kv_part k = CK_KV_PART(a, k), v = CK_KV_PART(a, v);\n"
            "    form.S = form.table == NULL && a->B != 0 ? (size_t)a->lengths[0] + a->T : form.S;")],
          "tests/test_kv_cache.py"),
    Fault("kv cache: the wrong slot, by writer and reader alike",
          [("csrc/ops/kv_store.h", "slot = s % form->S, here = form->S - slot;", "slot = (s + 1) % form->S, here = form->S - slot;")],
          "tests/test_kv_cache.py"),
    Fault("kv cache: a byte of the neighbour touched",
          [("csrc/kernels/kv_encode.h", "            memcpy(codes, x, form->W);", "            memcpy(codes, x, form->W + 1);")],
          "tests/test_kv_cache.py"),
    Fault("kv cache: one token past the capacity",
          [("python/ckernels/kv/kv_cache.py", "(count if ring else length + count) > capacity:", "(count if ring else length + count) > capacity + 1:"),
           ("csrc/ops/kv_cache.c", "(size_t)count > capacity - (size_t)length)))", "(size_t)count > capacity + 1 - (size_t)length)))")],
          "tests/test_kv_cache.py"),
    Fault("kv cache: stale after reset",
          [("python/ckernels/kv/kv_cache.py", "        self._lengths[:] = 0\n        self._first[:] = 0", "        self._first[:] = 0")],
          "tests/test_kv_cache.py"),
    Fault("kv cache: a ring reads what it has overwritten",
          [("python/ckernels/kv/kv_cache.py", "        if (reach < first).any():", "        if (reach < first - 2).any():"),
           ("csrc/ops/kv_cache.c", "        if (first < gone)", "        if (first < gone - 2)")],
          "tests/test_kv_attend.py"),
    Fault("kv cache: the layer ignored",
          [("python/ckernels/models/model.py", "x = layer.decode(x, held, counts=counts)", "x = layer.decode(x, cache.layers[0], counts=counts)")],
          "tests/test_models.py"),
    Fault("kv cache: batched append at the first cache's length",
          [("csrc/kernels/kv_cache.c", "(size_t)a->lengths[n], &one)", "(size_t)a->lengths[0], &one)")],
          "tests/test_kv_paged.py"),
    Fault("paged kv cache: the identity taken for the table",
          [("csrc/ops/kv_store.h", "(size_t)form->table[b * form->P + s / form->S] : b;", "s / form->S : b;")],
          "tests/test_kv_paged.py"),
    Fault("paged kv cache: every item by item 0's table",
          [("csrc/ops/kv_store.h", "(size_t)form->table[b * form->P + s / form->S] : b;", "(size_t)form->table[s / form->S] : b;")],
          "tests/test_kv_paged.py"),
    Fault("paged kv cache: a shared partial block written without a copy",
          [("python/ckernels/kv/paged.py", "                if owners[last] > 1:", "                if owners[last] > 2:")],
          "tests/test_kv_paged.py"),
    Fault("paged kv cache: a copied block without its values",
          [("csrc/ops/kv_cache.c", "        copy_block(&form, &v_part, a->k.width, (size_t)a->copy_from[m], (size_t)a->copy_to[m]);\n", "")],
          "tests/test_kv_paged.py tests/test_kv_random.py"),
    Fault("paged kv cache: blocks of a refused append lost",
          [("python/ckernels/kv/paged.py", "        self.pool._free += reversed(self._taken)", "        pass")],
          "tests/test_kv_paged.py"),
    Fault("quantised: codes truncated, not rounded",
          [("csrc/kernels/kv_encode.h", "half = v16_splat(0.5f)", "half = v16_splat(0.0f)")],
          "tests/test_kv_formats.py"),
    Fault("quantised: a level lost",
          [("csrc/kernels/kv_encode.h", "bits == 8 ? 255.0f : 15.0f", "bits == 8 ? 254.0f : 14.0f")],
          "tests/test_kv_formats.py"),
    Fault("quantised: the scale of the next group",
          [("csrc/kernels/kv_decode.h", "*scales = (const elem *)from->scales + group,", "*scales = (const elem *)from->scales + (group + 1) % V,")],
          "tests/test_kv_formats.py"),
    Fault("quantised: the bias of the next group",
          [("csrc/kernels/kv_decode.h", "*biases = (const elem *)from->biases + group;", "*biases = (const elem *)from->biases + (group + 1) % V;")],
          "tests/test_kv_formats.py"),
    Fault("quantised: nibbles in the other order, by writer and reader alike",
          [("csrc/kernels/kv_encode.h", "(int)lane[2 * i] | (int)lane[2 * i + 1] << 4", "(int)lane[2 * i + 1] | (int)lane[2 * i] << 4"),
           ("csrc/simd/codes.h", "_mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28)",
            "_mm512_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24)"),
           ("csrc/simd/codes.h", "shift = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28)", "shift = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24)")],
          "tests/test_kv_formats.py"),
    Fault("quantised: a scale that underflows",
          [("csrc/kernels/kv_encode.h", "return kv_rounded(to, scale < tiny ? tiny : scale);", "return kv_rounded(to, scale < 0 ? tiny : scale);")],
          "tests/test_kv_formats.py"),
    Fault("quantised: codes from a scale that is not rounded yet",
          [("csrc/kernels/kv_encode.h", "    return v16_sum(v16_load(to, 1));", "    return x;")],
          "tests/test_kv_formats.py"),
    Fault("quantised: float8 rounds half away from zero",
          [("csrc/kernels/kv_encode.h", "up = bits + even + (1u << (drop - 1)) - 1;", "up = bits + 0 * even + (1u << (drop - 1));")],
          "tests/test_kv_formats.py"),
    Fault("quantised: NaN among the values is written",
          [("csrc/ops/kv_cache.c", '        TRY(refuse_strange(k, "v", &a->v, a->counts, R, a->T, a->G, a->D));\n', "")],
          "tests/test_kv_formats.py"),
    Fault("decoder: gate and up exchanged",
          [("csrc/layers/decoder.c",
            ".gate = ck_rows(a->gate, R, F, WIDTH),\n                                                 .up = ck_rows(a->up, R, F, WIDTH), .R = R, .F = F}));\n    if (a->down",
            ".gate = ck_rows(a->up, R, F, WIDTH),\n                                                 .up = ck_rows(a->gate, R, F, WIDTH), .R = R, .F = F}));\n    if (a->down")],
          "tests/test_decoder.py"),
    Fault("decoder: residual from the normed input",
          [("csrc/layers/decoder.c", "a->attn, a->o_weight, ck_merged(a->x), R, H * D, C);",
            "a->attn, a->o_weight, ck_rows(a->ln1, R, C, WIDTH), R, H * D, C);")],
          "tests/test_decoder.py"),
    Fault("decoder: the cache read before its new length",
          [("csrc/layers/decoder.c", ".offsets = a->lengths, .lengths = after, .left = -1",
            ".offsets = a->lengths, .lengths = a->lengths, .left = -1")],
          "tests/test_decoder.py"),
    Fault("embedding: the last gradient of a run of equal ids lost",
          [("csrc/kernels/embedding.c", "for (size_t k = 0; k < rows; k++) {", "for (size_t k = 0; k < rows - (rows > 1); k++) {")],
          "tests/test_embedding.py"),
    Fault("embedding: the gradient of row 0 left out, as if for padding",
          [("csrc/kernels/embedding.c", "        if (rows == 0)\n", "        if (rows == 0 || v == 0)\n")],
          "tests/test_embedding.py"),
    Fault("embedding: accumulate ignored",
          [("csrc/kernels/embedding.c", "    if (a->accumulate) {", "    if (false) {")],
          "tests/test_embedding.py"),
    Fault("embedding: 16-bit sums rounded at each addition",
          [("csrc/kernels/embedding.c", "        for (size_t i = 0; i < n; i++)\n            sum[i] = k == 0 ? x[i] : sum[i] + x[i];\n",
            "        for (size_t i = 0; i < n; i++)\n            x[i] = (float)(k == 0 ? x[i] : sum[i] + x[i]);\n"
            "        for (size_t i = 0; i < n; i += 16) {\n            elem cut[16];\n            v16_store(cut, v16_load_f32(x + i, n - i), 16);\n"
            "            v16_store_f32(x + i, v16_load(cut, 16), 16);\n        }\n"
            "        for (size_t i = 0; i < n; i++)\n            sum[i] = x[i];\n")],
          "tests/test_embedding.py"),
    Fault("split_qkv: k and v exchanged",
          [("csrc/kernels/heads.c", "&a->k, b, t, G, T), beyond(qkv, H), G,", "&a->k, b, t, G, T), beyond(qkv, H + G), G,"),
           ("csrc/kernels/heads.c", "&a->v, b, t, G, T), beyond(qkv, H + G), G,", "&a->v, b, t, G, T), beyond(qkv, H), G,")],
          "tests/test_heads.py"),
    Fault("split_qkv: gradients of k and v exchanged",
          [("csrc/kernels/heads.c", "move(beyond(dqkv, H), by_head(&a->dk,", "move(beyond(dqkv, H + G), by_head(&a->dk,"),
           ("csrc/kernels/heads.c", "move(beyond(dqkv, H + G), by_head(&a->dv,", "move(beyond(dqkv, H), by_head(&a->dv,")],
          "tests/test_heads.py"),
    Fault("heads: T and H exchanged where they are equal",
          [("csrc/kernels/heads.c", "const rows x = by_head(heads, b, t, H, T), y", "const rows x = H == T ? by_token(heads, b, t, H, T) : by_head(heads, b, t, H, T), y")],
          "tests/test_heads.py"),
    Fault("copies: the bytes before the first line written past the caches lost",
          [("csrc/simd/copy.h", "    if (i != 0)\n        ck_copy_short(to, from, i);\n", "")],
          "tests/test_heads.py tests/test_embedding.py"),
    Fault("argmax: the highest index wins a tie",
          [("csrc/kernels/selection.c", "if (peak > best)", "if (peak >= best)"),
           ("csrc/kernels/selection.c", "none = v16_splat(BLOCK), wanted", "none = v16_splat(-1), wanted"),
           ("csrc/kernels/selection.c", "first = v16_min(first, v16_select(", "first = v16_max(first, v16_select("),
           ("csrc/kernels/selection.c", "return (size_t)-v16_peak(v16_neg(first));", "return (size_t)(ptrdiff_t)v16_peak(first);")],
          "tests/test_selection.py"),
    Fault("argmax: NaN ignored",
          [("csrc/kernels/selection.c", "    if (sum != sum)\n", "    if (sum != sum && n == 0)\n")],
          "tests/test_selection.py"),
    Fault("sample: NaN ignored",
          [("csrc/kernels/selection_sample.c", "v16_sum(nans) == 0 ? v16_peak(peak) : NAN;", "v16_sum(nans) == 0 ? v16_peak(peak) : v16_peak(peak);")],
          "tests/test_selection.py"),
    Fault("sample: top_k keeps one more",
          [("csrc/kernels/selection_sample.c", "find_first(rank, (size_t)a->top_k, x, V);", "find_first(rank, (size_t)a->top_k + 1, x, V);")],
          "tests/test_selection.py"),
    Fault("sample: top_p of 1 % less",
          [("csrc/kernels/selection_sample.c", "first_ranks(rank, other, found, weight, top_p * sum);", "first_ranks(rank, other, found, weight, 0.99 * top_p * sum);")],
          "tests/test_selection.py"),
    Fault("sample: min_p of the sum, not of the largest",
          [("csrc/kernels/selection_sample.c", "keep_above(weight, n, (float)a->min_p, true);", "keep_above(weight, n, (float)(a->min_p * sum_of(weight, n)), true);")],
          "tests/test_selection.py"),
    Fault("sample: temperature after the filters",
          [("csrc/kernels/selection_sample.c", "weigh(weight, z, n, work->peak[r], (float)a->temperature);", "weigh(weight, z, n, work->peak[r], 1.0f);"),
           ("csrc/kernels/selection_sample.c", "        const double u = one_seed",
            "        float *warm = (float *)rank;\n        weigh(warm, z, n, work->peak[r], (float)a->temperature);\n"
            "        for (size_t i = 0; i < n; i++)\n            weight[i] = weight[i] > 0 ? warm[i] : 0;\n        const double u = one_seed")],
          "tests/test_selection.py"),
    Fault("cross_entropy: the sum not rescaled when the maximum moves",
          [("csrc/kernels/cross_entropy_row.h", "            row->sum = row->sum == 0 ? 0 : row->sum * exp((double)row->peak - peak);\n", "")],
          "tests/test_cross_entropy.py"),
    Fault("cross_entropy: log(p + eps)",
          [("csrc/kernels/cross_entropy.c", "const double lse = row.peak + log(row.sum);", "const double lse = row.peak + log(row.sum + 1e-3);")],
          "tests/test_cross_entropy.py"),
    Fault("cross_entropy: the sum for the mean",
          [("csrc/ops/cross_entropy.c", "const double divisor = a->mean ? (double)counted : 1;", "const double divisor = 1;")],
          "tests/test_cross_entropy.py"),
    Fault("cross_entropy: ignored targets counted",
          [("csrc/ops/cross_entropy.c", "        if (t == ignore_index)\n            continue;", "        if (t == ignore_index) {\n            ++*counted;\n            continue;\n        }")],
          "tests/test_cross_entropy.py"),
    Fault("cross_entropy: targets shifted",
          [("csrc/kernels/cross_entropy.c", "score(v16_load(logits + t, 1), (float)a->softcap)", "score(v16_load(logits + (t + 1) % (int64_t)a->V, 1), (float)a->softcap)")],
          "tests/test_cross_entropy.py"),
    Fault("cross_entropy: the gradient at the target without its one",
          [("csrc/kernels/cross_entropy_row.h", "(scale * e - smooth - g) * (1 - slope * slope)", "(scale * e - smooth - 0 * g) * (1 - slope * slope)")],
          "tests/test_cross_entropy.py"),
    Fault("AMX: the two of a pair exchanged in one operand",
          [("csrc/simd/pairs.h", "at->half[16 * k + 2 * i] = staged[p][k][i];", "at->half[16 * k + 2 * i] = staged[p][k + 1][i];"),
           ("csrc/simd/pairs.h", "at->half[16 * k + 2 * i + 1] = staged[p][k + 1][i];", "at->half[16 * k + 2 * i + 1] = staged[p][k][i];")],
          "tests/test_gemm_tiles.py"),
    Fault("AMX: a float beside bfloat16 in one part",
          [("csrc/ops/gemm_tiles.c", "float_a = {3, 2, 2, {{CK_MID, CK_FINITE}, {CK_HI, CK_HI}}},", "float_a = {1, 1, 1, {{CK_HI, CK_HI}}},")],
          "tests/test_gemm_tiles.py"),
    Fault("AMX: infinity in every product of parts",
          [("csrc/simd/pairs.h", "v16_store_bf16(to[1], v16_select(finite, near, v16_zero()), 16);", "v16_store_bf16(to[1], near, 16);")],
          "tests/test_gemm_tiles.py"),
    Fault("AMX: a thin block goes on in its sums where others begin anew",
          [("csrc/tiles/gemm_tiles.c", "corner_of_parts(tall, wide, &o, t->parts, c, w->columns, first);", "corner_of_parts(tall, wide, &o, t->parts, c, w->columns, first || t->gemm.thin);")],
          "tests/test_gemm_tiles.py"),
    Fault("AMX: the tiles kept after a task",
          [("csrc/tiles/gemm_tiles.c", "    ck_matrix_end();\n", "")],
          "tests/test_gemm_tiles.py"),
    Fault("AMX: the model computes with subnormal numbers",
          [("csrc/simd/amx_model.h", "return fabsf(x) < FLT_MIN ? copysignf(0, x) : x;", "return fabsf(x) < 0 ? copysignf(0, x) : x;")],
          "tests/test_gemm_tiles.py"),
    Fault("mse_loss: the gradient halved",
          [("csrc/kernels/mse_loss.c", "(float)(2 * a->dloss / a->divisor)", "(float)(a->dloss / a->divisor)")],
          "tests/test_mse_loss.py"),
    Fault("kl_div: a logarithm taken for a probability",
          [("csrc/kernels/kl_div.c", "v16_mul(g, log_target ? power(target) : target)", "v16_mul(g, log_target ? target : target)")],
          "tests/test_kl_div.py"),
    Fault("log_softmax: a term of the Jacobian missing",
          [("csrc/kernels/log_softmax.c", "v16_fma(v16_exp_elem(v16_load(p->y + c, n)), p->total, v16_load(p->dy + c, n))", "v16_load(p->dy + c, n)")],
          "tests/test_log_softmax.py"),
    Fault("AdamW: eps inside the root",
          [("csrc/kernels/adamw.c", "v16_add(v16_div(v16_sqrt(u), f->root), f->eps)", "v16_div(v16_sqrt(v16_add(u, f->eps)), f->root)")],
          "tests/test_adamw.py"),
    Fault("AdamW: no bias correction",
          [("csrc/ops/adamw.c", "t.extra[2 * j] = a->lr / (1 - pow(a->beta1, a->step[j]));", "t.extra[2 * j] = a->lr;")],
          "tests/test_adamw.py"),
    Fault("AdamW: bias correction off by one step",
          [("csrc/ops/adamw.c", "t.extra[2 * j + 1] = sqrt(1 - pow(a->beta2, a->step[j]));", "t.extra[2 * j + 1] = sqrt(1 - pow(a->beta2, a->step[j] + 1));")],
          "tests/test_adamw.py"),
    Fault("AdamW: coupled decay",
          [("csrc/kernels/adamw.c", "    const v16 before = v16_load_f32(x.avg + c, n);",
            "    const v16 drawn = v16_fma(v16_load(x.param + c, n), v16_sub(v16_splat(1.0f), f->keep), g);\n    const v16 before = v16_load_f32(x.avg + c, n);"),
           ("csrc/kernels/adamw.c", "v16_fma(f->blend, v16_sub(g, before), f->from_grad ? g : before)", "v16_fma(f->blend, v16_sub(drawn, before), f->from_grad ? drawn : before)"),
           ("csrc/kernels/adamw.c", "v16_mul(v16_load(x.param + c, n), f->keep)", "v16_load(x.param + c, n)")],
          "tests/test_adamw.py"),
    Fault("AdamW: decay after the step",
          [("csrc/kernels/adamw.c", "v16_mul(v16_load(x.param + c, n), f->keep)", "v16_load(x.param + c, n)"),
           ("csrc/kernels/adamw.c", "v16_store(x.param + c, v16_fma(f->step, v16_div(m, d), p), n);", "v16_store(x.param + c, v16_mul(v16_fma(f->step, v16_div(m, d), p), f->keep), n);")],
          "tests/test_adamw.py"),
    Fault("AdamW: stale state",
          [("csrc/kernels/adamw.c", "    v16_store_f32(x.sq + c, v, n);\n", "")],
          "tests/test_adamw.py"),
    Fault("SGD: stale state",
          [("csrc/kernels/sgd.c", "        v16_store_f32(x.buffer + c, b, n);\n", "")],
          "tests/test_sgd.py"),
    Fault("optimizer: gradients clipped after the step",
          [("csrc/kernels/sgd.c", "v16_splat((float)(a->maximize ? -a->scale : a->scale))", "v16_splat(a->maximize ? -1.0f : 1.0f)")],
          "tests/test_sgd.py"),
    Fault("clip_grad_norm: the last elements not counted",
          [("csrc/kernels/clip_grad_norm.c", "            add_squares(lane, wide, at.n - c);", "            add_squares(lane, wide, at.n - c - 1);")],
          "tests/test_adamw.py tests/test_sgd.py"),
    Fault("linear: the weight transposed",
          [("csrc/ops/linear.c", ".residual = a->residual, .transpose_b = true,", ".residual = a->residual, .transpose_b = false,")],
          "tests/test_linear.py"),
    Fault("linear: bias missing",
          [("csrc/kernels/gemm.c", "if (a->bias != NULL)", "if (a->bias != NULL && a->K == 0)")],
          "tests/test_linear.py"),
    Fault("linear: bias doubled",
          [("csrc/kernels/gemm.c", "z = v16_add(z, v16_load(a->bias + at->n + j, n));",
            "z = v16_fma(v16_load(a->bias + at->n + j, n), v16_splat(2), z);")],
          "tests/test_linear.py"),
    Fault("linear: the tail of K dropped",
          [("csrc/kernels/gemm.c", "    const size_t K = a->K - k < CK_GEMM_K ? a->K - k : CK_GEMM_K, column",
            "    const size_t K = a->K - k < CK_GEMM_K ? a->K - k - (a->K - k > 1) : CK_GEMM_K, column")],
          "tests/test_linear.py"),
    Fault("linear: sums kept in 16 bits",
          [("csrc/kernels/gemm.c", "    multiply(&o, w->at.rows, wide);",
            "    multiply(&o, w->at.rows, wide);\n"
            "    for (size_t i = 0; i < w->at.rows * wide; i++) {\n"
            "        float *at = o.sum + i / wide * o.stride + i % wide * 16;\n"
            "        elem few[16];\n"
            "        v16_store(few, v16_load_f32(at, 16), 16);\n"
            "        v16_store_f32(at, v16_load(few, 16), 16);\n"
            "    }")],
          "tests/test_linear_bits.py"),
    Fault("linear: gelu by erf where tanh is asked for",
          [("csrc/kernels/gemm.c", "case CK_GELU_TANH: return v16_gelu_tanh_elem(z);", "case CK_GELU_TANH: return v16_gelu_elem(z);")],
          "tests/test_linear_bits.py"),
    Fault("linear: the chains of one row added backwards",
          [("csrc/kernels/gemm_row.h", "v16_load_f32(turned + 16 * l, 16));", "v16_load_f32(turned + 16 * (16 - l), 16));")],
          "tests/test_linear_bits.py"),
]


def keep_other_instruction_sets(root):
    """Make the objects of all instruction sets but the best look newer than the sources: four times as fast.

    The few that a matrix unit adds to another set are built as well.
    """
    setup = native.build()
    best = [isa for isa, (folder, _) in setup.ISAS.items() if folder == "csrc/kernels"][-1]
    for isa, (folder, flags) in setup.ISAS.items():
        for dtype in setup.DTYPES if isa != best and folder != "csrc/tiles" else ():
            command = [*setup.compiler(), *flags, f"-DCK_ISA={isa}", f"-DCK_DTYPE={dtype}"]
            key = hashlib.sha256(shlex.join(command).encode()).hexdigest()[:12]
            for made in (root / "build/objects" / key).rglob("*.o"):
                os.utime(made)


def plant(fault):
    """Build a copy with the fault; return (tests that failed, how many ran), or the build's error."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "ckernels"
        shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(".git", "*.so", "__pycache__", "dist", "*.egg-info"))
        for file, text in fault.patched(root):
            file.write_text(text)
        keep_other_instruction_sets(root)
        build = subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=root, text=True,
                               capture_output=True)
        if build.returncode:
            raise RuntimeError(f"{fault.name}: does not build\n{build.stderr[-2000:]}")
        # Two instruction sets of which one alone is planted differ, whatever the fault: that is no catch.
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-k", "not avx2_and_avx512", *fault.tests.split()]
        run = subprocess.run(command, cwd=root,
                             text=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(root / "python")})
    red = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", run.stdout, re.M)
    if run.returncode > 1 and not red:  # pytest did not get as far as a test, which shows nothing
        raise RuntimeError(f"{fault.name}: its tests do not run\n{(run.stdout + run.stderr)[-2000:]}")
    return red or ([f"the run ended with a crash (signal {-run.returncode})"] if run.returncode < 0 else [])


def main(names):
    """Plant the faults of these names, or all; return the exit code."""
    chosen = [fault for fault in FAULTS if not names or fault.name in names]
    holes = 0
    for fault in chosen:
        red = plant(fault)
        holes += not red
        row = f"| {fault.name} | {f'`{red[0]}`' if red else '**nothing: a hole**'} |"
        print(row, flush=True)
        head, _, table = PAGE.read_text().partition("| fault |")
        rows = {line.split(" | ")[0][2:]: line for line in table.splitlines()[2:]} | {fault.name: row}
        kept = [rows[f.name] for f in FAULTS if f.name in rows]
        PAGE.write_text(head + "\n".join(["| fault | the first test that turned red |", "|---|---|", *kept]) + "\n")
    print(f"{len(chosen)} faults planted, {len(chosen) - holes} caught")
    return 1 if holes or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
