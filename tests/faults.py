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
          [("csrc/kernels/rope.c", "(a->interleaved ? turn_pairs : turn_halves)", "(a->interleaved ? turn_halves : turn_pairs)")],
          "tests/test_rope.py tests/test_decoder.py"),
    Fault("rope: the other direction",
          [("csrc/kernels/rope.c", "    turn(a, task, +1.0f);", "    turn(a, task, -1.0f);")],
          "tests/test_rope.py tests/test_decoder.py"),
    Fault("rope: positions ignored",
          [("csrc/kernels/rope.c", "a->positions.data != NULL ? (size_t)ck_position(&a->positions, item, t) : t;", "t;")],
          "tests/test_rope.py tests/test_decoder.py"),
    Fault("rms_norm: eps times ten",
          [("csrc/kernels/rms_norm.c", "/ (double)C + a->eps));", "/ (double)C + 10 * a->eps));")],
          "tests/test_rms_norm.py"),
    Fault("rms_norm: last lanes skipped",
          [("csrc/kernels/rms_norm.c", "        v16 squares = v16_zero();\n        for (size_t c = 0; c < C; c += 16) {",
            "        v16 squares = v16_zero();\n        for (size_t c = 0; c + 16 <= C; c += 16) {")],
          "tests/test_rms_norm.py"),
    Fault("rms_norm: a write one past a row",
          [("csrc/kernels/rms_norm.c", "            v16_store(y + c, v16_mul(scaled, scales(a->weight, (float)a->offset, c, C - c)), C - c);",
            "            v16_store(y + c, v16_mul(scaled, scales(a->weight, (float)a->offset, c, C - c)), C - c + 1);")],
          "tests/test_rms_norm.py"),
    Fault("rms_norm: a term of the Jacobian missing",
          [("csrc/kernels/rms_norm.c", "v16_mul(scale, v16_fma(xc, pull, g))", "v16_mul(scale, g)")],
          "tests/test_rms_norm.py tests/test_decoder.py"),
    Fault("gradients: not accumulated",
          [("csrc/kernels/sum_rows.c", "a->accumulate ? a->sum[c + i] + sum[i] : sum[i]", "sum[i]")],
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
