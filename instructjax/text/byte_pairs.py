"""GPT-2's tokenizer: byte-pair encoding over bytes (Radford et al. 2019, section 2.2).

It comes with imported weights and is read by the `tokenizers` package. GPT-2 has one special
token, <|endoftext|>, which is our EOS. It has no PAD, and adding a row for one would change
every probability. But it has a token for every single byte, and some bytes never occur in
UTF-8 text. So PAD is the token of the byte 0xFF, which already has a row. It is named <|pad|>,
so that an exported model can be used on padded batches.

PAD = EOS would work for this package, because masks are carried next to the tokens. It would
not work for a sequence classifier of Hugging Face, which reads its score at the last token
that is not PAD: that would be the token before EOS.
"""

from __future__ import annotations

import functools
import hashlib
import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from instructjax import files
from instructjax.errors import TokenizerError

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
_NEVER_IN_TEXT = "\u00ff"  # byte-level BPE's symbol for the byte 0xFF
_PROBES = (
    "a\n b  \u00ff\u2581 <|endoftext|> ",
    "A \u00c9 e\u0301 \ufb01 \uff17",
    "\t\r\0 \U0001f98a",
)  # texts that a normalizer would alter
_NEXT = "a"  # one token in every vocabulary, never merged with a preceding line break


class BytePairTokenizer:
    """Text to token ids and back; see `tokenizer.Tokenizer`.

    `decode(encode(text)) == text` holds for every text. How GPT-2 splits white space depends on what follows, so
    the tokens of a prompt depend on the text after it. That is why there is `encode_opening`: for every text a that
    ends with a line break, and every b that does not begin with white space,

        encode(a + b) == encode_opening(a) + encode(b)
    """

    def __init__(self, content: bytes):
        """Takes the content of a tokenizer.json that names PAD; see `from_bytes` and `from_folder`."""
        self._content = content
        described = json.loads(content)
        ids = _ids(described)
        self._size = 1 + max(ids.values())
        self.eos_id = ids[END_OF_TEXT]
        self.pad_id = ids[PAD]
        # Without added tokens, "<|endoftext|>" is ordinary text, so no text is encoded to EOS.
        plain = {**described, "added_tokens": [], "truncation": None, "padding": None, "post_processor": None}
        self._pairs = _package().Tokenizer.from_str(json.dumps(plain))

    @classmethod
    def from_bytes(cls, content: bytes, where: str = "tokenizer") -> BytePairTokenizer:
        """Reads a tokenizer.json, written by other tools or by `to_bytes`.

        Raises:
          TokenizerError: it is not a byte-level BPE with <|endoftext|>, or it alters text.
        """
        try:
            described = json.loads(content)
            kinds = described["model"]["type"], (described.get("decoder") or {}).get("type")
            if kinds != ("BPE", "ByteLevel"):
                shown = "model {:.20} with decoder {:.20}".format(*map(str, kinds))
                raise TokenizerError(f"{where}: expected a byte-level BPE, found {shown}")
            ids = _ids(described)
            _check_ids(ids, where)
            found = cls(content if PAD in ids else json.dumps(_with_pad(described), ensure_ascii=False).encode())
        except TokenizerError:
            raise
        except Exception as error:  # for JSON of another form; the package itself raises Exception
            reason = " ".join(repr(error).split())[:200]
            raise TokenizerError(f"{where}: expected a tokenizer.json of a byte-level BPE, found {reason}") from None
        for text in _PROBES:
            if text != found.decode(found.encode(text)):
                raise TokenizerError(
                    f"{where}: expected a BPE that gives back every text, found one that alters {text!a}"
                )
        return found

    @classmethod
    def from_folder(cls, folder: epath.PathLike) -> BytePairTokenizer:
        """Reads tokenizer.json, or else vocab.json and merges.txt, from the folder of a model.

        Raises:
          TokenizerError: the files are missing, or are not a byte-level BPE.
        """
        folder = epath.Path(folder)
        whole, pairs = folder / "tokenizer.json", (folder / "vocab.json", folder / "merges.txt")
        if whole.is_file():
            return cls.from_bytes(whole.read_bytes(), str(whole))
        if not all(path.is_file() for path in pairs):
            raise TokenizerError(f"{folder}: expected tokenizer.json, or vocab.json and merges.txt, found neither")
        package = _package()
        _check_rows(_vocabulary(pairs[0]), str(pairs[0]))  # before the package allocates room for all ids
        try:
            built = package.Tokenizer(package.models.BPE.from_file(*map(str, pairs)))
        except Exception as error:  # the package itself raises Exception
            reason = " ".join(str(error).split())[:200]
            raise TokenizerError(f"{folder}: expected vocab.json and merges.txt of a BPE, found {reason}") from None
        built.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
        built.decoder = package.decoders.ByteLevel()
        built.add_special_tokens([END_OF_TEXT])
        return cls.from_bytes(built.to_str().encode(), str(folder))

    def to_bytes(self) -> bytes:
        """Returns the tokenizer.json with PAD, to be saved in a checkpoint."""
        return self._content

    def save(self, path: epath.PathLike) -> None:
        """Writes the tokenizer.json."""
        path = epath.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, self._content)

    def encode(self, text: str) -> list[int]:
        """Encodes a text, without EOS. "<|endoftext|>" and "<|pad|>" are encoded as plain text."""
        return self._pairs.encode(text, add_special_tokens=False).ids

    def encode_opening(self, text: str) -> list[int]:
        """Encodes a text that ends with a line break and is followed by a text that begins without white space.

        For example, two line breaks are two tokens before a word, and one token at the end of a text.
        """
        if not text.endswith("\n"):
            return self.encode(text)
        return self.encode(f"{text}{_NEXT}")[:-1]

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes token ids (a list or a one-dimensional array). PAD and EOS are skipped, and do not end the text.

        Bytes that are not valid UTF-8, which a sampled sequence may contain, become U+FFFD.
        """
        nothing = (self.pad_id, self.eos_id)
        return self._pairs.decode([int(i) for i in ids if int(i) not in nothing], skip_special_tokens=False)

    @property
    def vocab_size(self) -> int:
        """The number of token ids."""
        return self._size

    @functools.cached_property
    def fingerprint(self) -> str:
        """Sixteen characters that differ between different vocabularies: the start of a SHA-256."""
        return hashlib.sha256(self._content).hexdigest()[:16]


def _ids(described: Mapping[str, Any]) -> dict[str, int]:
    return described["model"]["vocab"] | {token["content"]: token["id"] for token in described["added_tokens"]}


def _check_ids(ids: Mapping[str, int], where: str) -> None:
    """Raises an error if a vocabulary lacks EOS or a byte, or if its ids are not 0 to n - 1."""
    needed = {END_OF_TEXT, *_package().pre_tokenizers.ByteLevel.alphabet()}
    if PAD in ids:
        needed.remove(_NEVER_IN_TEXT)
    if missing := sorted(needed - ids.keys()):
        raise TokenizerError(
            f"{where}: expected a vocabulary with {END_OF_TEXT} and all bytes, found none of {reprlib.repr(missing)}"
        )
    _check_rows(ids, where)


def _check_rows(ids: Mapping[str, int], where: str) -> None:
    if sorted(ids.values()) != list(range(len(ids))):
        raise TokenizerError(f"{where}: expected {len(ids)} tokens with the ids from 0, each once, found others")


def _vocabulary(path: epath.Path) -> dict[str, int]:
    """Reads a vocab.json."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: expected JSON, found {error}") from None
    if not isinstance(found, dict) or not all(type(number) is int for number in found.values()):
        raise TokenizerError(f"{path}: expected the id of each token, found {reprlib.repr(found)}")
    return found


def _with_pad(described: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a tokenizer.json in which the token of the byte 0xFF is the special token <|pad|>."""
    model = described["model"]
    name = {_NEVER_IN_TEXT: PAD}
    vocabulary = {name.get(token, token): number for token, number in model["vocab"].items()}
    pairs = [(pair, pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
    merges = [pair for pair, parts in pairs if _NEVER_IN_TEXT not in parts]  # no text uses the others
    pad = {"id": vocabulary[PAD], "content": PAD, "special": True, "normalized": False}
    pad |= {"single_word": False, "lstrip": False, "rstrip": False}
    return {
        **described,
        "added_tokens": sorted([*described["added_tokens"], pad], key=lambda token: token["id"]),
        "model": {**model, "vocab": vocabulary, "merges": merges},
    }


def _package() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise TokenizerError(
            "tokenizer: expected the package tokenizers to read a BPE, found none; "
            "pip install 'instructjax[huggingface]'"
        ) from None
    return tokenizers
