"""Tests batches of rankings: whole, with few shapes, resumable, and equal for any number of processes."""

import itertools
import json

import jax
import numpy as np
import pytest

from instructjax.batch import Share
from instructjax.data import pipeline
from instructjax.data.layouts import Layout
from instructjax.data.rankings import ranking_batches, ranking_rows, tokenize_rankings
from instructjax.errors import DataError
from instructjax.records import Ranking
from instructjax.text.sentencepiece import SentencePieceTokenizer

WORDS = "fox dog owl red blue big small runs sleeps the a and in forest".split()
TOKENIZER = SentencePieceTokenizer.train([" ".join(WORDS)] * 9, 300)
LAYOUT = Layout(TOKENIZER, "\n", 30, 40)
PAD = TOKENIZER.pad_id


def text(rng, most):
    return " ".join(rng.choice(WORDS, size=rng.integers(0, most)))


def records(count=203):  # the fewer there are, the longer grain takes to shuffle an index
    """Yields rankings of 2 to 4 answers, of many lengths, with ties. Each prompt ends with its number."""
    rng = np.random.default_rng(0)
    for i in range(count):
        size = 2 + i % 3
        answers = tuple(text(rng, 9) for _ in range(size))
        yield Ranking(
            prompt=f"{text(rng, 6)} {i}", responses=answers, scores=tuple(map(float, rng.integers(0, 3, size)))
        )


RECORDS = list(records())
RANKINGS = tokenize_rankings(RECORDS, LAYOUT)
TUPLES = [(tuple(r.prompt), tuple(map(tuple, r.responses)), tuple(r.scores)) for r in RANKINGS]


def stream(*, batch_size=4, seed=0, steps=40, **keys):
    return ranking_batches(RANKINGS, PAD, batch_size=batch_size, seed=seed, steps=steps, **keys)


def take(batches, count):
    return list(itertools.islice(iter(batches), count))


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def rankings_of(batch):
    """Reads the rankings of a batch from its arrays, row by row."""
    found = []
    for row in range(len(batch.tokens)):
        tokens, segments, branches = batch.tokens[row], batch.segments[row], batch.branches[row]
        for number in range(1, segments.max() + 1):
            prompt = tokens[(segments == number) & (branches == 0)]
            valid = batch.valid[row, number - 1]
            answers = []
            for answer in range(1, valid.sum() + 1):
                columns = np.flatnonzero((segments == number) & (branches == answer))
                assert (np.diff(columns) == 1).all() and columns[-1] == batch.ends[row, number - 1, answer - 1]
                assert (batch.positions[row, columns] == len(prompt) + np.arange(len(columns))).all()
                answers.append(tuple(tokens[columns]))
            found.append((tuple(prompt), tuple(answers), tuple(batch.scores[row, number - 1][valid])))
        assert not batch.valid[row, segments.max() :].any()
        assert (tokens[segments == 0] == PAD).all()
    return found


def test_a_long_run_has_few_empty_rows_and_few_shapes():
    batches = take(stream(steps=1600), 300)
    assert len({batch.tokens.shape for batch in batches}) <= 8
    assert len({str(jax.tree.map(lambda leaf: (leaf.shape[1:], leaf.dtype), batch)) for batch in batches}) == 1
    assert (
        np.concatenate([batch.segments.any(axis=1) for batch in batches]).mean() >= 0.94
    )  # at least 0.95 over all steps


def test_several_rankings_share_a_row():
    batch = take(stream(batch_size=8), 1)[0]
    rows, length = batch.tokens.shape
    longest = max(map(len, RANKINGS))
    assert longest <= length < longest + 8 and length % 8 == 0
    assert rows < 8 and batch.scores.shape[1] > 1 and batch.scores.shape[2] == 4


def test_batches_follow_the_order_of_shuffled_batches():
    """Checks whole rankings, and therefore also that the lengths that are read ahead are correct."""
    order = pipeline.shuffled_batches(pipeline.indices(RECORDS), batch_size=4, seed=3)
    for batch, indices in zip(take(stream(seed=3), 20), take(order, 20), strict=True):
        assert sorted(rankings_of(batch)) == sorted(TUPLES[i] for i in indices)


def test_the_number_of_rows_is_a_multiple_of_the_given_number():
    plain, shared = (take(stream(batch_size=8, multiple=multiple), 3) for multiple in (1, 5))
    assert all(len(batch.tokens) % 5 == 0 for batch in shared)
    assert [rankings_of(batch) for batch in shared] == [rankings_of(batch) for batch in plain]


def test_the_seed_decides_the_order():
    first, again, other = (take(stream(seed=seed), 8) for seed in (1, 1, 2))
    assert same(first, again)
    assert [rankings_of(batch) for batch in first] != [rankings_of(batch) for batch in other]


@pytest.mark.parametrize("stop", [0, 1, 17])
def test_a_resumed_stream_equals_the_uninterrupted_one(stop):
    uninterrupted = take(stream(), stop + 9)
    iterator = iter(stream())
    for _ in range(stop):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    next(iterator)  # a batch that was read after the last checkpoint
    resumed = iter(stream())
    resumed.set_state(state)
    assert same(list(itertools.islice(resumed, 9)), uninterrupted[stop:])


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_rankings_of_a_batch_with_equal_shapes(count):
    alone = take(stream(multiple=count), 9)
    parts = [take(stream(share=Share((i,), count), multiple=count), 9) for i in range(count)]
    for whole, shares in zip(alone, zip(*parts, strict=True), strict=True):
        assert len({share.tokens.shape for share in shares}) == 1
        assert same(whole, jax.tree.map(lambda *parts: np.concatenate(parts), *shares))


def test_rows_for_evaluation_keep_the_order():
    rows = ranking_rows(RANKINGS, PAD)
    (batch,) = take(pipeline.ordered_batches(rows, batch_size=len(rows)), 2)
    assert rankings_of(batch) == TUPLES
    assert len(rows) < len(RECORDS)


def test_copies_that_fill_the_last_batch_do_not_count():
    rows = ranking_rows(RANKINGS, PAD)
    batches = take(pipeline.ordered_batches(rows, batch_size=len(rows) - 1), 3)
    assert [len(batch.tokens) for batch in batches] == [len(rows) - 1] * 2
    scores = np.concatenate([batch.scores[batch.valid] for batch in batches])
    assert scores.tolist() == list(itertools.chain(*(scores for _, _, scores in TUPLES)))


def test_errors_name_the_bad_value():
    with pytest.raises(DataError, match="expected at least one record"):
        tokenize_rankings([], LAYOUT)
    long = Ranking(prompt="a", responses=("fox " * 41, "a"), scores=(0, 1), where="f:1")
    with pytest.raises(DataError, match=r"f:1: responses\[0\]: expected at most 40 tokens"):
        ranking_rows(tokenize_rankings([*RECORDS, long], LAYOUT), PAD)
