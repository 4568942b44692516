"""What the package asks of a tokenizer, and how one is read whatever its kind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Protocol

from etils import epath

from instructjax.data import sentencepiece_json
from instructjax.data.byte_pairs import END_OF_TEXT, PAD, BytePairTokenizer
from instructjax.data.tokenizer import Tokenizer
from instructjax.errors import TokenizerError

_PIECES = "tokenizer.model"  # the usual name of a SentencePiece model in the folder of a model


class Vocabulary(Protocol):
    """Text to token ids and back: `Tokenizer` (SentencePiece) or `BytePairTokenizer` (GPT-2's).

    Attributes:
      pad_id: fills rows; no text is encoded to it, and it is not EOS. Masks are carried beside
        the tokens and never computed from this id.
      eos_id: ends every document and every response; no text is encoded to it.
    """

    pad_id: int
    eos_id: int

    @property
    def vocab_size(self) -> int:
        """The number of token ids."""

    @property
    def fingerprint(self) -> str:
        """Sixteen characters that differ between different vocabularies."""

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, without EOS."""

    def encode_opening(self, text: str) -> list[int]:
        """The token ids that a text has where another follows it: prompt and separator before a response."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, in which PAD and EOS are nothing."""

    def to_bytes(self) -> bytes:
        """The whole of it, for `from_bytes`."""

    def save(self, path: epath.PathLike) -> None:
        """Writes it to a file, for `load`."""


def load(path: epath.PathLike) -> Vocabulary:
    """Reads a SentencePiece model, or GPT-2's BPE.

    Args:
      path: a SentencePiece model; or a tokenizer.json; or a folder that holds tokenizer.model, or else
        tokenizer.json, or else vocab.json and merges.txt.

    Raises:
      TokenizerError: there is none, or it is of neither kind.
    """
    path = epath.Path(path)
    if path.is_dir() and (path / _PIECES).is_file():  # an exported model of ours, with its conversion beside it
        return Tokenizer.load(path / _PIECES)
    if path.is_dir():
        return BytePairTokenizer.from_folder(path)
    if not path.is_file():
        raise TokenizerError(f"{path}: expected a tokenizer, found no such file")
    return from_bytes(path.read_bytes(), str(path))


def pretrained_files(tokenizer: Vocabulary, max_length: int) -> dict[str, bytes]:
    """The files, by name, from which Hugging Face's AutoTokenizer makes this tokenizer.

    Args:
      tokenizer: of either kind; a SentencePiece model goes along as it is, too.
      max_length: the context of the model, tokens.
    """
    settings: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length}
    settings["clean_up_tokenization_spaces"] = False
    if isinstance(tokenizer, BytePairTokenizer):
        files = {"tokenizer.json": tokenizer.to_bytes()}
        settings |= {"eos_token": END_OF_TEXT, "pad_token": PAD}
    else:
        files = {"tokenizer.json": sentencepiece_json.convert(tokenizer), _PIECES: tokenizer.to_bytes()}
        settings |= {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return files | {"tokenizer_config.json": (json.dumps(settings, indent=2) + "\n").encode()}


def from_bytes(content: bytes, where: str = "tokenizer") -> Vocabulary:
    """Reads what `Vocabulary.to_bytes` gave.

    Raises:
      TokenizerError: it is no tokenizer of either kind.
    """
    kind = BytePairTokenizer if content.lstrip()[:1] == b"{" else Tokenizer  # JSON; a SentencePiece model is binary
    return kind.from_bytes(content, where)
