"""docs/diagnose.md and docs/traces.md: what they print is what the tool prints, and their writers write traces."""

import contextlib
import io
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ckernels.parity import Trace

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)


def words(text):
    """Text without its numbers: their last digits depend on the machine."""
    return re.sub(r"\d[\d.]*(e[+-]\d+)?", "#", re.sub(r"[ \t]+", " ", text)).strip()


def test_the_stories_print_what_the_page_says():
    page = (DOCS / "diagnose.md").read_text()
    stories = re.findall(r"^```python\n(.*?)^```\n\n```\n(.*?)^```", page, re.M | re.S)
    assert len(stories) == 4
    names = {}
    for code, told in stories:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, "diagnose.md", "exec"), names)
        assert words(out.getvalue()) == words(told)


def test_the_writer_in_python(tmp_path):
    pytest.importorskip("safetensors")
    (code,) = blocks("traces.md", "python")
    names = {}
    exec(compile(code, "traces.md", "exec"), names)
    ln1 = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    names["write_trace"](
        tmp_path, {"hidden_size": 3}, {"layers.0.ln1": ln1, "loss": np.float32(2)}, {"ids": np.array([[7, 8]])}
    )
    trace = Trace.load(tmp_path)
    assert np.array_equal(trace.arrays["layers.0.ln1"], ln1) and trace.arrays["loss"] == 2
    assert trace.inputs["ids"].tolist() == [[7, 8]] and trace.config == {"hidden_size": 3}


def test_the_writer_in_c(tmp_path):
    pytest.importorskip("safetensors")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler, "no C compiler, yet this package was built with one"
    (code,) = blocks("traces.md", "c")
    (tmp_path / "writer.c").write_text(code)
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, "writer.c", "-o", "writer"], cwd=tmp_path, check=True)
    (tmp_path / "trace").mkdir()
    subprocess.run([tmp_path / "writer"], cwd=tmp_path / "trace", check=True)
    trace = Trace.load(tmp_path / "trace")
    assert trace.arrays["layers.0.ln1"].tolist() == [[[1, 2, 3], [4, 5, 6]]]
    assert trace.inputs["ids"].tolist() == [[7, 8]] and trace.config == {"hidden_size": 3}
