"""Exports a tokenizer as files that Hugging Face's AutoTokenizer loads."""

from __future__ import annotations

import json

import sentencepiece

from instructjax.text.huggingface import HuggingFaceTokenizer
from instructjax.text.sentencepiece import PIECES, SentencePieceTokenizer
from instructjax.text.tokenizer import Tokenizer


def pretrained_files(tokenizer: Tokenizer, max_length: int) -> dict[str, bytes]:
    """Returns the files, by name, from which AutoTokenizer loads this tokenizer.

    Args:
      tokenizer: of either kind; for SentencePiece the model itself is included.
      max_length: the context length of the model, in tokens.
    """
    settings: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length}
    settings["clean_up_tokenization_spaces"] = False
    if isinstance(tokenizer, HuggingFaceTokenizer):
        files = {"tokenizer.json": tokenizer.without_settings()}
        settings |= tokenizer.names
        if tokenizer.chat_template:
            settings["chat_template"] = tokenizer.chat_template
    else:
        assert isinstance(tokenizer, SentencePieceTokenizer)
        files = {"tokenizer.json": tokenizer_json(tokenizer), PIECES: tokenizer.to_bytes()}
        settings |= {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return files | {"tokenizer_config.json": (json.dumps(settings, indent=2) + "\n").encode()}


def tokenizer_json(tokenizer: SentencePieceTokenizer) -> bytes:
    """Converts a SentencePiece model to a tokenizer.json that gives the same token ids and the same text.

    In BPE each piece comes from merging two pieces, and merges are applied best first.
    SentencePiece keeps a score for the result but not the two parts, so every split of a piece
    into two pieces becomes a merge of that rank. Text that no piece covers is encoded as bytes.

    Two things differ in the result: the texts "<pad>", "</s>" and "<unk>" become special
    tokens, and U+2581, SentencePiece's mark for a space, becomes a space.

    Raises:
      TokenizerError: see `SentencePieceTokenizer.check_merges`.
    """
    tokenizer.check_merges()
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.to_bytes())
    size = tokenizer.vocab_size
    vocab = {pieces.id_to_piece(i): i for i in range(size)}
    plain = [piece for piece, i in vocab.items() if not (pieces.is_control(i) or pieces.is_unknown(i))]
    plain = [piece for piece in plain if not pieces.is_byte(vocab[piece]) and piece != "\n"]
    merges = []
    for piece in sorted(plain, key=lambda piece: -pieces.get_score(vocab[piece])):
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                merges.append((left, right))
    special = [
        {
            "id": i,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": content != "\n",
        }
        for content, i in sorted(vocab.items(), key=lambda entry: entry[1])
        if pieces.is_control(i) or pieces.is_unknown(i) or content == "\n"
    ]
    described = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": pieces.id_to_piece(tokenizer.unk_id),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [list(pair) for pair in merges],
        },
    }
    return json.dumps(described, ensure_ascii=False).encode()
