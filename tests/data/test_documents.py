"""Tokenized text on the disk: equal to the tokenized records, made once per tokenizer, damage is found."""

import numpy as np
import pytest

from instructjax import records
from instructjax.data import documents, layouts, preparation, prepared
from instructjax.errors import DataError
from instructjax.records import Text

RECORDS = [Text(text="abc" * i + "d", split="train" if i % 3 else "validation") for i in range(1, 20)]


class Letters:
    """A tokenizer whose tokens are letters."""

    pad_id, eos_id, bos = 0, 1, ()

    def __init__(self, vocab_size):
        self.vocab_size, self.fingerprint = vocab_size, str(vocab_size)

    def encode(self, text):
        return [self.vocab_size - ord(letter) for letter in text]


FEW, MANY = Letters(200), Letters(70_000)


@pytest.fixture
def folder(tmp_path):
    records.write(tmp_path / "text.jsonl", RECORDS)
    preparation.prepare(Text, [tmp_path / "text.jsonl"], tmp_path, name="text")
    return tmp_path


def written(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("tokens/*")}


@pytest.mark.parametrize("tokenizer", [FEW, MANY])
def test_documents_are_the_tokens_of_the_records(folder, tokenizer):
    documents.tokenize(folder, tokenizer)
    for split in ("train", "validation"):
        found = documents.load(folder, split)
        expected = [layouts.document_tokens(record, tokenizer) for record in prepared.load(folder, "text", Text, split)]
        assert len(found) == len(expected) > 5
        assert all(map(np.array_equal, found, expected)) and np.array_equal(found[-1], expected[-1])
        assert all(map(np.array_equal, found[1:4], expected[1:4]))
        with pytest.raises(IndexError):
            found[len(found)]


def test_text_is_tokenized_once_per_tokenizer_and_set(folder):
    documents.tokenize(folder, FEW)
    first = written(folder)
    documents.tokenize(folder, FEW)
    assert written(folder) == first and len(first) == 5
    documents.tokenize(folder, MANY)
    assert written(folder) != first
    records.write(folder / "text.jsonl", RECORDS[:9])
    preparation.prepare(Text, [folder / "text.jsonl"], folder, name="text")
    documents.tokenize(folder, MANY)
    assert len(documents.load(folder, "train")) == 6


@pytest.mark.parametrize("name", ["train.ids", "train.ends.npy", "tokens.json"])
def test_damaged_tokens_are_reported(folder, name):
    documents.tokenize(folder, FEW)
    (path,) = folder.rglob(f"tokens/{name}")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"text: expected a prepared data set, found a damaged one \(.*\); remove "):
        documents.load(folder, "train")


def test_a_folder_without_text_has_no_tokens(tmp_path):
    documents.tokenize(tmp_path, FEW)
    assert not list(tmp_path.iterdir())
