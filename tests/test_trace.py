"""Traces: saved and loaded without a change, refused when damaged, and taken from transformers by hooks."""

import json
import struct
import sys

import numpy as np
import pytest
import torch
import transformers

from ckernels.parity.trace import FORMAT, Trace, trace_torch


def sample():
    rng = np.random.default_rng(0)
    arrays = {
        "embedding": rng.standard_normal((2, 3, 4)).astype(np.float32),
        "layers.0.q": rng.standard_normal((2, 3, 5, 4)).astype(np.float32).transpose(0, 2, 1, 3),
        "logits": np.array([[0.0, -0.0, np.nan, np.inf, 1e-45]], np.float32),
        "loss": np.array(1.25, np.float32),
        "half": np.arange(3, dtype=np.float16),
        "empty": np.zeros((0, 7), np.float64),
    }
    return Trace({"hidden_size": 4, "rope_theta": 1e4}, arrays, {"ids": np.arange(6).reshape(2, 3)})


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_saved_and_loaded_is_the_same_to_the_bit(tmp_path):
    trace = sample()
    trace.save(tmp_path / "a" / "b")
    again = Trace.load(tmp_path / "a" / "b")
    assert again.config == trace.config
    assert list(again.arrays) == list(trace.arrays) and list(again.inputs) == ["ids"]
    assert all(same_bits(again.arrays[name], array) for name, array in trace.arrays.items())
    assert same_bits(again.inputs["ids"], trace.inputs["ids"])


def test_saving_again_replaces_the_trace_and_leaves_nothing_else(tmp_path):
    sample().save(tmp_path)
    Trace({}, {"x": np.ones(2)}).save(tmp_path)
    assert list(Trace.load(tmp_path).arrays) == ["x"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["arrays.safetensors", "inputs.safetensors", "manifest.json"]


def test_a_folder_with_other_files_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="'thesis.tex' is no part of a trace"):
        sample().save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_written_by_hand_loads(tmp_path):
    """The format as documented, without the safetensors package: length, JSON header, bytes."""
    data = np.arange(6, dtype=np.float32)
    header = json.dumps({"layers.0.ln1": {"dtype": "F32", "shape": [1, 2, 3], "data_offsets": [0, 24]}}).encode()
    (tmp_path / "arrays.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data.tobytes())
    (tmp_path / "inputs.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    manifest = {
        "format": FORMAT, "schema": 1, "config": {}, "inputs": {},
        "arrays": {"layers.0.ln1": {"shape": [1, 2, 3], "dtype": "float32"}},
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    np.testing.assert_array_equal(Trace.load(tmp_path).arrays["layers.0.ln1"], data.reshape(1, 2, 3))


def edit(**changes):
    def apply(folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest.update(changes)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return apply


def edit_array(name, entry):
    def apply(folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["arrays"][name] = entry
        if entry is None:
            del manifest["arrays"][name]
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return apply


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut(name, keep):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


F32 = "float32"
DAMAGES = {
    "not JSON": (write("manifest.json", b'{"format": }'), r"manifest.json: line 1, column 12"),
    "cut JSON": (cut("manifest.json", 40), r"manifest.json: line \d+, column \d+"),
    "not UTF-8": (write("manifest.json", b"\xff\xfe{}"), r"manifest.json: byte 0 is not UTF-8"),
    "deep JSON": (write("manifest.json", b"[" * 200000), r"manifest.json: nested too deeply"),
    "a list": (write("manifest.json", b"[]"), r"manifest.json: 'format' is not"),
    "other format": (edit(format="zip"), r"manifest.json: 'format' is not 'ckernels-trace'"),
    "newer schema": (edit(schema=99), r"manifest.json: schema 99 is not known; this version reads 1"),
    "no config": (edit(config=None), r"manifest.json: 'config' is not an object"),
    "arrays a list": (edit(arrays=[]), r"manifest.json: 'arrays' is not an object"),
    "shape a word": (edit_array("loss", {"shape": "x", "dtype": F32}), r"arrays\['loss'\]: needs 'shape'"),
    "negative extent": (edit_array("loss", {"shape": [-1], "dtype": F32}), r"arrays\['loss'\]: needs 'shape'"),
    "no dtype": (edit_array("loss", {"shape": []}), r"arrays\['loss'\]: needs 'shape'"),
    "other shape": (edit_array("loss", {"shape": [1], "dtype": F32}), r"'loss' is float32 \[\]; manifest.json says"),
    "other dtype": (edit_array("loss", {"shape": [], "dtype": "float64"}), r"manifest.json says float64 \[\]"),
    "array not there": (edit_array("up", {"shape": [], "dtype": F32}), r"arrays.safetensors: the array 'up'"),
    "array not listed": (edit_array("loss", None), r"arrays.safetensors: the array 'loss' is not listed"),
    "empty file": (write("arrays.safetensors", b""), r"arrays.safetensors: not a readable safetensors file"),
    "cut header": (cut("arrays.safetensors", 20), r"arrays.safetensors: not a readable safetensors file"),
    "cut data": (cut("arrays.safetensors", -1), r"arrays.safetensors: not a readable safetensors file"),
    "absurd header": (write("inputs.safetensors", b"\xff" * 64), r"inputs.safetensors: not a readable safetensors"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_a_value_error_that_names_file_and_place(tmp_path, name):
    damage, says = DAMAGES[name]
    sample().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=says):
        Trace.load(tmp_path)


@pytest.mark.parametrize("gone", ["manifest.json", "arrays.safetensors", "inputs.safetensors"])
def test_a_missing_file_is_named(tmp_path, gone):
    sample().save(tmp_path)
    (tmp_path / gone).unlink()
    with pytest.raises(FileNotFoundError, match=gone):
        Trace.load(tmp_path)


def test_every_cut_of_the_data_is_refused(tmp_path):
    sample().save(tmp_path)
    whole = (tmp_path / "arrays.safetensors").read_bytes()
    for keep in range(0, len(whole), 7):
        (tmp_path / "arrays.safetensors").write_bytes(whole[:keep])
        with pytest.raises(ValueError, match="arrays.safetensors"):
            Trace.load(tmp_path)


def test_without_safetensors_the_error_says_what_to_install(tmp_path, monkeypatch):
    sample().save(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "safetensors"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for work in (lambda: Trace.load(tmp_path), lambda: sample().save(tmp_path / "new")):
        with pytest.raises(ImportError, match=r"needs safetensors: pip install 'ckernels\[models\]'"):
            work()
    assert not (tmp_path / "new").exists()


def test_what_is_no_array_is_refused_by_name():
    with pytest.raises(TypeError, match=r"arrays\['q'\] of dtype object"):
        Trace({}, {"q": np.array([None])})
    with pytest.raises(TypeError, match="names are non-empty strings"):
        Trace({}, {3: np.ones(2)})
    with pytest.raises(TypeError, match="'arrays' of type list"):
        Trace({}, [np.ones(2)])
    with pytest.raises(TypeError, match="'config' of type int"):
        Trace(3, {})


# --- from transformers ------------------------------------------------------------------------------------------------

CONFIG = dict(
    num_hidden_layers=2, hidden_size=48, num_attention_heads=6, num_key_value_heads=2, head_dim=16,
    intermediate_size=61, vocab_size=97, rms_norm_eps=1e-3, rope_theta=500.0, max_position_embeddings=64,
)  # fmt: skip


def llama(**changes):
    torch.manual_seed(0)
    module = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(CONFIG | changes)))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.4 if "norm" in name else torch.randn_like(parameter) * 0.2)
    return module


def batch():
    rng = np.random.default_rng(4)
    ids, targets = rng.integers(0, 97, (2, 2, 7))
    targets[1, 2] = -100
    return ids, targets


@pytest.mark.parametrize("tied", [False, True])
def test_every_stage_and_gradient_is_there_and_within_budget(tied):
    """Three parties: transformers in float32, our equations in float32 as its peer, in float64 as exact."""
    from ckernels.parity import assert_parity, exact

    module = llama(tie_word_embeddings=tied)
    ids, targets = batch()
    trace = trace_torch(module, ids, targets)
    params = {name: value.detach().numpy() for name, value in module.named_parameters()}
    wide, narrow = (exact.model(module.config, params, ids, targets, dtype=d) for d in ("float64", "float32"))
    want = wide.stages | {f"d_{name}": grad for name, grad in wide.grads.items()}
    peer = narrow.stages | {f"d_{name}": grad for name, grad in narrow.grads.items()}
    assert set(trace.arrays) == set(want)
    assert list(trace.arrays)[: len(exact.LAYER_STAGES) + 1] == list(wide.stages)[: len(exact.LAYER_STAGES) + 1]
    for name in want:
        assert_parity(trace.arrays[name], want[name], peer[name], name=name)


def test_the_trace_is_the_run_of_the_module():
    module = llama()
    ids, _ = batch()
    module.set_attn_implementation("eager")
    with torch.no_grad():
        logits = module.eval()(torch.tensor(ids)).logits.numpy()
    assert same_bits(trace_torch(module, ids).arrays["logits"], logits)


def test_the_module_is_left_as_it_was_found():
    module = llama()
    ids, targets = batch()
    module.train()
    module.model.layers[1].mlp.eval()
    module.model.norm.weight.requires_grad_(False)
    module.lm_head.weight.grad = torch.ones_like(module.lm_head.weight)

    def state():
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        return (
            {name: (part.training, len(part._forward_hooks), len(part._forward_pre_hooks), len(part._backward_hooks))
             for name, part in module.named_modules()},
            {name: (p.requires_grad, None if p.grad is None else p.grad.sum().item(), p._version)
             for name, p in module.named_parameters()},
            module.config._attn_implementation, module.config.to_dict(),
            list(ALL_ATTENTION_FUNCTIONS), list(ALL_MASK_ATTENTION_FUNCTIONS), torch.is_grad_enabled(),
            torch.get_rng_state().sum().item(),
        )  # fmt: skip

    before = state()
    trace_torch(module, ids, targets)
    assert state() == before
    with pytest.raises(IndexError):
        trace_torch(module, np.full((1, 3), 97))
    assert state() == before


def test_ids_without_a_batch_get_one_and_targets_must_fit():
    module = llama()
    ids, targets = batch()
    trace = trace_torch(module, ids[0])
    assert trace.arrays["layers.1.k_rope"].shape == (1, 2, 7, 16) and trace.inputs["ids"].shape == (1, 7)
    assert "loss" not in trace.arrays and not any("d_" in name for name in trace.arrays)
    with pytest.raises(ValueError, match=r"'targets' of shape \[1, 7\] does not fit 'ids' of shape \[2, 7\]"):
        trace_torch(module, ids, targets[0])


def test_a_module_that_is_no_llama_is_refused():
    with pytest.raises(TypeError, match="Linear has no 'model.embed_tokens', so it is no Llama"):
        trace_torch(torch.nn.Linear(2, 2), [[0]])


def test_bfloat16_modules_come_as_float32():
    module = llama().to(torch.bfloat16)
    trace = trace_torch(module, batch()[0])
    assert {array.dtype for array in trace.arrays.values()} == {np.dtype(np.float32)}


def test_a_trace_of_transformers_survives_the_folder(tmp_path):
    module = llama()
    trace = trace_torch(module, *batch())
    trace.save(tmp_path)
    again = Trace.load(tmp_path)
    assert again.config["hidden_size"] == 48 and again.config == trace.config
    assert all(same_bits(again.arrays[name], array) for name, array in trace.arrays.items())


@pytest.mark.parametrize("tied", [False, True])
def test_our_model_has_every_stage_and_gradient_within_budget(tied):
    """Three parties again: our model, transformers in float32, our equations in float64."""
    import ckernels as ck
    from ckernels.parity import assert_parity, exact

    module = llama(tie_word_embeddings=tied)
    ids, targets = batch()
    peer = trace_torch(module, ids, targets)
    model = ck.models.from_torch(module)
    ours = model.trace(ids, targets)
    run = exact.model(module.config, model.params, ids, targets)
    want = run.stages | {f"d_{name}": grad for name, grad in run.grads.items()}
    assert set(ours.arrays) == set(want) == set(peer.arrays)
    for name, value in want.items():
        assert_parity(ours.arrays[name], value, peer.arrays[name], name=name)


def test_trace_torch_says_what_it_lacks(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"trace_torch\(\) needs PyTorch: pip install 'ckernels\[parity\]'"):
        trace_torch(None, [1])
