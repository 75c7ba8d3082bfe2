"""op-diff: every backend against float64 and beside every other, the ops that serving engines call, and faults in them."""

import contextlib
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import ckernels as ck
from ckernels import cli
from ckernels.parity import Verdict, backends, compare, levels, ops
from ckernels.parity.specs import NAMED, SERVED, SPECS, chosen

NAMES = """activation_bridge argmax_rows embedding_lookup flash_attention fused_add_rms_norm gemm kv_cache_append
marlin_matmul paged_varlen_attn qk_norm_rope residual_add rms_norm silu_mul split_qkv transpose_head_to_token""".split()


def run(package=ck, **options):
    return list(ops.run(levels.Options(**options), package))


def served(name):
    return next(spec for spec in SERVED if spec.name == name)


def test_all_fifteen_names_are_there():
    assert sorted(NAMED) == sorted(NAMES)
    for name in NAMES:
        assert {spec.name for spec in chosen(name)} == set(NAMED[name])
    modes = {probe.label for spec in chosen("qk_norm_rope") for probe in spec.probes}
    assert all(any(word in label for label in modes) for word in ("interleaved", "partial", "[T]", "[B,T]", "tiny rms"))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_passes_on_every_backend(name):
    """One dtype and the quick probes of each: that each backend, and each pair, has its row and passes."""
    found = run(op=name, backends="avx2,reference,openblas,torch,cuda", quick=True, dtype="float32")
    assert [f"{c.what} {c.isa} {c.verdict} {c.note}" for c in found if c.failed] == []
    assert levels.exit_code(found) == 0
    measured = [c for c in found if c.verdict != levels.NOT_MEASURED]
    assert {c.isa for c in found} - {c.isa for c in measured} == {"cuda"}
    assert {"avx2", "reference", "torch", "avx2 ~ torch", "avx2 ~ reference"} <= {c.isa for c in measured}
    with_blas = name in ("gemm", "marlin_matmul")
    assert ("openblas" in {c.isa for c in measured}) == with_blas
    for case in measured:
        assert name in case.data["op"].split("+") and case.data["probes"] >= 1 and case.report is not None
        assert sum(case.data["ulp_counts"]) > 0 or case.report.compared == 0


def test_sixteen_bits_and_equal_bits():
    found = run(op="marlin_matmul", backends="avx512,avx2,torch", dtype="bfloat16,float16")
    if "avx512" in ck.isas():
        assert {c.verdict for c in found if c.isa == "avx512 ~ avx2"} == {Verdict.EXACT}
    assert levels.exit_code(found) == 0 and {c.dtype for c in found if c.isa} == {"float16", "bfloat16"}


@pytest.mark.parametrize("text", ["avx2", "torch", "avx2,cuda", "openblas,torch"])
def test_fewer_than_two_backends_are_vacuous_and_no_pass(text, capsys):
    assert cli.main(["parity", "ops", "--op", "silu_mul", "--backends", text, "--quick"]) == 3
    out = capsys.readouterr().out
    assert "none was compared with another" in out
    assert ("not measured: silu_mul cuda: no CUDA kernels in this build" in out) == ("cuda" in text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("avx2,avx2", "there twice: compared with itself it shows nothing"),
        ("avx2,mmx", "no backend is called 'mmx'; there are"),
        (",", "no backend is named"),
    ],
)
def test_wrong_backends_are_wrong_usage(text, message, capsys):
    assert cli.main(["parity", "ops", "--op", "silu_mul", "--backends", text]) == 4
    assert message in capsys.readouterr().err


def test_formats(capsys):
    command = ["parity", "ops", "--op", "kv_cache_append", "--backends", "avx2,torch", "--quick", "--dtype", "float32"]
    assert cli.main(command) == 0
    assert "each pair: NMSE" in capsys.readouterr().out
    assert cli.main([*command, "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1 and document["options"]["backends"] == "avx2,torch"
    assert {tuple(c["data"]["backends"]) for c in document["cases"]} == {("avx2",), ("torch",), ("avx2", "torch")}
    assert cli.main([*command, "--format", "junit"]) == 0
    suite = ElementTree.fromstring(capsys.readouterr().out.encode()).find("testsuite")
    assert suite.get("tests") == str(len(document["cases"])) and suite.get("failures") == "0"


# ---- faults: in a backend, and in what the compositions do ----


class Faulty:
    """ckernels with some of its functions changed."""

    def __init__(self, **changes):
        self.__dict__.update(changes)

    def __getattr__(self, name):
        return getattr(ck, name)


def test_a_backend_that_is_off_is_named_and_so_are_its_pairs():
    def silu(x):
        y = ck.silu(x)
        return y * np.float32(1.0001) if ck.isa() == "avx2" else y

    found = run(Faulty(silu=silu), op="silu", backends="avx2,reference,torch", quick=True, dtype="float32")
    red = {c.isa for c in found if c.failed and c.what == "forward y"}
    assert red == {"avx2", "avx2 ~ reference", "avx2 ~ torch"}


def test_a_backend_whose_bits_differ_breaks_the_promise_though_it_is_in_budget():
    if "avx512" not in ck.isas():
        assert not any("avx512" in case.isa for case in run(op="silu", backends="avx2,reference", quick=True))
        return

    def silu(x):
        y = ck.silu(x)
        return np.nextafter(y, np.float32(9)) if ck.isa() == "avx2" else y

    found = {c.isa: c for c in run(Faulty(silu=silu), op="silu", backends="avx512,avx2", quick=True, dtype="float32")
             if c.what == "forward y"}  # fmt: skip
    assert found["avx2"].verdict == Verdict.WITHIN_BUDGET
    assert found["avx512 ~ avx2"].failed


def test_a_backend_that_raises_or_changes_its_input_is_an_error():
    def raises(x):
        raise RuntimeError("planted")

    def overwrites(x):
        y = ck.silu(x)
        x[...] = 0
        return y

    for function, text in ((raises, "planted"), (overwrites, "the input 'x' was modified")):
        found = run(Faulty(silu=function), op="silu", backends="avx2,torch", quick=True, dtype="float32")
        errors = {c.isa: c.note for c in found if c.verdict == levels.ERROR and c.what.startswith("forward")}
        assert text in errors["avx2"] and text in errors["avx2 ~ torch"] and levels.exit_code(found) == 1


def test_the_code_runs_where_the_row_says(monkeypatch):
    """A backend that quietly runs another one's code is an error, not two equal rows."""

    @contextlib.contextmanager
    def use(isa):
        yield

    package = Faulty(use=use)
    found = run(package, op="silu", backends="avx2,reference", quick=True, dtype="float32")
    elsewhere = [c for c in found if "the code ran on" in c.note]
    assert elsewhere and levels.exit_code(found) == 1


def test_a_peer_beyond_the_ceilings_is_reference_wrong_but_for_what_is_known(monkeypatch):
    found = run(op="embedding", backends="avx2,torch", dtype="bfloat16")
    loose = [c for c in found if c.isa == "torch" and c.what.startswith("backward")]
    assert "one by one in 16 bits" in loose[0].note and loose[0].verdict in levels.PASSING and loose[0].margin is None
    monkeypatch.setattr(backends, "LOOSE", {})
    found = run(op="embedding", backends="avx2,torch", dtype="bfloat16")
    assert [c.verdict for c in found if c.failed and c.isa == "torch"] == [Verdict.REFERENCE_WRONG]


def _nibbles_the_other_way(inputs):
    words = inputs["qweight"].view(np.uint32)
    turned = sum(((words >> np.uint32(4 * i)) & np.uint32(15)) << np.uint32(4 * (7 - i)) for i in range(8))
    return inputs | {"qweight": turned.astype(np.uint32).view(np.int32)}


def _zeros_as_stored(inputs):
    """Q - z for q - (z + 1): a zero one lower says the same."""
    words = inputs["qzeros"].view(np.uint32)
    shifted = np.zeros_like(words)
    for i in range(8):
        nibble = (words >> np.uint32(4 * i)) & np.uint32(15)
        shifted |= ((nibble - np.uint32(1)) & np.uint32(15)) << np.uint32(4 * i)
    return inputs | {"qzeros": shifted.view(np.int32)}


GPTQ_FAULTS = {
    "nibble order": _nibbles_the_other_way,
    "zero for zero minus one": _zeros_as_stored,
    "the scale of the next group": lambda i: i | {"scales": np.roll(i["scales"], 1, 0)},
    "the zero of the next group": lambda i: i | {"qzeros": np.roll(i["qzeros"], 1, 0)},
    "g_idx ignored": lambda i: i | {"g_idx": np.sort(i["g_idx"])},
    "g_idx as a permutation": lambda i: (
        i | {"x": np.ascontiguousarray(i["x"][:, np.argsort(i["g_idx"], kind="stable")])}
    ),
}


@pytest.mark.parametrize("dtype", levels.DTYPES)
@pytest.mark.parametrize("fault", GPTQ_FAULTS)
def test_faults_of_int4_are_seen(fault, dtype):
    spec = served("marlin_matmul")
    seen = 0
    for probe in spec.probes:
        inputs = spec.inputs(probe, dtype=dtype)
        wrong = spec.run(ck, GPTQ_FAULTS[fault](inputs))["y"]
        seen += not compare(wrong, spec.exact(inputs)["y"], spec.peer(inputs)["y"]).ok
    assert seen == (1 if fault.startswith("g_idx") else len(spec.probes))  # one probe has groups in another order


def _other_tables(inputs):
    tables = inputs["tables"].copy()
    for row in tables:
        row[row >= 0] = np.sort(row[row >= 0])
    return inputs | {"tables": tables}


PAGED_FAULTS = {
    "tables taken for sorted": _other_tables,
    "one token too few": lambda i: i | {"lengths": i["lengths"] - (i["lengths"] > i["queries"])},
    "scale five percent off": lambda i: i | {"q": (i["q"].astype(np.float32) * 1.05).astype(i["q"].dtype)},
    "values of the next head": lambda i: i | {"v_blocks": np.roll(i["v_blocks"], 1, 1)},
    "the block's slots turned": lambda i: i | {"k_blocks": i["k_blocks"][:, :, ::-1]},
}


@pytest.mark.parametrize("fault", PAGED_FAULTS)
def test_faults_of_paged_attention_are_seen(fault):
    spec = served("paged_varlen_attn")
    inputs = spec.inputs(spec.probes[1])
    wrong = spec.run(ck, PAGED_FAULTS[fault](inputs))["y"]
    assert not compare(wrong, spec.exact(inputs)["y"], spec.peer(inputs)["y"]).ok


def test_faults_of_append_are_seen():
    spec = served("kv_cache_append")
    inputs = spec.inputs(spec.probes[1])
    right = spec.exact(inputs)
    wrong = {
        "item 0's length for all": {"lengths": np.full_like(inputs["lengths"], inputs["lengths"][0])},
        "one token more than counted": {"counts": inputs["counts"] + np.array([0, 0, 1, 0])},
        "k for v": {"v": inputs["k"]},
    }
    for name, change in wrong.items():
        found = spec.peer(inputs | change)
        assert not all(compare(found[key], right[key], bitwise=True).ok for key in ("k", "v")), name
    assert all(compare(spec.peer(inputs)[key], right[key], bitwise=True).ok for key in right)


def test_the_bridge_keeps_what_a_detour_would_lose():
    spec = served("activation_bridge")
    inputs = spec.inputs(spec.probes[0])
    x = inputs["x"]
    assert np.isnan(x).any() and np.isinf(x).any() and (np.signbit(x) & (x == 0)).any()
    detour = x.astype(np.float16).astype(np.float32)
    assert not compare(np.einsum("hbtd->bthd", detour).copy(), spec.exact(inputs)["y"].copy(), bitwise=True).ok


def test_exact_sides_of_what_is_served_use_no_code_of_the_package():
    """H3: the reference may share neither kernel nor loader with what it judges."""
    source = (Path(backends.__file__).parent / "specs" / "served.py").read_text()
    for name in ("_append_exact", "_marlin_exact", "_paged_exact"):
        body = re.search(rf"^def {name}\(.*?(?=^\S)", source, re.M | re.S)[0]
        assert "ck." not in body and "torch" not in body and "_gptq_unpacked" not in body


def test_a_package_without_caches_has_them_unmeasured():
    package = SimpleNamespace(isas=ck.isas, isa=ck.isa, use=ck.use)
    (case, *_) = run(package, op="kv_cache_append", backends="avx2,reference", dtype="float32")
    assert case.verdict == levels.UNMEASURED and "KVCache" in case.note


def test_level_1_runs_them_too():
    found = run(op="marlin_matmul", quick=True, dtype="float32")
    assert levels.exit_code(found) == 0 and {"reference", "openblas"} <= {c.isa for c in found}
    assert {spec.name for spec in chosen()} == {spec.name for spec in (*SPECS, *SERVED)}
