"""A harness can lie too: the fourteen ways, each planted in ``ck parity`` itself, and each caught.

Where a lie is told by what is compared, the comparison must not pass it; where it sits in how a level is run, the run
must not end with 0.
"""

import ast
import contextlib
import subprocess
import sys
import types
from types import SimpleNamespace

import numpy as np
import pytest

import ckernels as ck
import native
from ckernels import cli
from ckernels.parity import Verdict, compare, exact, forward, layer, levels, ops, report, tally
from ckernels.parity.specs import SPECS, Probe
from ckernels.parity.specs.spec import OpSpec, normal


def a_case(verdict=Verdict.EXACT, name="x", **fields):
    return levels.Case("ops", name, verdict=verdict, margin=0.5, **fields)


@pytest.fixture
def level(monkeypatch):
    """Put cases in the place of level "ops" and run ``ck parity ops``: its exit code."""

    def run(*cases):
        module = types.ModuleType("ckernels.parity.a_level")
        module.run = lambda options: iter([case() if callable(case) else case for case in cases])
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(levels.LEVELS, "ops", (module.__name__, "a level"))
        return cli.main(["parity", "ops"])

    return run


def one(spec, probe=0):
    """A spec with one of its probes."""
    return OpSpec(**{**vars(spec), "probes": (spec.probes[probe],)})


RMS_NORM = one(next(spec for spec in SPECS if (spec.name, spec.what) == ("rms_norm", "forward")))


def run_ops(monkeypatch, spec, **options):
    """The cases of ``ck parity ops`` for one spec, on the library or on what ``ck`` is."""
    monkeypatch.setattr(ops, "specs_of", lambda options: (spec,))
    package = options.pop("package", ck)
    asked = levels.Options(op=spec.name, dtype="float32", isa=ck.isas()[0], quick=True, **options)
    return [case for case in ops.run(asked, package) if case.verdict != levels.NOT_MEASURED]


def test_h1_nothing_compared(level, monkeypatch, capsys):
    assert level(a_case()) == 0
    assert level() == 1, "a level that yields nothing"
    assert level(a_case(levels.NOT_MEASURED)) == 3, "no backend"
    assert level(a_case(), a_case(levels.UNMEASURED, "y")) == 1, "a stage that was skipped"
    assert "UNMEASURED" in capsys.readouterr().out
    empty = np.zeros((0, 4), np.float32)
    assert compare(empty, empty, empty).verdict is Verdict.VACUOUS
    assert run_ops(monkeypatch, OpSpec(**{**vars(RMS_NORM), "probes": ()})) == []
    assert levels.exit_code([]) == 3, "which a run without a case ends with"


def test_h2_a_missing_stage_is_no_number():
    class Lacking(ck.nn.DecoderLayer):
        def forward(self, x, positions=None, stages=None, **options):
            found = super().forward(x, positions=positions, stages=stages, **options)
            if stages is not None:
                del stages["q_rope"]
            return found

    cases = list(layer.run(levels.Options(quick=True, config="tiny"), build=Lacking))
    lost = [case for case in cases if case.verdict == levels.UNMEASURED]
    assert [case.name for case in lost] == ["tiny: q_rope"]
    assert lost[0].margin is None and lost[0].error is None and levels.exit_code(cases) == 1


class Forbidden:
    """Stands where the kernels are: whoever calls one is named."""

    def __getattr__(self, name):
        raise AssertionError(f"a reference called the kernel {name}")


def references_alone(spec, monkeypatch):
    """Compute both references of a spec's first probe without any kernel."""
    inputs = spec.inputs(spec.probes[0])
    with monkeypatch.context() as patch:
        for module in [m for name, m in sys.modules.items() if name.startswith("ckernels") and hasattr(m, "_ck")]:
            patch.setattr(module, "_ck", Forbidden())
        return spec.exact(inputs), spec.peer(inputs)


def test_h3_the_reference_shares_the_kernel(monkeypatch):
    for spec in SPECS:
        references_alone(one(spec), monkeypatch)
    shared = OpSpec(**{**vars(RMS_NORM), "exact": lambda inputs: {"y": ck.rms_norm(**inputs)}})
    with pytest.raises(AssertionError, match="a reference called the kernel rms_norm_fwd"):
        references_alone(shared, monkeypatch)
    y = np.linspace(1, 2, 9, dtype=np.float32)
    assert compare(y, y, y + 1e-7).verdict is Verdict.VACUOUS, "compared with itself"
    for module in exact, forward:  # the models' exact side is made of PyTorch and NumPy
        names = {node.module or "" for node in ast.walk(ast.parse(open(module.__file__).read()))
                 if isinstance(node, ast.ImportFrom) and node.level == 0}  # fmt: skip
        assert not {name for name in names if name.startswith(("ckernels._ck", "ckernels.ops"))}


def test_h4_the_reference_is_the_inaccurate_side(monkeypatch):
    def off(inputs):
        return {"y": 1.5 * RMS_NORM.exact(inputs)["y"]}

    cases = run_ops(monkeypatch, OpSpec(**{**vars(RMS_NORM), "exact": off}))
    assert [case.verdict for case in cases] == [Verdict.REFERENCE_WRONG] and levels.exit_code(cases) == 1
    cases = run_ops(monkeypatch, OpSpec(**{**vars(RMS_NORM), "peer": off}))
    assert [case.verdict for case in cases] == [Verdict.REFERENCE_WRONG], "a peer that is off sets no budget"


def test_h5_nan_is_lost_in_no_maximum(monkeypatch):
    def one_nan(ck, inputs):
        y = RMS_NORM.run(ck, inputs)["y"]
        y.ravel()[5] = np.nan
        return {"y": y}

    cases = run_ops(monkeypatch, OpSpec(**{**vars(RMS_NORM), "run": one_nan}))
    assert [case.verdict for case in cases] == [Verdict.STRUCTURAL]
    nothing = np.full(9, np.nan, np.float32)
    assert compare(nothing, nothing.astype(float), nothing).verdict is Verdict.VACUOUS, "NaN is no match of NaN"


def test_h6_one_wrong_element_is_not_diluted(monkeypatch):
    def one_wrong(ck, inputs):
        y = RMS_NORM.run(ck, inputs)["y"]
        y.ravel()[5] += 2e-5 * np.abs(y).max()
        return {"y": y}

    (case,) = run_ops(monkeypatch, OpSpec(**{**vars(RMS_NORM), "run": one_wrong}))
    assert case.nmse < 1e-10 and case.verdict is Verdict.EXCESS_DRIFT
    assert "1 of" in case.note, "and it says which"


def test_h7_the_gate_runs_another_path(monkeypatch):
    class Elsewhere:
        """A package that says it took the instruction set, and did not."""

        __getattr__ = staticmethod(lambda name: getattr(ck, name))
        use = staticmethod(lambda isa: contextlib.nullcontext())
        isa = staticmethod(lambda: "reference")

    cases = run_ops(monkeypatch, RMS_NORM, package=Elsewhere())
    assert [case.verdict for case in cases] == [levels.ERROR]
    assert "the code ran on reference" in cases[0].note


def test_h8_a_failure_does_not_end_with_0(level, capsys):
    assert level(a_case(Verdict.EXCESS_DRIFT)) == 1
    assert level(a_case(), lambda: 1 / 0) == 1, "a level that crashed"
    assert level(a_case(Verdict.UNDECIDED)) == 2 and level(a_case(Verdict.VACUOUS)) == 3
    capsys.readouterr()
    script = (native.ROOT / ".ci" / "run").read_text()
    assert "set -euo pipefail" in script, "a pipe would hide what failed before it"
    failing = [native.PYTHON, "-m", "ckernels.cli", "compare", "nowhere.npy", "nowhere.npy"]
    assert subprocess.run(failing, env=native.ENVIRONMENT, capture_output=True).returncode == 4


def limits_are_the_documented_ones(judge):
    """The rule, weighed: an error of 0.98 of what NUMERICS allows passes, one of 1.02 does not."""
    right = np.random.default_rng(3).standard_normal(4096)
    peer = (right + 1e-5 * np.random.default_rng(4).standard_normal(4096)).astype(np.float32)
    allowed = 3 * np.abs(peer - right).max() + 2 * 2.0**-23 * np.abs(right).max()
    for share, passes in (0.98, True), (1.02, False):
        ours = right.astype(np.float32)
        ours[7] = np.float32(right[7] + share * allowed)
        assert judge(ours, right, peer) == passes, f"{share} of what is allowed"


def test_h9_a_limit_relaxed_to_fit():
    limits_are_the_documented_ones(lambda *sides: compare(*sides).ok)
    with pytest.raises(AssertionError, match="of what is allowed"):
        limits_are_the_documented_ones(lambda *sides: compare(*sides).margin <= 1.1)
    assert tally.CEILING["float32"] == 1e-5
    assert tally.NMSE_CEILING == {"float32": 1e-7, "float16": 1e-6, "bfloat16": 1e-4}
    assert (layer.CEILING_FORWARD, layer.CEILING_GRADIENT, layer.CEILING_NMSE) == (1e-4, 1e-5, 1e-7)


def same_twice(spec):
    """Both references of a spec's first probe give the same bits again, from inputs made again."""
    for side in spec.exact, spec.peer:
        first, second = (side(spec.inputs(spec.probes[0])) for _ in range(2))
        for name, value in first.items():
            again = np.asarray(second[name])
            assert np.asarray(value).tobytes() == again.tobytes(), f"{spec.name} {spec.what}: {name} is another"


def test_h10_an_oracle_that_is_not_deterministic():
    for spec in SPECS:
        same_twice(spec)
    rng = np.random.default_rng()

    def noisy(inputs):
        return {"y": RMS_NORM.exact(inputs)["y"] + 1e-9 * rng.standard_normal()}

    with pytest.raises(AssertionError, match="rms_norm forward: y is another"):
        same_twice(OpSpec(**{**vars(RMS_NORM), "exact": noisy}))


def test_h11_two_quantities_under_one_name(level, capsys):
    assert level(a_case(what="forward y"), a_case(what="backward dx")) == 0
    assert level(a_case(what="forward y"), a_case(what="forward y")) == 1
    assert "is there 2 times" in capsys.readouterr().out


def test_h12_a_probe_too_easy(monkeypatch):
    rope = next(spec for spec in SPECS if (spec.name, spec.what) == ("rope", "forward"))

    def at_zero(rng):
        cos, sin = ck.rope_table(np.zeros(5, np.int64), 8)
        return {"x": normal(rng, 3, 5, 8), "cos": cos, "sin": sin}

    easy = OpSpec(**{**vars(rope), "probes": (Probe("position 0", at_zero, quick=True),)})
    cases = run_ops(monkeypatch, easy)
    assert [case.verdict for case in cases] == [Verdict.VACUOUS] and levels.exit_code(cases) == 3
    ones = OpSpec(**{**vars(RMS_NORM), "probes": (Probe(
        "all one", lambda rng: {"x": np.ones((3, 8), np.float32), "weight": np.ones(8, np.float32)}, quick=True),)})  # fmt: skip
    assert [case.verdict for case in run_ops(monkeypatch, ones)] == [Verdict.VACUOUS]


def test_h13_a_near_tie_is_no_mismatch():
    right = np.tile(np.linspace(-1, 1, 8), (3, 1))
    right[:, -2] = right[:, -1] - 1e-7  # nearer than float32 can tell at this size of error
    ours = right.copy()
    ours[1, -2:] = ours[1, -1:-3:-1]
    cases = {case.what: case for case in forward.judge("tie", ours.astype(np.float32), right, right.astype(np.float32))}
    ranking = next(case for what, case in cases.items() if "ties_swapped" in case.data)
    assert not ranking.failed and ranking.data["mismatches"] == 0 and ranking.data["ties_swapped"] > 0
    ours[1, [0, -1]] = ours[1, [-1, 0]]  # the last is now the best: that is one
    cases = list(forward.judge("tie", ours.astype(np.float32), right, right.astype(np.float32)))
    assert levels.exit_code(cases) == 1 and any(case.data.get("mismatches") for case in cases)


def test_h14_another_configuration_than_the_one_that_ships(monkeypatch, capsys, level):
    """The build with planted faults is no library: ``ck parity`` does not judge it."""
    from ckernels import _ck

    assert level(a_case()) == 0
    planted = SimpleNamespace(**{name: getattr(_ck, name) for name in dir(_ck)}, plant=lambda name: None)
    monkeypatch.setitem(sys.modules, "ckernels._ck", planted)
    assert level(a_case()) == 1
    assert "planted faults" in capsys.readouterr().err
    monkeypatch.undo()
    facts = report.to_json([], {"isas": ck.isas()}, levels.Options(), report.Summary.of([], 0.0))
    assert '"isas"' in facts, "what was measured is told with the results"
