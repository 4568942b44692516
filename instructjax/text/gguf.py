"""Rebuilds the tokenizer of a GGUF file as a tokenizer.json, and describes a tokenizer for one.

The file has tokens, their kinds, merges, special ids and the chat template, and names how text is split before it is
merged. What a name stands for is known to programs only; those of the table below are.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import sentencepiece
from etils import epath

from instructjax.errors import TokenizerError
from instructjax.text import special_tokens
from instructjax.text.huggingface import HuggingFaceTokenizer
from instructjax.text.sentencepiece import SentencePieceTokenizer
from instructjax.text.special_tokens import FLAGS
from instructjax.text.tokenizer import Tokenizer

SUFFIX = ".gguf"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # kinds of tokens
_ENDS = ("eos", "eot", "eom")  # the ids of tokens that end a response

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_GPT2 = [{**_BYTES, "use_regex": True}]
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(digits: str) -> list[dict[str, Any]]:
    pattern = {"Regex": _LETTERS + digits + _REST}
    by_pattern = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return [by_pattern, {**_BYTES, "use_regex": False}]


# How text is split, by tokenizer.ggml.pre: pre-tokenizers, normalizer, and whether a whole word skips merges.
_SPLITS: Mapping[str, tuple[list[dict[str, Any]], dict[str, str] | None, bool]] = {
    "gpt-2": (_GPT2, None, False),
    "smollm": ([{"type": "Digits", "individual_digits": True}, *_GPT2], None, False),
    "llama-bpe": (_split(r"\p{N}{1,3}"), None, True),
    "qwen2": (_split(r"\p{N}"), {"type": "NFC"}, False),
}


def read(path: epath.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads the tokenizer of a GGUF file.

    Returns:
      A tokenizer.json, and what `special_tokens.complete` is given.

    Raises:
      TokenizerError: the file is damaged, or its tokenizer is of a kind that is not in the table.
    """
    found = _fields(path)
    kind, split = found.get("model"), str(found.get("pre"))
    if kind != "gpt2" or split not in _SPLITS:
        raise TokenizerError(
            f"{path}: tokenizer.ggml.pre: expected one of {', '.join(_SPLITS)} of a gpt2, found "
            f"{reprlib.repr(split)} of a {reprlib.repr(kind)}; set tokenizer.path to the model's tokenizer.json"
        )
    splits, normalizer, ignores_merges = _SPLITS[split]
    tokens, merges = found.get("tokens"), found.get("merges")
    kinds = found.get("token_type") or [_NORMAL] * len(tokens or ())
    if not tokens or merges is None or len(kinds) != len(tokens):
        raise TokenizerError(f"{path}: tokenizer.ggml.tokens: expected tokens, their kinds and merges, found others")
    added = [
        {"id": number, "content": token, **FLAGS, "special": kind == _CONTROL}
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    described = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits},
        "post_processor": _beginning(found, tokens),
        "decoder": {**_BYTES, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignores_merges,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": merges,
        },
    }
    given: dict[str, Any] = {}
    if (eos := found.get("eos_token_id")) is not None:
        given["eos"] = [eos]
    for ours, theirs in (("bos", "bos_token_id"), ("pad", "padding_token_id")):
        if 0 <= found.get(theirs, -1) < len(tokens):
            given[ours] = tokens[found[theirs]]
    if template := found.get("chat_template"):
        given["chat_template"] = template
    return described, given


def metadata_of(tokenizer: Tokenizer, eos_ids: Sequence[int], chat_template: str) -> dict[str, Any]:
    """Describes a tokenizer as metadata of a GGUF file.

    Args:
      tokenizer: SentencePiece, or a byte-level BPE that splits text in one of the ways of the table.
      eos_ids: of the tokens that end a response, first the one that responses are trained with.
      chat_template: in jinja.

    Returns:
      The values by full name.

    Raises:
      TokenizerError: the tokenizer is of another kind, or a response has more than three ends.
    """
    found = _pieces(tokenizer) if isinstance(tokenizer, SentencePieceTokenizer) else _byte_pairs(tokenizer)
    if len(eos_ids) > len(_ENDS):
        raise TokenizerError(f"tokenizer: expected at most {len(_ENDS)} EOS for GGUF, found {len(eos_ids)}")
    found |= {f"{name}_token_id": number for name, number in zip(_ENDS, eos_ids, strict=False)}
    found |= {
        "bos_token_id": tokenizer.bos[0] if tokenizer.bos else tokenizer.eos_id,
        "padding_token_id": tokenizer.pad_id,
        "add_bos_token": bool(tokenizer.bos),
        "add_eos_token": False,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in found.items()} | {
        "tokenizer.chat_template": chat_template
    }


def _pieces(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """Describes a SentencePiece BPE: merges are applied by the scores of pieces."""
    tokenizer.check_merges()
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.to_bytes())
    ids = range(tokenizer.vocab_size)

    def kind(number: int) -> int:
        if pieces.is_byte(number):
            return _BYTE
        if pieces.is_control(number) or pieces.is_unknown(number):
            return _CONTROL if pieces.is_control(number) else _UNKNOWN
        return _USER_DEFINED if pieces.id_to_piece(number) == "\n" else _NORMAL

    return {
        "model": "llama",
        "pre": "default",
        "tokens": [pieces.id_to_piece(number) for number in ids],
        "scores": [float(pieces.get_score(number)) for number in ids],
        "token_type": [kind(number) for number in ids],
        "unknown_token_id": tokenizer.unk_id,
        "add_space_prefix": False,
        "remove_extra_whitespaces": False,
    }


def _byte_pairs(tokenizer: Tokenizer) -> dict[str, Any]:
    """Describes a byte-level BPE.

    Raises:
      TokenizerError: see `metadata_of`.
    """
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    described = json.loads(tokenizer.to_bytes())
    model, splits = described["model"], described.get("pre_tokenizer") or {}
    splits = [_essential(one) for one in splits.get("pretokenizers", [splits])]
    normalizer = (described.get("normalizer") or {}).get("type")
    way = (model.get("type"), splits, normalizer, model.get("ignore_merges", False))
    ways = {
        name: ("BPE", [_essential(one) for one in known], (normal or {}).get("type"), ignores)
        for name, (known, normal, ignores) in _SPLITS.items()
    }
    name = next((name for name, known in ways.items() if known == way), None)
    if name is None:
        raise TokenizerError(
            f"tokenizer: expected one that splits text like {', '.join(_SPLITS)}, for GGUF, found {reprlib.repr(way)}"
        )
    added = {token["id"]: token for token in described["added_tokens"]}
    tokens = {number: text for text, number in special_tokens.ids_of(described).items()}
    kinds = {number: _CONTROL if token["special"] else _USER_DEFINED for number, token in added.items()}
    return {
        "model": "gpt2",
        "pre": name,
        "tokens": [tokens.get(number, f"[PAD{number}]") for number in range(tokenizer.vocab_size)],
        "token_type": [
            kinds.get(number, _NORMAL if number in tokens else _UNUSED) for number in range(tokenizer.vocab_size)
        ],
        "merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]],
    }


def _essential(split: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what decides how a pre-tokenizer splits text."""
    defaults = {"use_regex": True, "individual_digits": False, "invert": False}
    return {**defaults, **{key: value for key, value in split.items() if key != "trim_offsets"}}


def _beginning(found: Mapping[str, Any], tokens: list[str]) -> dict[str, Any] | None:
    """Returns the processor that puts BOS before a text, if the model has one there."""
    number = found.get("bos_token_id", -1)
    if not found.get("add_bos_token") or not 0 <= number < len(tokens):
        return None
    bos, text = tokens[number], {"Sequence": {"id": "A", "type_id": 0}}
    begin = {"SpecialToken": {"id": bos, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [number], "tokens": [bos]}},
    }


def _fields(path: epath.Path) -> dict[str, Any]:
    """Returns the metadata of the tokenizer, by names without their common beginning."""
    try:
        import gguf
    except ImportError:
        raise TokenizerError(
            "tokenizer: expected the package gguf for GGUF files, found none; pip install 'instructjax[gguf]'"
        ) from None
    names = ["model", "pre", "tokens", "token_type", "merges", "add_bos_token"]
    names += ["bos_token_id", "eos_token_id", "padding_token_id"]
    full = {f"tokenizer.ggml.{name}": name for name in names} | {"tokenizer.chat_template": "chat_template"}
    try:
        fields = gguf.GGUFReader(path).fields
        return {name: fields[theirs].contents() for theirs, name in full.items() if theirs in fields}
    except Exception as error:  # of any class, for damaged files
        raise TokenizerError(f"{path}: expected a GGUF file, found {' '.join(str(error).split())[:200]}") from None
