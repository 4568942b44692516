"""A SentencePiece model of ours as a tokenizer.json, for programs that know only that format."""

from __future__ import annotations

import json

import sentencepiece

from instructjax.text.sentencepiece import SentencePieceTokenizer


def convert(tokenizer: SentencePieceTokenizer) -> bytes:
    """The tokenizer.json that gives the same token ids and the same text.

    A piece of BPE was made by one merge of two pieces, and merges are applied best first;
    SentencePiece keeps a score for the result and not the two, so every split of a piece into
    two pieces becomes a merge of that rank. Bytes stand for what no piece covers.

    Two things differ: the texts "<pad>", "</s>" and "<unk>" are those tokens there, and
    text here; and the mark that SentencePiece writes for a space, U+2581, is a space there.
    """
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
