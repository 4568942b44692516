"""GPT-2's tokenizer: byte-pair encoding over bytes (Radford et al. 2019, section 2.2).

It comes with imported weights, and is read by the `tokenizers` package. GPT-2 has one
special token, <|endoftext|>, which is our EOS. It has no PAD, and a row added for one would
change every probability. But it has a token for each single byte, and some bytes occur in
no UTF-8 text: PAD is the token of the byte 0xFF, which no text is encoded to and which has
its row already. It is given the name <|pad|>, so that an exported model can be used on padded
batches. (PAD = EOS would do for us, because masks are carried beside the tokens, but not for
a sequence classifier of Hugging Face, which reads its score at the last token that is not PAD:
it would be that before EOS.)
"""

from __future__ import annotations

import functools
import hashlib
import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from instructjax.errors import TokenizerError

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
_NEVER_IN_TEXT = "\u00ff"  # how byte-level BPE writes the byte 0xFF
_PROBES = (
    "a\n b  \u00ff\u2581 <|endoftext|> ",
    "A \u00c9 e\u0301 \ufb01 \uff17",
    "\t\r\0 \U0001f98a",
)  # altered by what normalises
_NEXT = "a"  # a text of one token in every vocabulary, which is joined with no line break before it


class BytePairTokenizer:
    """Text to token ids and back; see `tokenizer.Tokenizer`.

    `decode(encode(text)) == text` holds for every text. GPT-2 joins white space with white space that
    follows it, and else splits it off, so the tokens of a prompt depend on what comes after it. That is why
    there is `encode_opening`: for every text a that ends with a line break, and b that begins with no white space,

        encode(a + b) == encode_opening(a) + encode(b)
    """

    def __init__(self, content: bytes):
        """Takes the content of a tokenizer.json in which PAD has its name; see `from_bytes` and `from_folder`."""
        self._content = content
        described = json.loads(content)
        ids = _ids(described)
        self._size = 1 + max(ids.values())
        self.eos_id = ids[END_OF_TEXT]
        self.pad_id = ids[PAD]
        # Without added tokens, the text "<|endoftext|>" is text: no text is encoded to EOS.
        plain = {**described, "added_tokens": [], "truncation": None, "padding": None, "post_processor": None}
        self._pairs = _package().Tokenizer.from_str(json.dumps(plain))

    @classmethod
    def from_bytes(cls, content: bytes, where: str = "tokenizer") -> BytePairTokenizer:
        """Reads a tokenizer.json, as others made it or `to_bytes` gave it.

        Raises:
          TokenizerError: it is no byte-level BPE with <|endoftext|>, or one that alters text.
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
        except Exception as error:  # of JSON of another form; the package raises this class itself
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
          TokenizerError: there are none, or they are no byte-level BPE.
        """
        folder = epath.Path(folder)
        whole, pairs = folder / "tokenizer.json", (folder / "vocab.json", folder / "merges.txt")
        if whole.is_file():
            return cls.from_bytes(whole.read_bytes(), str(whole))
        if not all(path.is_file() for path in pairs):
            raise TokenizerError(f"{folder}: expected tokenizer.json, or vocab.json and merges.txt, found neither")
        package = _package()
        _check_rows(_vocabulary(pairs[0]), str(pairs[0]))  # before the package makes room for each id up to the last
        try:
            built = package.Tokenizer(package.models.BPE.from_file(*map(str, pairs)))
        except Exception as error:  # the package raises this class itself
            reason = " ".join(str(error).split())[:200]
            raise TokenizerError(f"{folder}: expected vocab.json and merges.txt of a BPE, found {reason}") from None
        built.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
        built.decoder = package.decoders.ByteLevel()
        built.add_special_tokens([END_OF_TEXT])
        return cls.from_bytes(built.to_str().encode(), str(folder))

    def to_bytes(self) -> bytes:
        """The tokenizer.json with PAD, to be kept in a checkpoint."""
        return self._content

    def save(self, path: epath.PathLike) -> None:
        """Writes the tokenizer.json."""
        path = epath.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._content)

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, without EOS. The texts "<|endoftext|>" and "<|pad|>" are plain text."""
        return self._pairs.encode(text, add_special_tokens=False).ids

    def encode_opening(self, text: str) -> list[int]:
        """The token ids of a text that ends with a line break and goes on, with no white space first.

        Two line breaks before a word are two tokens, and one token at the end of a text.
        """
        if not text.endswith("\n"):
            return self.encode(text)
        return self.encode(f"{text}{_NEXT}")[:-1]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids (a list or a one-dimensional array). PAD and EOS give no text and end nothing.

        Bytes that are no UTF-8, as a sampled sequence may have, become U+FFFD.
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
    """Refuses a vocabulary without one of the tokens that every text needs, or whose ids are no rows of a table."""
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
    """A tokenizer.json in which the token of the byte 0xFF is the special token <|pad|>."""
    model = described["model"]
    name = {_NEVER_IN_TEXT: PAD}
    vocabulary = {name.get(token, token): number for token, number in model["vocab"].items()}
    pairs = [(pair, pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
    merges = [pair for pair, parts in pairs if _NEVER_IN_TEXT not in parts]  # that no text has a use for
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
