"""Plant faults in the sources, one at a time, and see which tests turn red.

    python tests/faults.py                      all of them; writes the table of docs/faults.md
    python tests/faults.py "causal off by one"  one of them, nothing written

Each fault is a few replaced words in a copy of the repository, which is built there and tested with the tests named
beside it.  A fault that leaves them green is a hole: the exit code is 1.  ``tests/test_faults.py`` keeps the replaced
words in step with the sources.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

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
        for file, old, new in self.edits:
            text = (root / file).read_text()
            if text.count(old) != 1:
                raise ValueError(f"{self.name}: {file} has {old!r} {text.count(old)} times")
            yield root / file, text.replace(old, new)


FAULTS = [
    Fault("rope: interleaved for half-split",
          [("csrc/kernels/rope.c", "    if (h.interleaved)\n", "    if (!h.interleaved)\n")],
          "tests/test_rope.py tests/test_mrope.py tests/test_decoder.py"),
    Fault("rope: the other direction",
          [("csrc/kernels/rope.c", "turn(&same, task, false);", "turn(&same, task, true);")],
          "tests/test_rope.py tests/test_decoder.py"),
    Fault("rope: positions ignored",
          [("csrc/kernels/rope.c", "a->positions.data != NULL ? ck_position(&a->positions, p, t + i) : (int64_t)(t + i);",
            "(int64_t)(t + i);")],
          "tests/test_rope.py tests/test_decoder.py"),
    Fault("rope: all tokens of a block at the first one's position",
          [("csrc/kernels/rope.c", "ck_position(&a->positions, p, t + i) :", "ck_position(&a->positions, p, t) :")],
          "tests/test_rope.py tests/test_decoder.py"),
    Fault("rope: the angles of the next position",
          [("csrc/kernels/rope_table.c", "(double)ck_id(&a->positions, t);", "(double)ck_id(&a->positions, t) + 1;")],
          "tests/test_rope.py tests/test_rope_scaling.py"),
    Fault("rope: angles in float32",
          [("csrc/kernels/rope_table.c", "const double angle = position * a->frequency[k];",
            "const float angle = (float)position * (float)a->frequency[k];")],
          "tests/test_rope.py tests/test_rope_scaling.py"),
    Fault("rope: another base",
          [("csrc/ops/rope_table.c", "const double base = stretched_base(a);",
            "const double base = 1.01 * stretched_base(a);")],
          "tests/test_rope.py tests/test_rope_scaling.py"),
    Fault("rope: the width of the head instead of the rotated part",
          [("csrc/kernels/rope.c", "turn_halves(y, x, cos, sin, k, n, K, h);", "turn_halves(y, x, cos, sin, k, n, D / 2, h);"),
           ("csrc/kernels/rope.c", "size_t k, size_t n, size_t K, how h)\n{\n    if (h", "size_t k, size_t n, size_t D, how h)\n{\n    if (h"),
           ("csrc/kernels/rope.c", "        turn_pairs(y, x, cos, sin, k, 16, K, h);", "        turn_pairs(y, x, cos, sin, k, 16, D, h);"),
           ("csrc/kernels/rope.c", "        turn_pairs(y, x, cos, sin, k, K - k, K, h);", "        turn_pairs(y, x, cos, sin, k, K - k, D, h);")],
          "tests/test_rope.py"),
    Fault("rope: the first head only",
          [("csrc/kernels/rope.c", "            for (size_t n = 0; n < heads; n++)\n                turn_head",
            "            for (size_t n = 0; n < 1; n++)\n                turn_head"),
           ("csrc/kernels/rope.c", "        for (size_t n = 0; n < heads; n++)\n            for (size_t t",
            "        for (size_t n = 0; n < 1; n++)\n            for (size_t t")],
          "tests/test_rope.py tests/test_decoder.py"),
    Fault("rope: scaling ignored",
          [("python/ckernels/ops/rope_scaling.py", "rule = DEFAULT._replace(rule=list(RULES).index(kind), ",
            "rule = DEFAULT._replace(rule=0, ")],
          "tests/test_rope_scaling.py tests/test_models_rope.py"),
    Fault("rope: attention factor dropped",
          [("csrc/kernels/rope_table.c", "(float)(a->attention * cos(angle))", "(float)cos(angle)")],
          "tests/test_rope_scaling.py"),
    Fault("rope: long factors for short texts",
          [("csrc/ops/rope_table.c", "length_of(a) > a->original", "length_of(a) <= a->original")],
          "tests/test_rope_scaling.py"),
    Fault("mrope: every pair goes by the first axis",
          [("csrc/kernels/rope.c", "axis * a->P + p", "p")],
          "tests/test_mrope.py"),
    Fault("rms_norm: eps times ten",
          [("csrc/kernels/rms_norm.c", "/ (double)C + a->eps));", "/ (double)C + 10 * a->eps));")],
          "tests/test_rms_norm.py"),
    Fault("rms_norm: eps outside the root",
          [("csrc/kernels/rms_norm.c", "(float)(1 / sqrt(norm_sum(norm_square, row.x, C).a / (double)C + a->eps));",
            "(float)(1 / (sqrt(norm_sum(norm_square, row.x, C).a / (double)C) + a->eps));")],
          "tests/test_rms_norm.py"),
    Fault("rms_norm: mean over the wrong n",
          [("csrc/kernels/rms_norm.c", "/ (double)C + a->eps));", "/ (double)((C + 15) / 16 * 16) + a->eps));")],
          "tests/test_rms_norm.py"),
    Fault("rms_norm: offset ignored",
          [("csrc/kernels/rms_norm.c", "return v16_add(v16_load_f32(row->weight + c, n), row->offset);",
            "return v16_load_f32(row->weight + c, n);")],
          "tests/test_rms_norm.py"),
    Fault("rms_norm: rounded before the weight",
          [("csrc/kernels/rms_norm.c", "{ return v16_mul(scaled(of, c, n), weights(of, c, n)); }",
            "{ elem t[16]; v16_store(t, scaled(of, c, n), 16); return v16_mul(v16_load(t, 16), weights(of, c, n)); }")],
          "tests/test_rms_norm.py"),
    Fault("norms: last lanes skipped",
          [("csrc/kernels/norm.h", "    if (c < to)\n        lo = term(of, c, to - c, lo);\n", "")],
          "tests/test_rms_norm.py"),
    Fault("norms: a write one past a row",
          [("csrc/kernels/norm.h", "v16_store(y + c, value(of, c, C - c), C - c);",
            "v16_store(y + c, value(of, c, C - c), C - c + 1);")],
          "tests/test_rms_norm.py"),
    Fault("norms: the first elements of a row that is streamed left out",
          [("csrc/kernels/norm.h", "        if (c != 0)\n            v16_store(y, value(of, 0, c), c);\n", "")],
          "tests/test_rms_norm.py"),
    Fault("rms_norm: a term of the Jacobian missing",
          [("csrc/kernels/rms_norm.c", "v16_mul(row->scale, v16_fma(x, row->pull, g))", "v16_mul(row->scale, g)")],
          "tests/test_rms_norm.py tests/test_decoder.py"),
    Fault("add_rms_norm: the norm of the sum before it is rounded",
          [("csrc/kernels/add_rms_norm.c", "    if (CK_IS_FLOAT)\n        return sum;\n", "    return sum;\n")],
          "tests/test_add_rms_norm.py"),
    Fault("layer_norm: eps outside the root",
          [("csrc/kernels/layer_norm.c", "1 / sqrt(squares / (double)C + a->eps)",
            "1 / (sqrt(squares / (double)C) + a->eps)")],
          "tests/test_layer_norm.py"),
    Fault("layer_norm: what the mean lacks ignored",
          [("csrc/kernels/layer_norm.c", "about + d.a * inverse, its_squares = d.b - d.a * (d.a * inverse);",
            "about, its_squares = d.b;")],
          "tests/test_layer_norm.py"),
    Fault("layer_norm: blocks of a row put together without the distance of their means",
          [("csrc/kernels/layer_norm.c", "its_squares + step * step * ((double)from * share)", "its_squares")],
          "tests/test_layer_norm.py"),
    Fault("layer_norm: the mean of g missing from the Jacobian",
          [("csrc/kernels/layer_norm.c", "(float)(sum.a / n - lacks * pull)", "(float)(-lacks * pull)")],
          "tests/test_layer_norm.py"),
    Fault("l2_norm: mean for sum",
          [("csrc/kernels/l2_norm.c", "norm_sum(norm_square, row.x, a->C).a + a->eps",
            "norm_sum(norm_square, row.x, a->C).a / (double)a->C + a->eps")],
          "tests/test_l2_norm.py"),
    Fault("qk_norm_rope: turned back by the angle itself",
          [("csrc/kernels/qk_norm_rope.c", "v16_splat(-1.0f)", "v16_splat(1.0f)")],
          "tests/test_qk_norm_rope.py"),
    Fault("qk_norm_rope: the weight of the partner",
          [("csrc/kernels/qk_norm_rope.c", "of->scale), v16_load_f32(of->weight + c, n));",
            "of->scale), v16_load_f32(of->weight + c % 16, n));")],
          "tests/test_qk_norm_rope.py"),
    Fault("gradients: not accumulated",
          [("csrc/kernels/sum_rows.c", "sum[i] = before[i] + sum[i];", "sum[i] = 0 * before[i] + sum[i];")],
          "tests/test_rms_norm.py tests/test_decoder.py"),
    Fault("attention: causal off by one",
          [("csrc/kernels/attention_tile.h", "    if (u->causal && p < to)\n        to = p + 1;",
            "    if (u->causal && p + 1 < to)\n        to = p + 2;")],
          "tests/test_attention.py tests/test_decoder.py"),
    Fault("attention: group map h % G",
          [("csrc/kernels/attention.c", "rows_at(&a->q, b, g * heads + h)", "rows_at(&a->q, b, h * a->G + g)"),
           ("csrc/kernels/attention.c",
            "const size_t h = s->g * s->heads + r / s->n, t = s->t0 + r % s->n, row =",
            "const size_t h = r / s->n * a->G + s->g, t = s->t0 + r % s->n, row =")],
          "tests/test_attention.py tests/test_decoder.py"),
    Fault("attention: window off by one",
          [("csrc/kernels/attention_tile.h", "from = p - u->left;", "from = p - u->left + 1;")],
          "tests/test_attention.py"),
    Fault("attention: no rescaling when a later part has the larger maximum",
          [("csrc/kernels/attention.c", "stays ? v16_fma(new, by, old) : v16_fma(old, by, new)",
            "stays ? v16_fma(new, by, old) : v16_add(old, new)")],
          "tests/test_attention.py"),
    Fault("attention: the maximum not subtracted",
          [("csrc/kernels/attention.c", "v16_exp(v16_sub(v16_load_f32(x + i, 16), top))", "v16_exp(v16_load_f32(x + i, 16))")],
          "tests/test_attention.py"),
    Fault("kv cache: written at the start of the item",
          [("csrc/kernels/kv_cache.c", "at = (size_t)a->lengths[b];", "at = 0;")],
          "tests/test_kv_cache.py"),
    Fault("kv cache: every item at item 0's length",
          [("csrc/kernels/kv_cache.c", "at = (size_t)a->lengths[b];", "at = (size_t)a->lengths[0];")],
          "tests/test_kv_cache.py"),
    Fault("decoder: gate and up exchanged",
          [("csrc/layers/decoder.c",
            ".gate = ck_rows(a->gate, R, F, WIDTH),\n                                                 .up = ck_rows(a->up, R, F, WIDTH), .R = R, .F = F}));\n    TRY(project(k, down",
            ".gate = ck_rows(a->up, R, F, WIDTH),\n                                                 .up = ck_rows(a->gate, R, F, WIDTH), .R = R, .F = F}));\n    TRY(project(k, down")],
          "tests/test_decoder.py"),
    Fault("decoder: residual from the normed input",
          [("csrc/layers/decoder.c", "return add(k, ck_rows(a->residual1, R, C, WIDTH), ck_merged(a->x), ck_rows(a->proj",
            "return add(k, ck_rows(a->residual1, R, C, WIDTH), ck_rows(a->ln1, R, C, WIDTH), ck_rows(a->proj")],
          "tests/test_decoder.py"),
    Fault("decoder: the cache read before its new length",
          [("csrc/layers/decoder.c", "attention.offsets = a->lengths, attention.lengths = after;",
            "attention.offsets = a->lengths, attention.lengths = a->lengths;")],
          "tests/test_decoder.py"),
    Fault("embedding: the last gradient of a run of equal ids lost",
          [("csrc/kernels/embedding.c", "for (size_t k = 0; k < rows; k++) {", "for (size_t k = 0; k < rows - (rows > 1); k++) {")],
          "tests/test_embedding.py"),
    Fault("cross_entropy: the sum not rescaled when the maximum moves",
          [("csrc/kernels/cross_entropy.c", "            row.sum = begin == 0 ? 0 : row.sum * exp((double)row.peak - peak);\n", "")],
          "tests/test_cross_entropy.py"),
]


def plant(fault):
    """Build a copy with the fault; return (tests that failed, how many ran), or the build's error."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "ckernels"
        shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(".git", "*.so", "__pycache__", "dist", "*.egg-info"))
        for file, text in fault.patched(root):
            file.write_text(text)
        build = subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=root, text=True,
                               capture_output=True)
        if build.returncode:
            raise RuntimeError(f"{fault.name}: does not build\n{build.stderr[-2000:]}")
        run = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "--no-header", *fault.tests.split()], cwd=root,
                             text=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(root / "python")})
    red = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", run.stdout, re.M)
    crashed = run.returncode < 0 or run.returncode > 1
    return red or ([f"the run ended with a crash (signal {-run.returncode})"] if crashed else [])


def main(names):
    """Plant the faults of these names, or all; return the exit code."""
    chosen = [fault for fault in FAULTS if not names or fault.name in names]
    rows, holes = [], 0
    for fault in chosen:
        red = plant(fault)
        holes += not red
        rows.append(f"| {fault.name} | {f'`{red[0]}`' if red else '**nothing: a hole**'} |")
        print(rows[-1], flush=True)
    if not names:
        head = PAGE.read_text().split("| fault |")[0]
        PAGE.write_text(head + "\n".join(["| fault | the first test that turned red |", "|---|---|", *rows]) + "\n")
    print(f"{len(chosen)} faults planted, {len(chosen) - holes} caught")
    return 1 if holes or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
