"""docs/training.md and docs/parity.md on training: their Python runs."""

import contextlib
import io
import re
from pathlib import Path

from trainings import AdamW

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)


def test_the_page_on_training_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks("training.md"):
        exec(compile(block, "training.md", "exec"), names)
    assert {entry.name for entry in tmp_path.iterdir()} == {"log.jsonl", "loss.png", "checkpoint"}
    assert names["trainer"].step == 20
    _, whole = names["model"].loss_and_grads(names["ids"], names["targets"])
    assert whole.keys() == names["grads"].keys()


def test_one_s_own_optimizer_is_judged():
    (block,) = [block for block in blocks("parity.md") if "MyAdamW" in block]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block, "parity.md", "exec"), {"MyAdamW": type("MyAdamW", (AdamW,), {"late": 1})})
    assert "EXCESS_DRIFT" in out.getvalue() and "step 1 weights" in out.getvalue()
