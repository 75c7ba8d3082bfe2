"""The examples run, and do what their pages say."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent


def test_the_character_model_learns_beside_pytorch(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_character_model.py"])
    example = runpy.run_path(str(ROOT / "examples/train_character_model.py"))
    example["main"](["--steps", "12", "--batch", "4", "--tokens", "32", "--out", str(tmp_path / "run")])
    told = capsys.readouterr().out
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert len(losses) == 12 and losses[-1] < losses[0] - 0.3
    assert (tmp_path / "run/loss.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "run/checkpoint/model.safetensors").is_file()
    first, most = map(float, re.search(r"losses apart: (\S+) at step 1, at most (\S+)", told).groups())
    assert first < 1e-5 and most < 1e-3
    assert "The import statement " in told


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    """Its cells, one after the other, as Jupyter runs them; a notebook is JSON (nbformat 4)."""
    monkeypatch.chdir(tmp_path)
    page = json.loads((ROOT / "docs/notebooks/training.ipynb").read_text())
    assert page["nbformat"] == 4 and len({cell["id"] for cell in page["cells"]}) == len(page["cells"])
    names = {"__name__": "__main__"}
    for number, cell in enumerate(page["cells"]):
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "cleared: what is shown is what runs"
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert np.mean(names["ours"][-10:]) < names["ours"][0] - 2
    assert names["apart"][0] < 1e-5 and (tmp_path / "losses.png").is_file()
    assert "WITHIN_BUDGET" in capsys.readouterr().out
