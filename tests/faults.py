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
    Fault("gradients: not accumulated",
          [("csrc/kernels/sum_columns.h", "sum[i] = before[i] + sum[i];", "sum[i] = 0 * before[i] + sum[i];")],
          "tests/test_rms_norm.py"),
    Fault("rope: positions ignored",
          [("csrc/kernels/rope.c", "a->positions.data != NULL ? ck_position(&a->positions, item, token) : (int64_t)token;", "(void)item, (int64_t)token;")],
          "tests/test_rope.py"),
    Fault("rms_norm: rounded to 16 bits before the weight",
          [("csrc/kernels/rms_norm.c", "return v16_mul(scaled(of, c, n), weights(of, c, n));",
            "elem cut[16]; v16_store(cut, scaled(of, c, n), 16); return v16_mul(v16_load(cut, 16), weights(of, c, n));")],
          "tests/test_rms_norm.py"),
    Fault("layer_norm: a term of the Jacobian missing",
          [("csrc/kernels/layer_norm.c", "v16_fma(d, row->pull, v16_sub(g, row->about))", "v16_fma(d, row->pull, g)")],
          "tests/test_layer_norm.py"),
    Fault("add: written over an input that is read again",
          [("csrc/kernels/add.c", "            const v16 d = v16_load(dout + c, w);\n", "            const v16 d = v16_load(dout + c, w);\n            v16_store((elem *)dout + c, v16_zero(), w);\n")],
          "tests/test_add.py"),
    Fault("geglu: the gate of swiglu",
          [("csrc/kernels/glu.c", "GATED_UNIT(geglu, gelu_elem)", "GATED_UNIT(geglu, silu_elem)")],
          "tests/test_glu.py"),
    Fault("rope: the width of the head instead of the rotated part",
          [("csrc/kernels/rope.c", "turn_halves(y, x, cos, sin, k, n, K, h);", "turn_halves(y, x, cos, sin, k, n, D / 2, h);"),
           ("csrc/kernels/rope.c", "size_t k, size_t n, size_t K, how h)\n{\n    if (h", "size_t k, size_t n, size_t D, how h)\n{\n    if (h"),
           ("csrc/kernels/rope.c", "        turn_pairs(y, x, cos, sin, k, 16, K, h);", "        turn_pairs(y, x, cos, sin, k, 16, D, h);"),
           ("csrc/kernels/rope.c", "        turn_pairs(y, x, cos, sin, k, K - k, K, h);", "        turn_pairs(y, x, cos, sin, k, K - k, D, h);")],
          "tests/test_rope.py"),
    Fault("norms: the first elements of a row that is streamed left out",
          [("csrc/kernels/norm.h", "{ v16_put(y + c, value(of, c, n), n, true); }",
            "if (c != 0 || n == 16) v16_put(y + c, value(of, c, n), n, true);")],
          "tests/test_rms_norm.py"),
    Fault("add_rms_norm: the norm of the sum before it is rounded",
          [("csrc/kernels/add_rms_norm.c", "    if (CK_IS_FLOAT)\n        return sum;\n", "    return sum;\n")],
          "tests/test_add_rms_norm.py"),
    Fault("layer_norm: what the mean lacks ignored",
          [("csrc/kernels/layer_norm.c", "{about + d.a * inverse, d.b - d.a * (d.a * inverse), 0}",
            "{about, d.b, 0}")],
          "tests/test_layer_norm.py"),
    Fault("layer_norm: blocks of a row put together without the distance of their means",
          [("csrc/kernels/layer_norm.c", "more.b + step * step * ((double)before * share)", "more.b")],
          "tests/test_layer_norm.py"),
    Fault("norms: the last slice of rows that are cut never written",
          [("csrc/ops/norm_rows.c", "job.n = rows->slices, job", "job.n = rows->slices - 1, job")],
          "tests/test_l2_norm.py"),
    Fault("attention: group map h % G",
          [("csrc/kernels/attention.c", "rows_at(&a->q, at.b, head_of(&s, r))", "rows_at(&a->q, at.b, head_of(&s, r) / s.heads + head_of(&s, r) % s.heads * a->G)"),
           ("csrc/kernels/attention.c", "const size_t h = head_of(s, r), t =", "const size_t h = head_of(s, r) / s->heads + head_of(s, r) % s->heads * a->G, t =")],
          "tests/test_attention.py tests/test_decoder.py"),
    Fault("attention: no rescaling when a later part has the larger maximum",
          [("csrc/kernels/attention_forward.h", "stays ? v16_fma(new, by, old) : v16_fma(old, by, new)",
            "stays ? v16_fma(new, by, old) : v16_add(old, new)")],
          "tests/test_attention.py"),
    Fault("attention: scale dropped",
          [("csrc/kernels/attention_rule.h", "v16_mul(v16_load_f32(x + i, 16), scale)", "((void)scale, v16_load_f32(x + i, 16))")],
          "tests/test_attention.py"),
    Fault("attention: the sum not rescaled when parts are merged",
          [("csrc/kernels/attention_forward.h", "s->sum[r] * shrink + sum;", "s->sum[r] + sum;")],
          "tests/test_attention.py"),
    Fault("attention: the last tile of rows never runs",
          [("csrc/kernels/attention_tile.h", "            if (tiles[r].from < 16 * (j + n) && tiles[r].to > 16 * j)",
            "            if (r + height < rows + (rows == height) && tiles[r].from < 16 * (j + n) && tiles[r].to > 16 * j)")],
          "tests/test_attention.py"),
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
    Fault("paged kv cache: a shared partial block written without a copy",
          [("python/ckernels/kv/paged.py", "                if owners[last] > 1:", "                if owners[last] > 2:")],
          "tests/test_kv_paged.py"),
    Fault("paged kv cache: a copied block without its values",
          [("csrc/ops/kv_cache.c", "copy_block(&form, &v_part, a->k.width, (size_t)a->copy_from[m], (size_t)a->copy_to[m]);",
            "copy_block(&form, &v_part, a->k.width, (size_t)a->copy_from[m], (size_t)a->copy_from[m]);")],
          "tests/test_kv_paged.py tests/test_kv_random.py"),
    Fault("paged kv cache: blocks of a refused append lost",
          [("python/ckernels/kv/paged.py", "        self.pool._free += reversed(self._taken)", "        pass")],
          "tests/test_kv_paged.py"),
    Fault("quantised: nibbles in the other order, by writer and reader alike",
          [("csrc/kernels/kv_encode.h", "(int)lane[2 * i + low] | (int)lane[2 * i + high] << 4", "(int)lane[2 * i + high] | (int)lane[2 * i + low] << 4"),
           ("csrc/simd/codes.h", "_mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28)",
            "_mm512_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24)"),
           ("csrc/simd/codes.h", "shift = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28)", "shift = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24)")],
          "tests/test_kv_formats.py"),
    Fault("decoder: gate and up exchanged",
          [("csrc/layers/decoder.c", "ROWS(a->act, F), ROWS(a->gate, F), ROWS(a->up, F), R, F)",
            "ROWS(a->act, F), ROWS(a->up, F), ROWS(a->gate, F), R, F)")],
          "tests/test_decoder.py"),
    Fault("embedding: accumulate ignored",
          [("csrc/kernels/embedding.c", "    if (a->accumulate) {", "    if (false) {")],
          "tests/test_embedding.py"),
    Fault("embedding: 16-bit sums rounded at each addition",
          [("csrc/kernels/embedding.c", "        for (size_t i = 0; i < n; i++)\n            sum[i] = k == (CK_FAULT(embedding_run) && rows > 1) ? x[i] : sum[i] + x[i];\n",
            "        for (size_t i = 0; i < n; i++)\n            x[i] = (float)(k == 0 ? x[i] : sum[i] + x[i]);\n"
            "        for (size_t i = 0; i < n; i += 16) {\n            elem cut[16];\n            v16_store(cut, v16_load_f32(x + i, n - i), 16);\n"
            "            v16_store_f32(x + i, v16_load(cut, 16), 16);\n        }\n"
            "        for (size_t i = 0; i < n; i++)\n            sum[i] = x[i];\n")],
          "tests/test_embedding.py"),
    Fault("split_qkv: gradients of k and v exchanged",
          [("csrc/kernels/heads.c", "move(beyond(dqkv, H), by_head(&a->dk,", "move(beyond(dqkv, H + G), by_head(&a->dk,"),
           ("csrc/kernels/heads.c", "move(beyond(dqkv, H + G), by_head(&a->dv,", "move(beyond(dqkv, H), by_head(&a->dv,")],
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
    Fault("linear_cross_entropy: the last block of classes alone gives dx",
          [("csrc/ops/linear_cross_entropy.c", ".residual = v == 0 ? none : dx,", ".residual = none,")],
          "tests/test_linear_cross_entropy.py"),
    Fault("linear_cross_entropy: the last block of rows alone gives dweight",
          [("csrc/ops/linear_cross_entropy.c", ".residual = add ? dweight : none,", ".residual = add && a->accumulate ? dweight : none,")],
          "tests/test_linear_cross_entropy.py"),
    Fault("linear_cross_entropy: targets of the first rows for every block of rows",
          [("csrc/ops/linear_cross_entropy.c", ".row = r, .first = v, .R = R, .N = N});", ".row = 0, .first = v, .R = R, .N = N});")],
          "tests/test_linear_cross_entropy.py"),
    Fault("linear: the weight transposed",
          [("csrc/ops/linear.c", ".residual = a->residual, .transpose_b = true,", ".residual = a->residual, .transpose_b = false,")],
          "tests/test_linear.py"),
    Fault("linear: two chains of one row added in the other order",
          [("csrc/kernels/gemm_row.h", "v16_load_f32(turned + 16 * l, 16));", "v16_load_f32(turned + 16 * (l == 1 ? 2 : l == 2 ? 1 : l), 16));")],
          "tests/test_linear_bits.py"),
    Fault("norms: the last of the short rows that go together left out of their sums",
          [("csrc/kernels/norm.h", "    for (size_t j = 0; j < n; j++)\n        to[j] = sums[j];",
            "    for (size_t j = 0; j < n; j++)\n        to[j] = j + 1 < n ? sums[j] : 0;")],
          "tests/test_l2_norm.py"),
    Fault("norms: a slice of rows that are cut with the weights of the row's beginning",
          [("csrc/kernels/norm.h", "ck_as_floats(room, weight, walk.from, n)", "ck_as_floats(room, weight, 0, n)")],
          "tests/test_rms_norm.py"),
    Fault("layer_norm: the gradient of a bias of rows that are cut not folded",
          [("csrc/kernels/norm.h", "for (size_t i = 0; i < 2 && walk->rows.write; i++)", "for (size_t i = 0; i < 1 && walk->rows.write; i++)")],
          "tests/test_layer_norm.py"),
    Fault("softmax: short rows all by the first one's sum",
          [("csrc/kernels/softmax.c", "by[j] = (float)(1 / (double)sum[j]);", "by[j] = (float)(1 / (double)sum[0]);")],
          "tests/test_softmax.py"),
    Fault("log_softmax: the logarithm of a sum by a wrong term",
          [("csrc/simd/math.h", "p = p * s + 1.0 / 3;", "p = p * s + 1.0 / 4;")],
          "tests/test_log_softmax.py"),
    Fault("simd: sums of sixteen vectors in another order of lanes",
          [("csrc/simd/words.h", "y[i] = v16_with(v16_zip_lo(x[i], x[i + 8]), v16_zip_hi(x[i], x[i + 8]));",
            "y[i] = v16_with(v16_zip_lo(x[2 * i], x[2 * i + 1]), v16_zip_hi(x[2 * i], x[2 * i + 1]));")],
          "tests/test_softmax.py"),
    Fault("decoder: the norm behind the MLP missing",
          [("csrc/layers/decoder.c", "const ck_norm behind = {a->post_mlp_norm_weight, NULL", "const ck_norm behind = {NULL, NULL")],
          "tests/test_decoder.py"),
    Fault("decoder: the offset of the norms ignored",
          [("csrc/layers/decoder_steps.c", ".eps = of->eps,\n                                                        .offset = of->offset, .R", ".eps = of->eps,\n                                                        .offset = 0, .R")],
          "tests/test_decoder.py"),
    Fault("decoder: the offset of the norms of heads ignored",
          [("csrc/layers/decoder_steps.c", "(*taken)[c] += (float)offset;", "(*taken)[c] += 0;")],
          "tests/test_decoder.py"),
    Fault("decoder: the bias of the values missing",
          [("csrc/layers/decoder.c", "v_of = {a->v_weight, a->v_bias, kv, C}", "v_of = {a->v_weight, NULL, kv, C}")],
          "tests/test_decoder.py"),
    Fault("decoder: the window one key too wide",
          [("csrc/layers/decoder.c", ".left = a->window - 1, .right", ".left = a->window - (a->window == 0), .right")],
          "tests/test_decoder.py"),
    Fault("decoder: the window ignored in the cache",
          [("csrc/layers/decoder.c", ".lengths = CK_FAULT(kv_length_before_append) ? a->lengths : after, .left = a->window - 1", ".lengths = CK_FAULT(kv_length_before_append) ? a->lengths : after, .left = -1")],
          "tests/test_decoder.py"),
    Fault("decoder: the cap of the scores missing in backward",
          [("csrc/layers/decoder_backward.c", ".scale = a->scale, .softcap = a->softcap, .accumulate", ".scale = a->scale, .softcap = 0, .accumulate")],
          "tests/test_decoder.py"),
    Fault("decoder: a parallel MLP fed from the first residual",
          [("csrc/layers/decoder.c", "a->parallel ? ck_merged(a->x) : ROWS(a->residual1, C), R, C)", "ROWS(a->residual1, C), R, C)")],
          "tests/test_decoder.py"),
    Fault("decoder: the MLP's part of a shared norm's gradient overwritten",
          [("csrc/layers/decoder_backward.c", "const bool more = a->ln2_weight == NULL;", "const bool more = false;")],
          "tests/test_decoder.py"),
    Fault("models: the whole head rotated for a part of it",
          [("python/ckernels/models/config.py", "int(self.head_dim * self.partial_rotary_factor)", "self.head_dim")],
          "tests/test_decoder.py tests/test_models_families.py"),
    Fault("models: the window in every layer",
          [("python/ckernels/models/config.py", 'sliding = self.layer_types is None or self.layer_types[index] == "sliding_attention"', "sliding = True")],
          "tests/test_models_families.py"),
    Fault("models: layers with a window turn by the other base",
          [("python/ckernels/models/config.py", "if self.rope_local_base_freq is not None and self.window(index):", "if False:")],
          "tests/test_decoder.py"),
    Fault("models: the embedding not scaled",
          [("python/ckernels/models/ends.py", "        if factor != 1:\n            nothing", "        if factor < 0:\n            nothing")],
          "tests/test_models_families.py"),
    Fault("models: the cap of the logits missing in the loss",
          [("python/ckernels/models/model.py", "softcap=self.config.final_logit_softcapping)", "softcap=None)")],
          "tests/test_models_families.py"),
    Fault("models: joined q, k and v taken apart in thirds",
          [("python/ckernels/models/mapping.py", "array.reshape(heads, 3, size, *array.shape[1:])[:, part]", "array.reshape(3, heads, size, *array.shape[1:])[part]")],
          "tests/test_models_families.py"),
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
