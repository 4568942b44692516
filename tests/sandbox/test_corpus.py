"""Tests the records of the sandbox: splits by user, formats, lengths and proportions."""

import collections

import numpy as np
import pytest

from instructjax import records
from instructjax.errors import RecordError
from instructjax.sandbox.corpus import (
    DOCUMENTS,
    MAX_WORDS,
    MIN_WORDS,
    draw_users,
    write_demonstrations,
    write_records,
    write_text,
)
from instructjax.sandbox.labelers import training_labelers
from instructjax.sandbox.quality import quality
from instructjax.sandbox.tasks import parse_prompt

SIZES = {"texts": 300, "demonstrations": 300, "reward_prompts": 400, "ppo_prompts": 400, "users": 120}


def _length(text: str) -> int:
    return len(text.replace("\n", " \\n ").split())


def _is_prompt(line: str) -> bool:
    try:
        parse_prompt(line)
    except RecordError:
        return False
    return True


@pytest.fixture(scope="module")
def documents():
    return write_text(np.random.default_rng(0), 1500)


def test_records_depend_only_on_the_seed():
    assert write_records(3, **SIZES) == write_records(3, **SIZES)
    assert write_records(3, **SIZES) != write_records(4, **SIZES)


def test_every_record_is_valid_and_no_user_is_in_two_splits():
    splits = collections.defaultdict(set)
    for kind, written in write_records(0, **SIZES).items():
        for record in written:
            assert records.parse(records.to_json(record), type(record)) == record
            assert record.split in records.SPLITS
            if kind != "text":
                splits[record.user].add(record.split)
                assert record.use_case == parse_prompt(record.prompt).use_case
    assert all(len(found) == 1 for found in splits.values())
    assert set.union(*splits.values()) == set(records.SPLITS)


def test_users_are_split_in_the_given_shares():
    counted = collections.Counter(draw_users(np.random.default_rng(0), 200, validation=0.1, test=0.2).values())
    assert counted == {"validation": 20, "test": 40, "train": 140}


def test_most_test_prompts_are_new():
    written = write_records(0, texts=10, demonstrations=10, reward_prompts=8000, ppo_prompts=8000)
    prompts = written["reward_prompts"] + written["ppo_prompts"]
    seen = {record.prompt for record in prompts if record.split == "train"}
    assert np.mean([r.prompt not in seen for r in prompts if r.split == "test"]) > 0.5


def test_documents_are_short_and_have_a_small_vocabulary(documents):
    lengths = [_length(document.text) for document in documents]
    assert min(lengths) >= MIN_WORDS and max(lengths) <= MAX_WORDS
    assert len({word for document in documents for word in document.text.split()}) < 300


def test_document_kinds_have_their_shares(documents):
    counted = collections.Counter(document.source for document in documents)
    for kind, share in DOCUMENTS.items():
        assert abs(counted[kind] / len(documents) - share) < 0.05


def test_instructions_are_mostly_followed_by_instructions(documents):
    followed = []
    for document in documents:
        first, *rest = document.text.split("\n")
        if rest and _is_prompt(first):
            followed.append(_is_prompt(rest[0]))
    assert 0.6 < np.mean(followed) < 0.85


def test_transcripts_alternate_prompts_and_mediocre_answers(documents):
    values = []
    for document in documents:
        if document.source == "transcript":
            lines = document.text.split("\n")
            assert len(lines) % 2 == 0
            values += [quality(prompt, answer) for prompt, answer in zip(lines[::2], lines[1::2], strict=True)]
    demonstrations = write_demonstrations(np.random.default_rng(0), 500, training_labelers())
    written = np.mean([quality(d.prompt, d.response) for d in demonstrations])
    assert 0.3 < np.mean(values) < written - 0.03


def test_demonstrations_vary_in_quality():
    demonstrations = write_demonstrations(np.random.default_rng(0), 1500, training_labelers())
    values = np.array([quality(d.prompt, d.response) for d in demonstrations])
    by_labeler = collections.defaultdict(list)
    for demonstration, value in zip(demonstrations, values, strict=True):
        by_labeler[demonstration.labeler].append(value)
    means = [np.mean(found) for found in by_labeler.values()]
    assert len(by_labeler) == 40
    assert 0.45 < values.mean() < 0.7 and values.std() > 0.2
    assert max(means) - min(means) > 0.15
