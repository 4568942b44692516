"""EOS, BOS and PAD of a tokenizer.json, which does not say what they are.

What a model ends with is written in other files of its folder: `eos_token` of tokenizer_config.json, and `eos_token_id`
of generation_config.json and config.json, which may be a list. A tokenizer.json alone has the usual names below. A
model whose chat template writes its EOS ends turns with it; its documents end with another token, such as
<|endoftext|>, if it has one. That one comes first, and a response may end with either.

PAD must be a token that no text reaches, and not EOS, because the tokens between a prompt and its padding may be EOS
too. The first that there is:

    the model's pad_token, if it is neither an EOS nor written by the chat template
    a special token with a usual name of PAD
    the special token with the largest id that is none of EOS, BOS, unknown, or written by the chat template
    the token of the byte 0xFF, which never occurs in UTF-8 text

GPT-2 has one special token, <|endoftext|>, so its PAD is the byte's token, renamed to <|pad|>. No row is added to the
embedding, which would change every probability. Hugging Face's sequence classifiers read their score at the last token
that is not PAD: with PAD = EOS, that would be the token before EOS.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from instructjax.errors import TokenizerError

SETTINGS = "instructjax"  # the key of a tokenizer.json that we write which has what other files say
END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
_DOCUMENT_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")
_ENDS = (*_DOCUMENT_ENDS, "<|im_end|>", "<|eot_id|>", "[SEP]")
_PADS = (PAD, "<pad>", "[PAD]", "<|padding|>", "<|finetune_right_pad_id|>")
_NEVER_IN_TEXT = "\u00ff"  # byte-level BPE's symbol for the byte 0xFF
_NEVER_IN_BYTES = "<0xFF>"  # the same of a BPE that falls back to bytes
FLAGS: Mapping[str, bool] = {
    "special": True,
    "normalized": False,
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
}


def settings_of(described: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a complete tokenizer.json: "eos" (texts), "pad", and "bos", "chat_template" if given."""
    special = {token["content"] for token in described["added_tokens"] if token["special"]}
    eos = [name for name in _ENDS if name in special][:1]
    usual = {"eos": eos, "pad": next((name for name in _PADS if name in special), None)}
    return usual | described.get(SETTINGS, {})


def complete(described: Mapping[str, Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns a tokenizer.json in which EOS and PAD are known and special.

    Args:
      described: a tokenizer.json.
      given: what other files say: "eos" (a list of texts and ids, the first ends documents), "bos", "pad" (texts),
        "chat_template".
      where: the file, for errors.

    Raises:
      TokenizerError: the ids are no numbering of tokens, or there is no token for EOS or PAD.
    """
    ids = ids_of(described)
    check_ids(ids, where)
    settings: dict[str, Any] = {**described.get(SETTINGS, {}), **given}
    ends = settings.get("eos") or settings_of(described)["eos"] or [name for name in _ENDS if name in ids][:1]
    texts = {number: text for text, number in ids.items()}
    for end in ends:
        if end not in (ids if isinstance(end, str) else texts):
            raise TokenizerError(f"{where}: expected the token {end!r:.60}, which is EOS elsewhere, found none")
    if not ends:
        raise TokenizerError(f"{where}: expected a token for EOS, such as {', '.join(_DOCUMENT_ENDS)}, found none")
    settings["eos"] = list(dict.fromkeys(texts[end] if isinstance(end, int) else end for end in ends))
    settings["eos"] = _with_document_end(settings["eos"], described, settings.get("chat_template", ""))
    if settings.get("bos") not in ids or settings["bos"] == settings["eos"][0]:  # GPT-2 has both in one
        settings.pop("bos", None)
    found = _with_special(described, settings["eos"])
    settings["pad"] = _pad(found, settings)
    if settings["pad"] is None and _NEVER_IN_TEXT in ids and _is_byte_level(found):
        found, settings["pad"] = _with_pad(found), PAD
    elif settings["pad"] is None and _NEVER_IN_BYTES in ids and found["model"].get("byte_fallback"):
        found, settings["pad"] = _with_special(found, [_NEVER_IN_BYTES]), _NEVER_IN_BYTES
    if settings["pad"] is None:
        raise TokenizerError(f"{where}: expected a special token for PAD that is not EOS, found none")
    plain = {name: value for name, value in found.items() if name != SETTINGS}
    usual = settings_of(plain)
    kept = {name: settings[name] for name in sorted(settings) if settings[name] != usual.get(name)}
    return {**plain, SETTINGS: kept} if kept else plain


def read_folder(folder: epath.Path) -> dict[str, Any]:
    """Reads what the files of a model's folder say about special tokens; see `complete`.

    Raises:
      TokenizerError: a file does not hold a JSON object, or a value is not of the right form.
    """
    names = ("tokenizer_config.json", "generation_config.json", "config.json")
    config, *others = (_json(folder / name) for name in names)
    found = {}
    for ours, theirs in (("bos", "bos_token"), ("pad", "pad_token"), ("eos", "eos_token")):
        value = config.get(theirs)
        text = value.get("content") if isinstance(value, dict) else value
        if text is not None and not isinstance(text, str):
            raise TokenizerError(f"{folder / names[0]}: {theirs}: expected text, found {reprlib.repr(value)}")
        if text is not None:
            found[ours] = text
    ends: list[str | int] = [found.pop("eos")] if "eos" in found else []
    for name, described in zip(names[1:], others, strict=True):
        value = described.get("eos_token_id")
        given = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(end, int | str) and not isinstance(end, bool) for end in given):
            raise TokenizerError(
                f"{folder / name}: eos_token_id: expected an id or a list of ids, found {reprlib.repr(value)}"
            )
        ends += given
    template = _template(folder, config)
    return {**found, **({"eos": ends} if ends else {}), **({"chat_template": template} if template else {})}


def _template(folder: epath.Path, config: Mapping[str, Any]) -> str:
    """Returns the chat template of a folder, or ""."""
    if (path := folder / "chat_template.jinja").is_file():
        return path.read_bytes().decode("utf-8", "replace")
    given = config.get("chat_template") or ""
    if isinstance(given, list):  # several by name
        entries = (entry for entry in given if isinstance(entry, dict))
        given = next((entry.get("template") for entry in entries if entry.get("name") == "default"), "")
    if not isinstance(given, str):
        raise TokenizerError(f"{folder}: chat_template: expected text, found {reprlib.repr(given)}")
    return given


def ids_of(described: Mapping[str, Any]) -> dict[str, int]:
    """Returns the id of each token, those of the model and those that were added."""
    vocabulary = described["model"]["vocab"]
    if isinstance(vocabulary, list):  # of a Unigram, with scores
        vocabulary = {piece: number for number, (piece, _) in enumerate(vocabulary)}
    return vocabulary | {token["content"]: token["id"] for token in described["added_tokens"]}


def check_ids(ids: Mapping[str, int], where: str) -> None:
    """Raises an error unless the tokens have different ids with few gaps.

    Raises:
      TokenizerError: they do not. A large gap would take rows of the embedding that no token uses.
    """
    limit = 2 * len(ids) + 1024
    numbers = [number for number in ids.values() if type(number) is int and 0 <= number < limit]
    if not ids or len(set(numbers)) != len(ids):
        raise TokenizerError(f"{where}: expected {len(ids)} tokens with different ids from 0, found others")


def read_vocabulary(path: epath.Path) -> dict[str, int]:
    """Reads a vocab.json.

    Raises:
      TokenizerError: it has another form.
    """
    found = _json(path)
    if not all(type(number) is int for number in found.values()):
        raise TokenizerError(f"{path}: expected the id of each token, found {reprlib.repr(found)}")
    return found


def byte_symbols() -> dict[int, str]:
    """Returns the characters with which a byte-level BPE writes bytes (Radford et al. 2019, section 2.2).

    Printable bytes of Latin-1 are themselves, and the others the characters from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


def _with_document_end(ends: list[str], described: Mapping[str, Any], template: str) -> list[str]:
    """Returns EOS texts, first the one that ends documents."""
    special = {token["content"] for token in described["added_tokens"] if token["special"]}
    found = next((name for name in _DOCUMENT_ENDS if name in special), ends[0])
    return list(dict.fromkeys([found, *ends])) if ends[0] in template else ends


def _pad(described: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
    special = sorted((token for token in described["added_tokens"] if token["special"]), key=lambda one: -one["id"])
    taken = {*settings["eos"], settings.get("bos"), described["model"].get("unk_token"), *_added_first(described)}
    free = [token["content"] for token in special if token["content"] not in taken]
    free = [name for name in free if name not in settings.get("chat_template", "")]
    return next((name for name in (settings.get("pad"), *_PADS, *free) if name in free), None)


def _added_first(described: Mapping[str, Any]) -> Sequence[str]:
    """Returns the special tokens that the tokenizer itself puts around a text."""
    processor = json.dumps(described.get("post_processor"), ensure_ascii=False)
    names = (token["content"] for token in described["added_tokens"])
    return [name for name in names if json.dumps(name, ensure_ascii=False) in processor]


def _is_byte_level(described: Mapping[str, Any]) -> bool:
    return (described.get("decoder") or {}).get("type") == "ByteLevel" and "merges" in described["model"]


def _with_special(described: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Returns a tokenizer.json in which these tokens of the vocabulary are special."""
    ids, added = ids_of(described), {token["content"]: token for token in described["added_tokens"]}
    for name in names:
        added[name] = added.get(name, {"id": ids[name], "content": name, **FLAGS}) | {"special": True}
    return {**described, "added_tokens": sorted(added.values(), key=lambda token: token["id"])}


def _with_pad(described: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a tokenizer.json in which the token of the byte 0xFF is the special token <|pad|>."""
    model = described["model"]
    name = {_NEVER_IN_TEXT: PAD}
    vocabulary = {name.get(token, token): number for token, number in model["vocab"].items()}
    pairs = [(pair, pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
    merges = [pair for pair, parts in pairs if _NEVER_IN_TEXT not in parts]  # no text uses the others
    return _with_special({**described, "model": {**model, "vocab": vocabulary, "merges": merges}}, [PAD])


def _json(path: epath.Path) -> dict[str, Any]:
    """Reads a JSON object; {} if there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: expected JSON, found {' '.join(str(error).split())[:200]}") from None
    if not isinstance(found, dict):
        raise TokenizerError(f"{path}: expected a JSON object, found {reprlib.repr(found)}")
    return found
