"""Reads a tokenizer of any supported format."""

from __future__ import annotations

from etils import epath

from instructjax import files
from instructjax.errors import TokenizerError
from instructjax.text.byte_pairs import BytePairTokenizer
from instructjax.text.sentencepiece import PIECES, SentencePieceTokenizer
from instructjax.text.tokenizer import Tokenizer


def load(path: epath.PathLike) -> Tokenizer:
    """Reads a SentencePiece model, or GPT-2's BPE.

    Args:
      path: a SentencePiece model, a tokenizer.json, or a folder. In a folder, tokenizer.model is read, or else
        tokenizer.json, or else vocab.json and merges.txt.

    Raises:
      TokenizerError: it is missing, or its format is not supported.
    """
    path = files.parse(path, "tokenizer.path")
    if path.is_dir() and (path / PIECES).is_file():  # a model that we exported, next to its conversion
        return SentencePieceTokenizer.load(path / PIECES)
    if path.is_dir():
        return BytePairTokenizer.from_folder(path)
    if not path.is_file():
        raise TokenizerError(f"{path}: expected a tokenizer, found no such file")
    return from_bytes(path.read_bytes(), str(path))


def from_bytes(content: bytes, where: str = "tokenizer") -> Tokenizer:
    """Reads a tokenizer that `Tokenizer.to_bytes` returned.

    Raises:
      TokenizerError: the format is not supported.
    """
    is_json = content.lstrip()[:1] == b"{"  # a SentencePiece model is binary
    kind = BytePairTokenizer if is_json else SentencePieceTokenizer
    return kind.from_bytes(content, where)
