"""Reports as a page and as Markdown: everything is on them, nothing else is needed, and what is missing says so."""

import html.parser
import json

import numpy as np
import pytest

import ckernels as ck
from ckernels import cli
from ckernels.parity import compare, levels, pages, probes, report
from ckernels.parity.pages.charts import curve, shade, short, strip

rng = np.random.default_rng(7)
EXACT = rng.standard_normal((5, 7))
RIGHT = compare(EXACT.astype(np.float32), EXACT, EXACT.astype(np.float32))
WRONG = compare((EXACT + 1).astype(np.float32), EXACT, EXACT.astype(np.float32))


def document(*cases, **changes):
    """Return what ``ck parity --format json`` would have printed for these cases."""
    summary = report.Summary.of(list(cases), 1.0)
    facts = {"cpu": "a processor", "isas": ["avx2", "reference"], "compiler": "gcc", "torch": "2"}
    return json.loads(report.to_json(list(cases), facts, levels.Options(level="ops"), summary)) | changes


def of(level, name, what="forward", found=RIGHT, **others):
    return levels.case_of(level, name, what, found, isa="avx2", **others)


def step(number, error, limit=1e-3, verdict="WITHIN_BUDGET"):
    return levels.Case("train", "tiny, sgd", f"step {number} loss", "float32", verdict=verdict, margin=error / limit,
                       error=error, peer_error=2 * error, data={"limit": limit, "limit_is": "three times the twin's"})  # fmt: skip


class Reader(html.parser.HTMLParser):
    """What is on a page: its text, its tags, what they refer to; an end without its beginning is an error."""

    VOID = {"meta", "br", "rect", "line", "circle", "polyline", "polygon"}

    def __init__(self, page):
        super().__init__()
        self.text, self.open, self.tags, self.links = "", [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += " " + " ".join(data.split())


def test_a_page_needs_nothing_else_and_fits_a_phone():
    page = pages.to_html([document(of("ops", "silu"), of("layer", "tiny: ln1"), step(1, 1e-5), step(2, 1e-4))])
    read = Reader(page)
    assert not read.links and not {"script", "link", "img", "iframe"} & set(read.tags)
    assert "url(" not in page and "@import" not in page and "http" not in page
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page


def test_what_was_not_measured_says_so():
    read = Reader(pages.to_html([document(of("kv", "append"))]))
    for command in ("ck diagnose", "ck parity train", "ck mutate"):
        assert any(f"{command}" in line for line in read.text.split("Not measured")[1:]), command
    assert pages.content([document(levels.not_measured("ops", "all", "no such device", isa="cuda"))])["code"] == 3
    read = Reader(pages.to_html([document(levels.not_measured("ops", "all", "no such device", isa="cuda"))]))
    assert "vacuous" in read.text and "no such device" in read.text


def test_failures_come_first_with_their_figures_and_nobody_s_markup():
    bad = of("ops", "<b>silu", found=WRONG, note="<script>alert(1)</script> too much")
    page = pages.to_html([document(of("ops", "relu"), bad)])
    read = Reader(page)
    assert "failed" in read.text and read.text.index("What failed") < read.text.index("Margins")
    assert "script" not in read.tags and "<script>alert(1)</script> too much" in read.text
    assert str(WRONG.worst(1)[0].actual)[:6] in read.text
    many = [of("ops", f"op {i}", found=WRONG) for i in range(300)]
    assert "and" in Reader(pages.to_html([document(*many)])).text


def test_grids_have_a_cell_for_each_backend_and_pair():
    cases = [levels.case_of("ops", "silu", "forward y", RIGHT, isa=isa, backends=isa.split(" ~ "))
             for isa in ("avx2", "avx2 ~ torch", "torch")]  # fmt: skip
    (level,) = pages.content([document(*cases)])["levels"]
    assert level["columns"] == ["float32 avx2", "float32 torch", "float32 avx2 ~ torch"]
    ((name, cells),) = level["rows"]
    assert name == "silu forward y" and [c["isa"] for c in cells] == ["avx2", "torch", "avx2 ~ torch"]


def test_errors_in_ulp_are_summed_by_dtype():
    found = pages.content([document(of("ops", "silu"), of("ops", "relu"), of("compare", "a", found=WRONG))])
    (histogram,) = found["histograms"]
    assert histogram["dtype"] == "float32" and sum(histogram["counts"]) == 3 * EXACT.size
    assert histogram["counts"] == [2 * a + b for a, b in zip(RIGHT.ulp_counts, WRONG.ulp_counts, strict=True)]
    pair = of("ops", "silu", backends=["avx2", "torch"])
    assert pages.content([document(pair)])["histograms"] == []


def test_training_is_drawn_with_what_is_allowed():
    found = pages.content([document(step(1, 1e-5), step(2, 2e-3, verdict="EXCESS_DRIFT"), step(3, 0.0))])
    (drawn,) = found["curves"]
    assert drawn["steps"] == [1, 2, 3] and drawn["limit"] == [1e-3] * 3 and not drawn["fine"]
    assert drawn["peer"][0] == 2e-5
    last = step(9, 1e-4)  # several steps in a line: drawn at the worst of them
    last.what, last.data["step"] = "steps 4-9 loss", 7
    (longer,) = pages.content([document(step(1, 1e-5), last)])["curves"]
    assert longer["steps"] == [1, 7]
    svg = str(curve(drawn))
    assert svg.count("<circle") == 3 and 'class="red"' in svg and 'class="within"' in svg and "NaN" not in svg
    assert "All distances are 0" in str(curve(drawn | {"ours": [0.0] * 3, "peer": [None] * 3, "limit": [None] * 3}))


def test_stages_by_layer_with_what_they_inherited():
    config = ck.models.configs["tiny"]
    params = probes.parameters(config)
    model = ck.models.Model(config, params)
    ids = np.random.default_rng(1).integers(0, config.vocab_size, (1, 9))
    wrong = ck.models.Model(config, params | {
        "model.layers.1.input_layernorm.weight": 1.1 * params["model.layers.1.input_layernorm.weight"]})  # fmt: skip
    found = ck.parity.diagnose(wrong.trace(ids), model).to_dict()
    sections = pages.content([json.loads(json.dumps(found))])
    (drawn,) = sections["maps"]
    assert drawn["columns"] == ["model", "layer 0", "layer 1"] and sections["code"] == 1
    cells = dict(drawn["rows"])["ln1"]
    assert cells[0] is None and cells[1]["margin"] <= 1 < cells[2]["margin"]
    assert dict(drawn["rows"])["q"][2]["inherited"] > 0.01 and dict(drawn["rows"])["q"][2]["margin"] <= 1
    read = Reader(pages.to_html([found]))
    assert "layers.1.ln1" in read.text and "Stage by layer" in read.text


def test_planted_faults_are_a_table():

    def cell(check, dtype, state):
        return {"check": check, "dtype": dtype, "state": state, "note": "a <note>", "margin": None, "change": 0.5}

    faults = [
        {"name": "rope_base", "what": "rope: another base", "killed": True,
         "cells": [cell("ops", "float32", "killed"), cell("ops", "bfloat16", "below the floor")]},
        {"name": "norm_eps", "what": "norm: eps", "killed": False, "cells": [cell("layer", "float32", "hole")]},
    ]  # fmt: skip
    mutate = {"schema": 1, "tool": "ck mutate", "exit_code": 1, "faults": faults, "holes": [["norm_eps", "float32", ""]],
              "summary": "one of two"}  # fmt: skip
    (kills,) = pages.content([mutate])["kills"]
    assert kills["checks"] == ["ops float32", "ops bfloat16", "layer float32"]
    assert (kills["faults"], kills["killed"]) == (2, 1)
    page = pages.to_html([mutate])
    assert "1 of 2 faults" in page and "1 holes" in page and 'class="bad"' in page and "one of two" in page
    assert "a &lt;note&gt;" in page and ">K</td>" in page and ">!</td>" in page
    assert "1 of 2 killed" in pages.to_markdown([mutate])


def test_markdown_for_a_pull_request():
    bad = of("ops", "a|b", found=WRONG, note="<i>why</i>\nand | more")
    text = pages.to_markdown([document(of("ops", "silu"), bad, levels.not_measured("ops", "x", "none", isa="cuda"))])
    assert text.startswith("## ❌ ckernels parity: failed") and "### What failed" in text
    row = next(line for line in text.splitlines() if "a\\|b" in line)
    assert row.count("|") - row.count("\\|") == 7 and "<i>" not in text and "x cuda: none" in text
    assert "| Level 1: ops | 2 | 1 | 1 | 1 |" in text
    assert pages.to_markdown([document(of("ops", "silu"))]).startswith("## ✅ ckernels parity: ok")


@pytest.mark.parametrize(("codes", "worst"), [([0, 2], 2), ([2, 3], 3), ([3, 1], 1), ([0], 0)])
def test_the_worst_report_gives_the_exit_code(codes, worst, tmp_path, capsys):
    files = []
    for i, code in enumerate(codes):
        made = document(of("ops", "silu"))
        made["summary"]["exit_code"] = code
        files.append(tmp_path / f"{i}.json")
        files[-1].write_text(json.dumps(made))
    assert cli.main(["report", *map(str, files), "--output", str(tmp_path / "page.html")]) == worst
    assert Reader((tmp_path / "page.html").read_text()).text.count("ck parity") >= len(codes)
    assert cli.main(["report", *map(str, files), "--format", "markdown"]) == worst
    assert capsys.readouterr().out.startswith("## ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "no JSON"),
        ("[1]", "'schema' and 'tool' are not there"),
        ('{"schema": 99, "tool": "ck parity"}', "schema 99; this version knows 1"),
        ('{"schema": 1, "tool": "another"}', "its tool is 'another'"),
    ],
)
def test_what_is_no_report_is_wrong_usage(text, message, tmp_path, capsys):
    (tmp_path / "r.json").write_text(text)
    assert cli.main(["report", str(tmp_path / "r.json")]) == 4
    assert message in capsys.readouterr().err


def test_without_jinja2_it_says_what_to_install(monkeypatch, tmp_path, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "jinja2", None)
    (tmp_path / "r.json").write_text(json.dumps(document(of("ops", "silu"))))
    assert cli.main(["report", str(tmp_path / "r.json")]) == 4
    assert "a page needs jinja2" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path / "r.json"), "--format", "markdown"]) == 0


def test_every_command_prints_pages(tmp_path, capsys):
    np.save(tmp_path / "a.npy", EXACT.astype(np.float32))
    np.save(tmp_path / "b.npy", EXACT)
    model = ck.models.Model(ck.models.configs["single_layer"], seed=0)
    trace = model.trace(np.array([[1, 2, 3, 4, 5]]))
    trace.inputs.update(model.params)
    trace.save(tmp_path / "trace")
    hashes = model.trace(np.array([[1, 2, 3, 4, 5]]))
    hashes.save(tmp_path / "other")
    folder = str(tmp_path)
    for command, code in (
        (["parity", "ops", "--op", "relu", "--quick"], 0),
        (["compare", f"{folder}/a.npy", f"{folder}/b.npy"], 0),
        (["compare", f"{folder}/trace", f"{folder}/other"], 0),
        (["diagnose", f"{folder}/trace", f"{folder}/trace"], 0),
    ):
        for form, start in (("html", "<!doctype html>"), ("markdown", "## ✅ ckernels parity: ok")):
            assert cli.main([*command, "--format", form]) == code, (command, capsys.readouterr())
            out = capsys.readouterr().out
            assert out.startswith(start), command
            if form == "html":
                Reader(out)


def test_figures_and_shades():
    assert [short(v) for v in (None, 0, 0.5, 1234.0, 1e-7)] == ["–", "0", "0.50", "1e3", "1e-7"]
    assert [shade(m) for m in (0, 0.05, 0.3, 0.6, 0.9, 1.1, None)] == ["m0", "m1", "m2", "m3", "m4", "bad", "none"]
    assert shade(0.1, fine=False) == "bad"
    svg = str(strip([(0.0, True, "a"), (1e9, False, "<b>"), (0.5, True, "c")]))
    assert svg.count("<circle") == 3 and svg.count('class="red"') == 1 and "&lt;b&gt;" in svg
