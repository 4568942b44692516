"""Rebuilds the tokenizer of a GGUF file as a tokenizer.json.

The file has tokens, their kinds, merges, special ids and the chat template, and names how text is split before it is
merged. What a name stands for is known to programs only; those of the table below are.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from etils import epath

from instructjax.errors import TokenizerError
from instructjax.text.special_tokens import FLAGS

SUFFIX = ".gguf"
_CONTROL, _USER_DEFINED, _NORMAL = 3, 4, 1  # kinds of tokens

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
            "tokenizer: expected the package gguf to read GGUF files, found none; pip install 'instructjax[gguf]'"
        ) from None
    names = ["model", "pre", "tokens", "token_type", "merges", "add_bos_token"]
    names += ["bos_token_id", "eos_token_id", "padding_token_id"]
    full = {f"tokenizer.ggml.{name}": name for name in names} | {"tokenizer.chat_template": "chat_template"}
    try:
        fields = gguf.GGUFReader(path).fields
        return {name: fields[theirs].contents() for theirs, name in full.items() if theirs in fields}
    except Exception as error:  # of any class, for damaged files
        raise TokenizerError(f"{path}: expected a GGUF file, found {' '.join(str(error).split())[:200]}") from None
