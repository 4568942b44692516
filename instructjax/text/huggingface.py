"""Tokenizers of other models: any tokenizer.json, read by the `tokenizers` package.

Text never becomes a special token. "<|im_end|>" in a record is encoded as plain text, and only a chat template writes
the token (`templates.py`). Tokens that were added to a vocabulary keep their ids. Those that are not special, such as
runs of spaces, are matched in text as their model has learned them.

Prompt and response are tokenized apart. For a byte-level BPE like GPT-2's this gives the tokens of one document if the
prompt ends with a line break and the response begins without white space; see `encode_followed`. For other tokenizers,
it may not: after a line break, some merge digits or spaces. The tokens of a response are those that a policy samples
and those that it is trained on, so nothing depends on it.

Some tokenizers do not give back every text: they normalize it, or drop a space at its start. `altered` shows an
example. Some have no token for a rare character, and leave it out; `lost` finds it, so that a record is not shortened.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from instructjax import files
from instructjax.errors import TokenizerError
from instructjax.text import special_tokens
from instructjax.text.special_tokens import SETTINGS

_PROBES = (
    "a\n b  \u00ff\u2581 <|endoftext|> ",
    "A \u00c9 e\u0301 \ufb01 \uff17",
    "\t\r\0 \U0001f98a",
    " a",
)  # texts that many tokenizers alter
_NEXT = "a"  # one token in nearly every vocabulary, never merged with a preceding line break
_NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}


class HuggingFaceTokenizer:
    """Text to token ids and back; see `tokenizer.Tokenizer`.

    `decode(encode(text)) == text` holds for a byte-level BPE with all bytes and without a normalizer, such as GPT-2's.
    How GPT-2 splits white space depends on what follows, so the tokens of a prompt depend on the text after it. That
    is why there is `encode_followed`: for every text a that ends with a line break, and every b that does not begin
    with white space,

        encode(a + b) == encode_followed(a) + encode(b)

    Attributes:
      eos_id: ends every document, and a response without a chat template.
      eos_ids: all tokens that end a response; the first is `eos_id`.
      pad_id: a special token that neither text nor the chat template reaches; see `special_tokens`.
      bos: what the tokenizer puts before a text: one token, or none.
      special: the special tokens by text, with the fields of tokenizer.json.
      chat_template: the jinja template of the model, or "".
      names: the texts of special tokens that a chat template may use, such as "bos_token".
    """

    def __init__(self, content: bytes):
        """Takes the content of a tokenizer.json with EOS and PAD; see `from_bytes` and `from_folder`."""
        self._content = content
        described = json.loads(content)
        settings = special_tokens.settings_of(described)
        ids = special_tokens.ids_of(described)
        self._size = 1 + max(ids.values())
        self.eos_ids = tuple(ids[name] for name in settings["eos"])
        self.eos_id = self.eos_ids[0]
        self.pad_id = ids[settings["pad"]]
        self.special = {token["content"]: token for token in described["added_tokens"] if token["special"]}
        self.chat_template: str = settings.get("chat_template", "")
        self.names = {"eos_token": settings["eos"][0], "pad_token": settings["pad"]}
        self.names |= {"bos_token": settings["bos"]} if "bos" in settings else {}
        described.pop(SETTINGS, None)
        self._encoder, self._inner = _encoder(described), _encoder(_without_first_space(described))
        first = self._encoder.encode("", add_special_tokens=True).ids
        self.bos = tuple(token for token in first[:1] if token not in self.eos_ids)
        self._lost_bytes = _lost_bytes(described)
        self._leaves_out = _leaves_out(described)

    @classmethod
    def from_bytes(
        cls, content: bytes, where: str = "tokenizer", given: Mapping[str, Any] | None = None
    ) -> HuggingFaceTokenizer:
        """Reads a tokenizer.json, written by other tools or by `to_bytes`.

        Args:
          content: of the file.
          where: the file, for errors.
          given: what other files say about special tokens; see `special_tokens.complete`.

        Raises:
          TokenizerError: it is not a tokenizer.json, it has no tokens for EOS and PAD, or text reaches them.
        """
        try:
            described = json.loads(content)
            completed = special_tokens.complete(described, given or {}, where)
            found = cls(content if completed == described else dump(completed))
            for name in {*found.names.values(), *special_tokens.settings_of(completed)["eos"]}:
                reached = {found.eos_id, found.pad_id, *found.eos_ids} & set(found.encode(f"a{name} a"))
                if reached:
                    raise TokenizerError(
                        f"{where}: expected a tokenizer in which no text is encoded to EOS or PAD, found {name!a:.60}"
                    )
                if found._encoder.token_to_id(name) != special_tokens.ids_of(completed)[name]:
                    raise TokenizerError(f"{where}: expected one id for {name!a:.60}, found two")
            for text in _PROBES:
                found.decode(found.encode(text))
        except TokenizerError:
            raise
        except BaseException as error:  # of any class, for JSON of another form; a panic is no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            reason = " ".join(repr(error).split())[:200]
            raise TokenizerError(f"{where}: expected a tokenizer.json, found {reason}") from None
        return found

    @classmethod
    def from_folder(cls, folder: epath.PathLike) -> HuggingFaceTokenizer:
        """Reads the tokenizer of a model's folder, with what its other files say about special tokens.

        It is in tokenizer.json, or else in vocab.json and merges.txt.

        Raises:
          TokenizerError: the files are missing, or are not a tokenizer; see `from_bytes`.
        """
        folder = epath.Path(folder)
        whole, pairs = folder / "tokenizer.json", (folder / "vocab.json", folder / "merges.txt")
        given = special_tokens.read_folder(folder)
        if whole.is_file():
            return cls.from_bytes(whole.read_bytes(), str(whole), given)
        if not all(path.is_file() for path in pairs):
            raise TokenizerError(f"{folder}: expected tokenizer.json, or vocab.json and merges.txt, found neither")
        tokenizers = package()
        special_tokens.check_ids(special_tokens.read_vocabulary(pairs[0]), str(pairs[0]))
        try:
            built = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(*map(str, pairs)))
        except Exception as error:  # the package itself raises Exception
            reason = " ".join(str(error).split())[:200]
            raise TokenizerError(f"{folder}: expected vocab.json and merges.txt of a BPE, found {reason}") from None
        built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        built.decoder = tokenizers.decoders.ByteLevel()
        built.add_special_tokens([special_tokens.END_OF_TEXT])
        return cls.from_bytes(built.to_str().encode(), str(folder), given)

    def to_bytes(self) -> bytes:
        """Returns the tokenizer.json with EOS, PAD and chat template, to be saved in a checkpoint."""
        return self._content

    def without_settings(self) -> bytes:
        """Returns the tokenizer.json as other tools read it, without what their other files say."""
        described = json.loads(self._content)
        return dump(described) if described.pop(SETTINGS, None) else self._content

    def save(self, path: epath.PathLike) -> None:
        """Writes what `to_bytes` returns."""
        path = epath.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, self._content)

    def encode(self, text: str) -> list[int]:
        """Encodes a text, without BOS and EOS. "<|endoftext|>" and the like are encoded as plain text."""
        return self._encoder.encode(text, add_special_tokens=False).ids

    def encode_opening(self, text: str) -> list[int]:
        """Encodes BOS, if there is one, and a text that another follows; see `encode_followed`."""
        return [*self.bos, *self.encode_followed(text)]

    def encode_followed(self, text: str) -> list[int]:
        """Encodes a text that ends with a line break and is followed by a text that begins without white space.

        For example, in GPT-2 two line breaks are two tokens before a word, and one token at the end of a text.
        """
        return self.encode_part(text, is_first=True, is_followed=True)

    def encode_part(self, text: str, *, is_first: bool, is_followed: bool) -> list[int]:
        """Encodes a part of a text between special tokens.

        Args:
          text: the part.
          is_first: whether no other tokens precede it. Some tokenizers put a space in front of a first part only.
          is_followed: whether an answer follows; see `encode_followed`.
        """
        encoder = self._encoder if is_first else self._inner
        if is_followed and text.endswith("\n"):
            found = encoder.encode(f"{text}{_NEXT}", add_special_tokens=False)
            if found.offsets and found.offsets[-1] == (len(text), len(text) + 1):
                return found.ids[:-1]
        return encoder.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes token ids (a list or a one-dimensional array). PAD, BOS and EOS are skipped, and do not end the text.

        Bytes that are not valid UTF-8, which a sampled sequence may contain, become U+FFFD.
        """
        nothing = {self.pad_id, *self.bos, *self.eos_ids}
        return self._encoder.decode([int(i) for i in ids if int(i) not in nothing], skip_special_tokens=False)

    def lost(self, text: str) -> str:
        """Returns the first character that `encode` leaves out because there is no token for it, or ""."""
        if self._lost_bytes:
            found = re.search(self._lost_bytes, data := text.encode("utf-8", "surrogatepass"))
            return text[len(data[: found.start()].decode("utf-8", "ignore"))] if found else ""
        if self._leaves_out:
            return next((char for char in dict.fromkeys(text) if not self.encode(char)), "")
        return ""

    @functools.cached_property
    def altered(self) -> tuple[str, str] | None:
        """A text and what it is decoded to after it was encoded, if they differ; None if no example is known."""
        pairs = ((text, self.decode(self.encode(text))) for text in _PROBES)
        return next((pair for pair in pairs if pair[0] != pair[1]), None)

    @property
    def vocab_size(self) -> int:
        """The number of token ids."""
        return self._size

    @functools.cached_property
    def fingerprint(self) -> str:
        """Sixteen characters that differ between different vocabularies: the start of a SHA-256."""
        return hashlib.sha256(self._content).hexdigest()[:16]


def _encoder(described: Mapping[str, Any]) -> Any:
    """Builds the package's tokenizer, for which special tokens in a text are text."""
    found = package().Tokenizer.from_str(
        json.dumps({**described, "truncation": None, "padding": None}, ensure_ascii=False)
    )
    found.encode_special_tokens = True
    return found


def _without_first_space(described: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a tokenizer.json without the space that some put in front of the first part of a text only."""
    splits = json.dumps(described.get("pre_tokenizer"), ensure_ascii=False)
    never = splits.replace('"prepend_scheme": "first"', '"prepend_scheme": "never"')
    return {**described, "pre_tokenizer": json.loads(never)}


def dump(described: Mapping[str, Any]) -> bytes:
    """Returns a tokenizer.json as bytes."""
    return json.dumps(described, ensure_ascii=False).encode()


def package() -> Any:
    """Imports the package `tokenizers`.

    Raises:
      TokenizerError: it is missing.
    """
    try:
        import tokenizers
    except ImportError:
        raise TokenizerError(
            "tokenizer: expected the package tokenizers to read tokenizer.json, found none; "
            "pip install 'instructjax[huggingface]'"
        ) from None
    return tokenizers


def _lost_bytes(described: Mapping[str, Any]) -> bytes:
    """Returns a pattern of the bytes of UTF-8 for which a byte-level BPE has no token; b"" if there are none."""
    if not _leaves_out(described) or "ByteLevel" not in json.dumps(described.get("decoder")):
        return b""
    vocabulary = described["model"]["vocab"]
    missing = [byte for byte, char in special_tokens.byte_symbols().items() if char not in vocabulary]
    found = sorted(set(missing) - _NEVER_IN_UTF8)
    return b"[" + re.escape(bytes(found)) + b"]" if found else b""


def _leaves_out(described: Mapping[str, Any]) -> bool:
    """Returns whether unknown characters become no token: a BPE without a token for them and without bytes."""
    model = described["model"]
    is_pairs = isinstance(model.get("merges"), list)
    return is_pairs and not model.get("unk_token") and not model.get("byte_fallback")
