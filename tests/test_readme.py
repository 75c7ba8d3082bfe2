"""What the README shows: its Python runs, its commands stand alone on their lines, the files it names are there."""
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_its_python_runs(capsys):
    names = {}
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert re.search("WITHIN_BUDGET|EXACT", capsys.readouterr().out)
    assert names["logits"].shape == (1, 3, 49152)


@pytest.mark.parametrize("command", ["pip install -e '.[parity]' && ck parity", "pip install -e '.[test]' && pytest"])
def test_each_command_has_a_line_of_its_own(command):
    assert README.splitlines().count(command) == 1


def test_the_files_it_names_are_there():
    for target in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / target).exists(), target


def test_nothing_is_left_to_fill_in():
    assert "<!--" not in README
