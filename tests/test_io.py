"""Reading model files: the arrays that other readers find too, and a sentence where a file is damaged."""
import dataclasses
import json
import struct
import subprocess
import sys

import gguf
import numpy as np
import pytest

import ckernels as ck
from ckernels.io import GGUFFile, read_gguf, read_safetensors
from ckernels.io.fetch import fetch
from ckernels.io.gguf import unpermute_rows
from ckernels.models.parameters import parameter_shapes, random_parameters

NO_TORCH = "not measured: no PyTorch for this Python"
SENTENCES = (ValueError, OSError, EOFError, OverflowError, MemoryError)  # what a damaged file may end in

ABSURD = (0, 2**31, 2**40, 2**62, 2**63, 2**64 - 1)

# 4 query heads on 2 key-value heads of 8, channels 32 and 64: extents differ, and every row fills blocks of 32.
SMALL = ck.models.Config(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=37,
    rms_norm_eps=1e-5,
    rope_theta=50000.0,
    max_position_embeddings=128,
)

TO_GGUF = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def gguf_name(name):
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return TO_GGUF[stem] + ".weight"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{TO_GGUF[rest]}.weight"


def interleave(weight, heads):
    """What llama files do to q and k, row by row: member s of pair i of a head goes to its row 2i + s."""
    out, D = np.empty_like(weight), len(weight) // heads
    for h in range(heads):
        for i in range(D // 2):
            for s in range(2):
                out[h * D + 2 * i + s] = weight[h * D + s * (D // 2) + i]
    return out


def write_gguf(path, config, params, *, kind=gguf.GGMLQuantizationType.F32, metadata=None, tensors=None, arch="llama"):
    """Write a llama file with the package's writer; ``metadata`` and ``tensors`` add to it, None leaves out."""
    writer = gguf.GGUFWriter(path, arch)
    fields = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(config.rope_theta),
        "vocab_size": config.vocab_size,
        **(metadata or {}),
    }
    for name, value in fields.items():
        if value is not None:
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}
            add.get(type(value), writer.add_array)(f"llama.{name}", value)
    writer.add_array("tokenizer.ggml.tokens", [f"token {i} ü" for i in range(config.vocab_size)])
    writer.add_array("tokenizer.ggml.scores", [0.5 * i for i in range(config.vocab_size)])
    arrays = {}
    for name, weight in params.items():
        if name.endswith("q_proj.weight"):
            weight = interleave(weight, config.num_attention_heads)
        if name.endswith("k_proj.weight"):
            weight = interleave(weight, config.num_key_value_heads)
        arrays[gguf_name(name)] = weight
    for name, weight in {**arrays, **(tensors or {})}.items():
        if weight is None:
            continue
        if kind == gguf.GGMLQuantizationType.F32 or weight.ndim == 1:
            writer.add_tensor(name, weight)
        else:
            writer.add_tensor(name, gguf.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def params(rng):
    return random_parameters(SMALL, int(rng.integers(2**31)))


@pytest.fixture
def small(tmp_path, params):
    return write_gguf(tmp_path / "small.gguf", SMALL, params)


def assert_same_arrays(got, want):
    assert got.keys() == want.keys()
    assert got, "nothing was compared"
    for name, array in want.items():
        assert got[name].dtype == np.float32 and got[name].flags.writeable and got[name].flags.c_contiguous
        np.testing.assert_array_equal(got[name], array, err_msg=name, strict=True)


def head(layout, *values):
    """The first bytes of a file: the magic number, then a version and what follows it."""
    return b"GGUF" + struct.pack("<I" + layout, *values)


class TestGGUF:
    def test_writer_of_the_package_reader_of_ours(self, small, params):
        config, got, report = read_gguf(small)
        assert config == SMALL
        assert_same_arrays(got, params)
        assert report.tied == {} and report.loaded["lm_head.weight"] == ("output.weight", "F32")
        assert "12 tensors loaded (F32)" in str(report)

    def test_without_output_weight_the_head_is_tied(self, tmp_path, params):
        path = write_gguf(tmp_path / "tied.gguf", SMALL, params, tensors={"output.weight": None})
        config, got, report = read_gguf(path)
        assert config.tie_word_embeddings and "lm_head.weight" not in got
        assert report.tied == {"lm_head.weight": "model.embed_tokens.weight"}

    @pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
    def test_dequantised_as_the_package_does(self, tmp_path, params, kind):
        kind = gguf.GGMLQuantizationType[kind]
        path = write_gguf(tmp_path / "quantised.gguf", SMALL, params, kind=kind)
        _, got, report = read_gguf(path)
        want = {n: w if w.ndim == 1 else gguf.dequantize(gguf.quantize(w, kind), kind) for n, w in params.items()}
        assert_same_arrays(got, want)  # rows are permuted whole, so blocks stay blocks
        assert report.loaded["model.embed_tokens.weight"][1] == kind.name

    def test_header_as_the_package_reads_it(self, small):
        mine, theirs = GGUFFile(small), gguf.GGUFReader(small)
        fields = {k: v.contents() for k, v in theirs.fields.items() if not k.startswith("GGUF.")}
        assert mine.metadata == fields
        assert list(mine.tensors) == [t.name for t in theirs.tensors]
        for tensor in theirs.tensors:
            info = mine.tensors[tensor.name]
            assert (info.offset, info.size, info.shape) == (tensor.data_offset, tensor.n_bytes, tensor.data.shape)
            np.testing.assert_array_equal(mine.read(tensor.name), tensor.data)

    def test_as_transformers_reads_it(self, small, tmp_path):
        pytest.importorskip("torch", reason=NO_TORCH)
        from transformers import LlamaForCausalLM

        peer = LlamaForCausalLM.from_pretrained(tmp_path, gguf_file=small.name)
        config, got, _ = read_gguf(small)
        theirs = ck.models.Config.from_hf(peer.config)
        # The file holds float32; transformers widens it, we take the shortest decimal that rounds to it.
        assert np.float32(theirs.rms_norm_eps) == np.float32(config.rms_norm_eps) and config.rms_norm_eps == 1e-5
        assert dataclasses.replace(theirs, rms_norm_eps=config.rms_norm_eps) == config
        assert_same_arrays(got, {name: value.numpy() for name, value in peer.state_dict().items()})

    def test_unpermute_rows_undoes_interleave(self, rng):
        for heads, D in ((1, 2), (3, 8), (9, 64)):
            weight = rng.normal(size=(heads * D, 5)).astype(np.float32)
            np.testing.assert_array_equal(unpermute_rows(interleave(weight, heads), heads), weight)

    def test_head_size_of_its_own(self, tmp_path, rng):
        config = dataclasses.replace(SMALL, head_dim=16)
        params = random_parameters(config, int(rng.integers(2**31)))
        extra = {"attention.key_length": 16, "attention.value_length": 16, "rope.dimension_count": 16}
        got = read_gguf(write_gguf(tmp_path / "wide.gguf", config, params, metadata=extra))
        assert got[0] == config
        assert_same_arrays(got[1], params)

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            (dict(arch="gpt2"), "general.architecture='gpt2'"),
            (dict(metadata={"rope.scaling.type": "yarn"}), "llama.rope.scaling.type='yarn'"),
            (dict(metadata={"expert_count": 8}), "llama.expert_count=8"),
            (dict(metadata={"logit_scale": 2.0}), "llama.logit_scale=2.0"),
            (dict(metadata={"rope.dimension_count": 4}), "llama.rope.dimension_count=4 differs"),
            (dict(metadata={"attention.value_length": 4}), "llama.attention.value_length=4 differs"),
            (dict(metadata={"block_count": 2}), "missing model.layers.1."),
            (dict(metadata={"block_count": 2**31 - 1}), "llama.block_count=2147483647"),
            (dict(metadata={"block_count": None}), "'llama.block_count' is missing"),
            (dict(metadata={"block_count": "one"}), "'llama.block_count' is 'one'"),
            (dict(metadata={"attention.head_count": 0}), "llama.attention.head_count=0"),
            (dict(metadata={"attention.head_count_kv": 3}), "num_key_value_heads=3"),
            (dict(metadata={"attention.head_count_kv": [2]}), "llama.attention.head_count_kv' is [2]"),
            (dict(metadata={"rope.freq_base": float("nan")}), "rope_theta=nan"),
            (dict(metadata={"vocab_size": 38}), "model.embed_tokens.weight has shape (37, 32)"),
            (dict(metadata={"feed_forward_length": 65}), "mlp.gate_proj.weight has shape (64, 32)"),
            (dict(tensors={"blk.0.attn_v.weight": None}), "missing model.layers.0.self_attn.v_proj.weight"),
            (dict(tensors={"token_embd.weight": None}), "missing the matrix 'token_embd.weight'"),
            (dict(tensors={"rope_freqs.weight": np.ones(4, "f4")}), "tensor 'rope_freqs.weight' has no place"),
            (dict(tensors={"blk.0.attn_q.bias": np.ones(32, "f4")}), "tensor 'blk.0.attn_q.bias' has no place"),
            (dict(tensors={"blk.01.attn_q.weight": np.ones(32, "f4")}), "tensor 'blk.01.attn_q.weight' has no place"),
            (dict(tensors={"blk.0.attn_norm.weight": np.ones(32, "f8")}), "is stored as F64"),
        ],
    )
    def test_refused_by_name(self, tmp_path, params, change, text):
        path = write_gguf(tmp_path / "odd.gguf", SMALL, params, **change)
        with pytest.raises(ValueError) as error:
            read_gguf(path)
        assert text in str(error.value) and str(path) in str(error.value)

    @pytest.mark.parametrize(
        ("content", "kind", "text"),
        [
            (b"", EOFError, "the file is empty"),
            (b"GG", EOFError, "byte 0: the magic number needs 4 bytes"),
            (b"PK\3\4" + bytes(40), ValueError, "no GGUF file"),
            (head("", 1) + bytes(40), ValueError, "version 1"),
            (b"GGUF" + struct.pack(">I", 3) + bytes(40), ValueError, "big-endian"),
            (head("QQ", 3, 2**63, 0), EOFError, "number of tensors 9223372036854775808"),
            (head("QQ", 3, 0, 2**61) + bytes(64), EOFError, "number of metadata fields"),
            (head("QQQ", 3, 0, 1, 2**64 - 1) + bytes(64), EOFError, "length of a metadata key"),
            (head("QQQ2sII", 3, 0, 1, 2, b"ab", 99, 0), ValueError, "unknown type 99"),
            (head("QQQ2sIIQ", 3, 0, 1, 2, b"ab", 9, 4, 2**62), EOFError, "length of 'ab'"),
            (head("QQQ2sIIQ", 3, 0, 1, 2, b"ab", 9, 9, 1), ValueError, "array of the unknown type 9"),
            (head("QQQ2sII", 3, 0, 1, 2, b"\xff\xff", 4, 0), ValueError, "is not UTF-8"),
            (head("QQQ1sI", 3, 1, 0, 1, b"t", 2**31) + bytes(99), ValueError, "2147483648 dimensions"),
            (head("QQQ1sIQQIQ", 3, 1, 0, 1, b"t", 2, 2**40, 2**40, 0, 0), OverflowError, "absurd"),
            (head("QQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 4, 0, 2**63), EOFError, "'t' needs bytes"),
            (head("QQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 4, 0, 3), ValueError, "no multiple of 32"),
            (head("QQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 4, 77, 0), ValueError, "storage type 77"),
            (head("QQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 33, 2, 0), ValueError, "no multiple of 32"),
        ],
    )
    def test_damaged_headers(self, tmp_path, content, kind, text):
        path = tmp_path / "damaged.gguf"
        path.write_bytes(content)
        with pytest.raises(kind) as error:
            read_gguf(path)
        assert type(error.value) is kind
        assert text in str(error.value) and str(path) in str(error.value)

    def test_truncated_anywhere(self, small):
        whole = small.read_bytes()
        read_gguf(small)
        for size in {*range(0, len(whole), 61), len(whole) - 1}:
            small.write_bytes(whole[:size])
            with pytest.raises(SENTENCES, match="small.gguf"):
                read_gguf(small)

    def test_any_byte_of_the_header_changed(self, small, rng):
        """Success or a sentence, whatever the byte; absurd sizes among them."""
        whole = small.read_bytes()
        header = min(info.offset for info in GGUFFile(small).tensors.values())
        outcomes = {True: 0, False: 0}
        for at in range(header):
            damaged = bytearray(whole)
            if at % 3:
                damaged[at] ^= int(rng.integers(1, 256))
            else:
                damaged[at : at + 8] = struct.pack("<Q", ABSURD[rng.integers(len(ABSURD))])
            small.write_bytes(damaged)
            outcomes[ends_in_a_sentence(read_gguf, small)] += 1
        assert outcomes[True] > 100 and outcomes[False] > 100, outcomes


def ends_in_a_sentence(read, path):
    """Whether reading was refused; any other exception than those allowed, or one without the name, fails the test."""
    try:
        read(path)
    except SENTENCES as error:
        assert str(path) in str(error), error
        return True
    return False


class TestSmolLM2:
    """The real file decides what is true of llama files."""

    def test_as_transformers_reads_it(self):
        pytest.importorskip("torch", reason=NO_TORCH)
        from transformers import LlamaForCausalLM

        path = fetch("smollm2-135m", progress=False)
        peer = LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
        config, params, report = read_gguf(path)
        assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (30, 9, 3)
        assert (config.rope_theta, config.rms_norm_eps, config.tie_word_embeddings) == (100000.0, 1e-5, True)
        assert len(report.loaded) == 272 and report.tied == {"lm_head.weight": "model.embed_tokens.weight"}
        theirs = {name: value.numpy() for name, value in peer.state_dict().items()}
        np.testing.assert_array_equal(theirs.pop("lm_head.weight"), params["model.embed_tokens.weight"])
        assert_same_arrays(params, theirs)


def save_folder(folder, config, params, dtype="F32", shards=None):
    """Write a folder by hand: config.json and one file, or several with their index."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config if isinstance(config, dict) else config.to_hf()))
    arrays = {name: value.astype({"F32": "f4", "F16": "f2", "F64": "f8"}[dtype]) for name, value in params.items()}
    if shards is None:
        save_file(arrays, folder / "model.safetensors", metadata={"format": "np"})
        return folder
    names = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(arrays)}
    for file in set(names.values()):
        save_file({name: arrays[name] for name in arrays if names[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


class TestSafetensors:
    def test_one_file_and_shards(self, tmp_path, params):
        for shards in (None, 3):
            folder = save_folder(tmp_path / f"shards {shards}", SMALL, params, shards=shards)
            config, got, report = read_safetensors(folder)
            assert config == SMALL
            assert_same_arrays(got, params)
            assert "12 tensors loaded (F32)" in str(report)

    def test_half_is_widened(self, tmp_path, params):
        folder = save_folder(tmp_path / "half", SMALL, params, dtype="F16")
        assert_same_arrays(read_safetensors(folder)[1], {n: w.astype("f2").astype("f4") for n, w in params.items()})

    @pytest.mark.parametrize("tied", [False, True])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_what_transformers_saves(self, tmp_path, tied, dtype):
        torch = pytest.importorskip("torch", reason=NO_TORCH)
        from transformers import LlamaConfig, LlamaForCausalLM

        fields = {**SMALL.to_hf(), "tie_word_embeddings": tied}
        peer = LlamaForCausalLM(LlamaConfig(**fields)).to(getattr(torch, dtype))
        peer.save_pretrained(tmp_path, max_shard_size="20KB" if tied else "1GB")
        assert (tmp_path / "model.safetensors").exists() != tied
        config, got, _ = read_safetensors(tmp_path)
        assert config == ck.models.Config.from_hf(fields)
        want = {n: w.float().numpy() for n, w in peer.state_dict().items() if not (tied and n == "lm_head.weight")}
        assert_same_arrays(got, want)

    def test_a_stored_copy_of_a_tied_head(self, tmp_path, params):
        tied = {**SMALL.to_hf(), "tie_word_embeddings": True}
        same = {**params, "lm_head.weight": params["model.embed_tokens.weight"]}
        config, got, report = read_safetensors(save_folder(tmp_path / "same", tied, same))
        assert "lm_head.weight" not in got and report.tied == {"lm_head.weight": "model.embed_tokens.weight"}
        with pytest.raises(ValueError, match="lm_head.weight differs from model.embed_tokens.weight"):
            read_safetensors(save_folder(tmp_path / "other", tied, params))

    def test_stored_rotary_tables_are_ignored(self, tmp_path, params):
        table = "model.layers.0.self_attn.rotary_emb.inv_freq"
        folder = save_folder(tmp_path / "old", SMALL, {**params, table: np.ones(4)})
        _, got, report = read_safetensors(folder)
        assert_same_arrays(got, params)
        assert report.ignored == (table,)

    def test_missing_left_over_shape(self, tmp_path, params):
        last = "model.norm.weight"
        for change, text in (
            ({last: None}, f"missing {last}"),
            ({"model.layers.1.mlp.up_proj.weight": np.ones((64, 32))}, "left over.*model.layers.1.mlp.up_proj.weight"),
            ({last: np.ones(31)}, rf"{last} has shape \(31,\), the config asks for \(32,\)"),
        ):
            changed = {name: value for name, value in {**params, **change}.items() if value is not None}
            with pytest.raises(ValueError, match=text):
                read_safetensors(save_folder(tmp_path / "changed", SMALL, changed))

    def test_unsupported_storage_type(self, tmp_path, params):
        with pytest.raises(ValueError, match="is stored as F64; supported: F32, F16, BF16"):
            read_safetensors(save_folder(tmp_path / "double", SMALL, params, dtype="F64"))

    def test_config_that_cannot_be_used(self, tmp_path, params):
        folder = save_folder(tmp_path / "config", SMALL, params)
        for text, reason in (
            ("", "no valid JSON"),
            ("[" * 100000, "no valid JSON"),
            ("[1]", "a JSON object was expected"),
            ('{"hidden_size": 1e400}', "hidden_size must be an integer"),
            (json.dumps({**SMALL.to_hf(), "num_hidden_layers": 2**31 - 1}), "missing model.layers.1"),
            ('{"model_type": "mamba"}', "model_type='mamba'"),
            ('{"rms_norm_eps": "small"}', "rms_norm_eps must be a number"),
        ):
            (folder / "config.json").write_text(text)
            with pytest.raises(ValueError, match=reason) as error:
                read_safetensors(folder)
            assert str(folder) in str(error.value)
        (folder / "config.json").unlink()
        with pytest.raises(FileNotFoundError, match="config.json"):
            read_safetensors(folder)

    def test_index_that_cannot_be_used(self, tmp_path, params):
        folder = save_folder(tmp_path / "index", SMALL, params, shards=2)
        index = folder / "model.safetensors.index.json"
        good = json.loads(index.read_text())["weight_map"]
        for table, kind, reason in (
            ({**good, "model.norm.weight": "../secret.safetensors"}, ValueError, "leaves the folder"),
            ({**good, "model.norm.weight": 3}, ValueError, "must map tensor names"),
            ({**good, "model.norm.weight": "absent.safetensors"}, FileNotFoundError, "absent.safetensors"),
            ({**good, "model.none.weight": good["model.norm.weight"]}, ValueError, "missing model.none.weight"),
            (None, ValueError, "must map tensor names"),
        ):
            index.write_text(json.dumps({"weight_map": table}))
            with pytest.raises(kind, match=reason):
                read_safetensors(folder)
        index.unlink()
        with pytest.raises(FileNotFoundError, match="neither model.safetensors nor"):
            read_safetensors(folder)

    def test_damaged_anywhere(self, tmp_path, params, rng):
        folder = save_folder(tmp_path / "damaged", SMALL, params)
        path = folder / "model.safetensors"
        whole = path.read_bytes()
        header = 8 + struct.unpack("<Q", whole[:8])[0]
        for size in {0, 7, 8, *range(0, len(whole), 997), len(whole) - 1}:
            path.write_bytes(whole[:size])
            with pytest.raises(SENTENCES, match="damaged"):
                read_safetensors(folder)
        refused = 0
        for at in range(header):
            damaged = bytearray(whole)
            damaged[at] ^= int(rng.integers(1, 256))
            path.write_bytes(damaged)
            refused += ends_in_a_sentence(read_safetensors, folder)
        assert refused > header // 2


class TestPackages:
    @pytest.mark.parametrize("package", ["gguf", "safetensors"])
    def test_a_missing_package_is_named(self, small, tmp_path, params, monkeypatch, package):
        folder = save_folder(tmp_path / "folder", SMALL, params)
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=rf"{package}.*pip install 'ckernels\[models\]'"):
            read_gguf(small) if package == "gguf" else read_safetensors(folder)

    def test_import_stays_light(self):
        code = (
            "import sys, ckernels, ckernels.io, ckernels.models\n"
            "print([m for m in ('torch', 'transformers', 'gguf', 'safetensors', 'tqdm') if m in sys.modules])"
        )
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert out == "[]\n"

    def test_parameter_shapes_are_those_of_transformers(self):
        pytest.importorskip("torch", reason=NO_TORCH)
        from transformers import LlamaConfig, LlamaForCausalLM

        for name, config in ck.models.configs.items():
            peer = LlamaForCausalLM(LlamaConfig(**config.to_hf())).state_dict()
            if config.tie_word_embeddings:
                del peer["lm_head.weight"]
            assert list(parameter_shapes(config)) == [(n, tuple(w.shape)) for n, w in peer.items()], name
