"""The tokenizer of a GGUF file: ids as transformers has them, any text back, and bad vocabularies refused."""

import pydoc_data.topics
import re

import pytest

pytest.importorskip("tokenizers", reason="the extra [models] is not installed")
pytest.importorskip("gguf", reason="the extra [models] is not installed")

from ckernels.io.fetch import fetch  # noqa: E402
from ckernels.io.tokenizer import Tokenizer, _byte_of_character  # noqa: E402


def small(**options):
    """All single bytes, two merges, two control tokens."""
    letters = list(_byte_of_character())
    tokens = ["<s>", "</s>", *letters, "ab", "Ġab"]
    kinds = [3, 3] + [1] * (len(tokens) - 2)
    return Tokenizer(tokens, ["a b", "Ġ ab"], kinds, **{"digits_apart": True, "bos": 0, "eos": 1} | options)


@pytest.fixture(scope="module")
def smollm2():
    return fetch("smollm2-135m", progress=False)


@pytest.mark.parametrize("text", ["", "ab ab", "naïve 日本語 🙂", "  12  x\n\t\r\x00", "a</s>b", "1234567890"])
def test_any_text_comes_back(text):
    tokenizer = small()
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text


def test_merges_in_order_of_rank():
    tokenizer = small()
    assert [tokenizer.tokens[i] for i in tokenizer.encode("ab ab")] == ["ab", "Ġab"]


def test_digits_apart():
    text = "a  12"
    for apart, expected in ((True, [b"a", b" ", b" ", b"1", b"2"]), (False, [b"a", b" ", b" 1", b"2"])):
        tokens = ["a", "Ġ", "1", "2", "Ġ1"]
        tokenizer = Tokenizer(tokens, ["Ġ 1"], [1] * 5, digits_apart=apart)
        assert [tokenizer.bytes_of(i) for i in tokenizer.encode(text)] == expected


def test_control_tokens():
    tokenizer = small(add_bos=True)
    ids = tokenizer.encode("ab</s>")
    assert ids[0] == tokenizer.bos and ids[-1] == tokenizer.eos
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.decode(ids, skip_special=False) == "<s>ab</s>"


def test_a_stream_holds_back_half_characters():
    tokenizer = small()
    stream = tokenizer.stream()
    pieces = [stream.add(i) for i in tokenizer.encode("é🙂")]
    assert pieces == ["", "é", "", "", "", "🙂"] and stream.rest() == ""
    stream = tokenizer.stream()
    assert stream.add(tokenizer.encode("é")[0]) == "" and stream.rest() == "\ufffd"


def test_ids_of_smollm2_are_those_of_transformers(smollm2):
    """On text without spaces before digits: there transformers' own conversion forgets that digits stand apart."""
    transformers = pytest.importorskip("transformers")
    other = transformers.AutoTokenizer.from_pretrained(str(smollm2.parent), gguf_file=smollm2.name)
    ours = Tokenizer.from_gguf(smollm2)
    text = "\n".join(pydoc_data.topics.topics[name] for name in ("assignment", "typesmapping", "formatstrings", "with"))
    lines = [line for line in text.splitlines(keepends=True) if not re.search(r"\s\s\d", line)]
    assert len(lines) > 300
    for line in [*lines, "<|im_start|>user\nnaïve 日本語 🙂<|im_end|>\n"]:
        assert ours.encode(line) == other(line).input_ids, line
        assert ours.decode(ours.encode(line), skip_special=False) == line
    assert (ours.bos, ours.eos, len(ours)) == (1, 2, 49152)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kinds": [1]}, "token types"),
        ({"tokens": ["a", "a"]}, "twice"),
        ({"merges": ["a c"]}, "'a c' does not join"),
        ({"merges": ["a b c"]}, "does not join"),
        ({"eos": 9}, "'eos' is 9"),
        ({"add_bos": True}, "'add_bos' needs 'bos'"),
    ],
)
def test_a_vocabulary_that_contradicts_itself(change, message):
    arguments = {"tokens": ["a", "b"], "merges": [], "kinds": [1, 1], "digits_apart": False} | change
    with pytest.raises(ValueError, match=message):
        Tokenizer(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "llama"}, "model is 'llama'; supported: 'gpt2'"),
        ({"tokenizer.ggml.pre": "qwen2"}, "pre is 'qwen2'; supported: gpt-2"),
        ({"tokenizer.ggml.tokens": None}, "tokens is missing"),
        ({"tokenizer.ggml.merges": [1]}, "merges is missing or holds"),
        ({"tokenizer.ggml.eos_token_id": "2"}, "eos_token_id is str, not int"),
    ],
)
def test_a_file_without_a_vocabulary_we_know(monkeypatch, change, message):
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": ["a", "b", "ab"],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.token_type": [1, 1, 1],
    } | change

    class File:
        metadata = {k: v for k, v in fields.items() if v is not None}

        def __init__(self, path):
            self.path = path

    monkeypatch.setattr("ckernels.io.tokenizer.GGUFFile", File)
    with pytest.raises(ValueError, match=f"some.gguf: .*{message}"):
        Tokenizer.from_gguf("some.gguf")


def test_a_token_outside_the_vocabulary():
    tokenizer = small()
    for token in (-1, len(tokenizer)):
        with pytest.raises(IndexError, match=f"token {token} is outside"):
            tokenizer.bytes_of(token)
