"""Reads a tokenizer of any supported format."""

from __future__ import annotations

from etils import epath

from instructjax import files, warning_log
from instructjax.errors import TokenizerError
from instructjax.text import gguf, huggingface
from instructjax.text.huggingface import HuggingFaceTokenizer
from instructjax.text.sentencepiece import PIECES, SentencePieceTokenizer
from instructjax.text.tokenizer import Tokenizer


def load(path: epath.PathLike) -> Tokenizer:
    """Reads a SentencePiece model that this package wrote, or the tokenizer of another model.

    If the tokenizer is known not to give back every text, a warning shows an example.

    Args:
      path: a SentencePiece model, a tokenizer.json, a GGUF file, or a folder. In a folder, tokenizer.json is read, or
        else vocab.json and merges.txt; a tokenizer.model that this package has exported comes first.

    Raises:
      TokenizerError: it is missing, or its format is not supported.
    """
    path = files.parse(path, "tokenizer.path", files.MODEL_SCHEMES)
    found = _load(path)
    if found.altered:
        warning_log.warn(f"{path}: not every text is given back: {found.altered[0]!a} becomes {found.altered[1]!a}")
    return found


def _load(path: epath.Path) -> Tokenizer:
    pieces = path / PIECES
    if pieces.is_file() and (SentencePieceTokenizer.has_our_ids(pieces) or not (path / "tokenizer.json").is_file()):
        return SentencePieceTokenizer.load(pieces)
    if path.is_dir():
        return HuggingFaceTokenizer.from_folder(path)
    if not path.is_file():
        raise TokenizerError(f"{path}: expected a tokenizer, found no such file")
    if path.suffix == gguf.SUFFIX:
        described, given = gguf.read(path)
        return HuggingFaceTokenizer.from_bytes(huggingface.dump(described), str(path), given)
    return from_bytes(path.read_bytes(), str(path))


def from_bytes(content: bytes, where: str = "tokenizer") -> Tokenizer:
    """Reads a tokenizer that `Tokenizer.to_bytes` returned.

    Raises:
      TokenizerError: the format is not supported.
    """
    is_json = content.lstrip()[:1] == b"{"  # a SentencePiece model is binary
    kind = HuggingFaceTokenizer if is_json else SentencePieceTokenizer
    return kind.from_bytes(content, where)
