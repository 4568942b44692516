"""Reads a tokenizer of any supported format, and writes one for Hugging Face."""

from __future__ import annotations

import json

from etils import epath

from instructjax.errors import TokenizerError
from instructjax.text import sentencepiece_json
from instructjax.text.byte_pairs import END_OF_TEXT, PAD, BytePairTokenizer
from instructjax.text.sentencepiece import SentencePieceTokenizer
from instructjax.text.tokenizer import Tokenizer

_PIECES = "tokenizer.model"  # the usual name of a SentencePiece model in the folder of a model


def load(path: epath.PathLike) -> Tokenizer:
    """Reads a SentencePiece model, or GPT-2's BPE.

    Args:
      path: a SentencePiece model; or a tokenizer.json; or a folder that holds tokenizer.model, or else
        tokenizer.json, or else vocab.json and merges.txt.

    Raises:
      TokenizerError: there is none, or it is of neither kind.
    """
    path = epath.Path(path)
    if path.is_dir() and (path / _PIECES).is_file():  # an exported model of ours, with its conversion beside it
        return SentencePieceTokenizer.load(path / _PIECES)
    if path.is_dir():
        return BytePairTokenizer.from_folder(path)
    if not path.is_file():
        raise TokenizerError(f"{path}: expected a tokenizer, found no such file")
    return from_bytes(path.read_bytes(), str(path))


def pretrained_files(tokenizer: Tokenizer, max_length: int) -> dict[str, bytes]:
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
        assert isinstance(tokenizer, SentencePieceTokenizer)
        files = {"tokenizer.json": sentencepiece_json.convert(tokenizer), _PIECES: tokenizer.to_bytes()}
        settings |= {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return files | {"tokenizer_config.json": (json.dumps(settings, indent=2) + "\n").encode()}


def from_bytes(content: bytes, where: str = "tokenizer") -> Tokenizer:
    """Reads what `Tokenizer.to_bytes` gave.

    Raises:
      TokenizerError: it is no tokenizer of either kind.
    """
    is_json = content.lstrip()[:1] == b"{"  # a SentencePiece model is binary
    kind = BytePairTokenizer if is_json else SentencePieceTokenizer
    return kind.from_bytes(content, where)
