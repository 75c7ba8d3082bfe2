"""Text to token ids and back, with the vocabulary that a GGUF file carries.

Byte-level BPE as of GPT-2: bytes are written as printable characters, a regular expression cuts the text into words,
and merges join characters in the order of their rank. The ``tokenizers`` package applies the merges; which expression
cuts the words is named by ``tokenizer.ggml.pre`` in the file, and one that is not known here is refused, since a wrong
one gives ids that look right.
"""

import codecs
import os

from .gguf import GGUFFile

__all__ = ["Tokenizer"]

#: Values of tokenizer.ggml.pre, and whether digits are cut off one by one before the words are.
_DIGITS_APART = {"gpt-2": False, "smollm": True, "starcoder": True, "refact": True}
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4


def _byte_of_character():
    """Return {character: byte} of GPT-2's alphabet: printable bytes as they are, the others moved up from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


class Tokenizer:
    """A byte-level BPE vocabulary.

    Parameters
    ----------
    tokens : list of str
        Token i is spelled ``tokens[i]``, in GPT-2's alphabet.
    merges : list of str
        Pairs "a b", the first one the most urgent.
    kinds : list of int
        ggml's token types: 1 normal, 3 control, 4 user defined.
    digits_apart : bool
        Cut digits off one by one before the words.
    bos, eos : int or None
        Ids of the tokens that start and end a text.
    add_bos : bool
        Whether :meth:`encode` puts ``bos`` in front.

    Raises
    ------
    ImportError
        The ``tokenizers`` package is not installed.
    ValueError
        The vocabulary contradicts itself.
    """

    def __init__(self, tokens, merges, kinds, *, digits_apart, bos=None, eos=None, add_bos=False):
        try:
            import tokenizers
        except ImportError as error:
            raise ImportError("tokenizing needs the tokenizers package: pip install 'ckernels[models]'") from error
        if len(kinds) != len(tokens):
            raise ValueError(f"Tokenizer(): {len(tokens)} tokens but {len(kinds)} token types")
        for name, value in (("bos", bos), ("eos", eos)):
            if value is not None and not 0 <= value < len(tokens):
                raise ValueError(f"Tokenizer(): '{name}' is {value}, outside the {len(tokens)} tokens")
        if add_bos and bos is None:
            raise ValueError("Tokenizer(): 'add_bos' needs 'bos'")
        vocabulary = {token: i for i, token in enumerate(tokens)}
        if len(vocabulary) != len(tokens):
            raise ValueError(f"Tokenizer(): {len(tokens) - len(vocabulary)} tokens are there twice")
        pairs = [tuple(merge.split(" ")) for merge in merges]
        for pair in pairs:
            if (
                len(pair) != 2
                or pair[0] not in vocabulary
                or pair[1] not in vocabulary
                or "".join(pair) not in vocabulary
            ):
                raise ValueError(f"Tokenizer(): the merge {' '.join(pair)!r} does not join two tokens to a third")
        self.tokens, self.bos, self.eos, self._add_bos = tokens, bos, eos, add_bos
        self._special = {i for i, kind in enumerate(kinds) if kind == _CONTROL}
        self._added = self._special | {i for i, kind in enumerate(kinds) if kind == _USER_DEFINED}
        self._bytes = _byte_of_character()
        pre = tokenizers.pre_tokenizers
        cuts = [pre.Digits(individual_digits=True)] if digits_apart else []
        self._engine = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=pairs))
        self._engine.pre_tokenizer = pre.Sequence([*cuts, pre.ByteLevel(add_prefix_space=False)])
        self._engine.add_tokens(
            [
                tokenizers.AddedToken(tokens[i], special=i in self._special, normalized=False)
                for i in sorted(self._added)
            ]
        )

    @classmethod
    def from_gguf(cls, path):
        """Read the vocabulary of a GGUF file.

        Parameters
        ----------
        path : str or path-like
            The file.

        Raises
        ------
        ImportError
            The ``gguf`` or ``tokenizers`` package is not installed.
        OSError, EOFError
            The file cannot be opened, or ends too early.
        ValueError
            The file holds no vocabulary, one of another kind, or one that contradicts itself.
        """
        path = os.fspath(path)
        metadata = GGUFFile(path).metadata

        def field(name, kind, default=None):
            value = metadata.get(f"tokenizer.ggml.{name}", default)
            if value is not default and type(value) is not kind:
                raise ValueError(f"{path}: tokenizer.ggml.{name} is {type(value).__name__}, not {kind.__name__}")
            return value

        def strings(name):
            value = field(name, list)
            if value is None or not all(type(item) is str for item in value):
                raise ValueError(f"{path}: tokenizer.ggml.{name} is missing or holds what is no text")
            return value

        if field("model", str) != "gpt2":
            raise ValueError(f"{path}: tokenizer.ggml.model is {field('model', str)!r}; supported: 'gpt2'")
        pre = field("pre", str)
        if pre not in _DIGITS_APART:
            raise ValueError(f"{path}: tokenizer.ggml.pre is {pre!r}; supported: {', '.join(_DIGITS_APART)}")
        tokens = strings("tokens")
        try:
            return cls(
                tokens,
                strings("merges"),
                field("token_type", list, [_NORMAL] * len(tokens)),
                digits_apart=_DIGITS_APART[pre],
                bos=field("bos_token_id", int),
                eos=field("eos_token_id", int),
                add_bos=field("add_bos_token", bool, False),
            )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def __len__(self):
        return len(self.tokens)

    def encode(self, text):
        """Turn text into a list of ids. Control tokens may be written out, as in ``<|im_start|>``."""
        ids = self._engine.encode(text, add_special_tokens=False).ids
        return [self.bos, *ids] if self._add_bos else ids

    def bytes_of(self, token):
        """Return the bytes of one token; a control token has those of its name.

        Raises
        ------
        IndexError
            No such token.
        """
        if not 0 <= token < len(self.tokens):
            raise IndexError(f"bytes_of(): token {token} is outside the {len(self.tokens)} tokens")
        text = self.tokens[token]
        if token in self._added or any(ch not in self._bytes for ch in text):
            return text.encode()
        return bytes(self._bytes[ch] for ch in text)

    def decode(self, ids, *, skip_special=True):
        """Turn ids into text; bytes that are no UTF-8 become U+FFFD.

        Parameters
        ----------
        ids : iterable of int
            Token ids.
        skip_special : bool
            Leave control tokens out.
        """
        parts = (self.bytes_of(int(i)) for i in ids if not (skip_special and int(i) in self._special))
        return b"".join(parts).decode(errors="replace")

    def stream(self):
        """Return a decoder for tokens that arrive one at a time: a character may be cut in two by them."""
        return _Stream(self)


class _Stream:
    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token):
        """Return the text that is complete after this token."""
        return self._decoder.decode(self._tokenizer.bytes_of(token))

    def rest(self):
        """Return what is left at the end: U+FFFD for a broken character, or nothing."""
        return self._decoder.decode(b"", final=True)
