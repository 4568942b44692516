"""Tests streams of batches: complete, deterministic, resumable, and equal for any number of processes."""

import collections
import itertools
import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax import records
from instructjax.batch import Share
from instructjax.data import demonstrations, layouts, pipeline, preparation
from instructjax.data import documents as tokenized
from instructjax.data.layouts import Layout
from instructjax.errors import ConfigError, DataError
from instructjax.records import Demonstration, Prompt, Text
from instructjax.text.sentencepiece import SentencePieceTokenizer

WORDS = "fox dog owl red blue big small runs sleeps the a and in forest".split()
TOKENIZER = SentencePieceTokenizer.train([" ".join(WORDS)] * 9, 300)
LAYOUT = Layout(TOKENIZER, "\n", 30, 40)
LENGTH = 24


def sentences(count, seed=0):
    """Returns distinct sentences. Each ends with its number."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(0, 5))) + f"{i}" for i in range(count)]


TEXTS = [Text(text=text) for text in sentences(37)]
DOCUMENTS = [layouts.document_tokens(record, TOKENIZER) for record in TEXTS]
DEMONSTRATIONS = [Demonstration(prompt=text, response=text) for text in sentences(23)]
PROMPTS = [Prompt(prompt=text) for text in sentences(11)]
ROWS = {
    "text": pipeline.text_rows(DOCUMENTS, TOKENIZER, LENGTH),
    "demonstrations": demonstrations.rows(DEMONSTRATIONS, LAYOUT),
    "prompts": pipeline.prompt_rows(PROMPTS, LAYOUT),
}


def stream(name, *, batch_size=4, seed=0, **processes):
    """Returns a training stream by name."""
    if name == "text":
        return pipeline.text_batches(DOCUMENTS, TOKENIZER, length=LENGTH, batch_size=batch_size, seed=seed, **processes)
    if name == "zipped":
        return pipeline.zip_batches(
            *(stream(part, batch_size=batch_size, seed=seed, **processes) for part in ("prompts", "text"))
        )
    return pipeline.shuffled_batches(ROWS[name], batch_size=batch_size, seed=seed, **processes)


STREAMS = ("text", "prompts")


def take(batches, count):
    return list(itertools.islice(iter(batches), count))


def same(one, other):
    one, other = jax.tree.leaves(one), jax.tree.leaves(other)
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def stack(batches):
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)


def documents(batches):
    """Returns the documents of packed windows, in order, each as a list of tokens."""
    whole = stack(batches)
    tokens = whole.tokens[whole.segments > 0].tolist()
    ends = [i + 1 for i, token in enumerate(tokens) if token == TOKENIZER.eos_id]
    return [tokens[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def texts_of(batch):
    """Decodes the prompts of a batch."""
    return [TOKENIZER.decode(row).split("\n")[0] for row in batch.tokens]


@pytest.mark.parametrize("name", STREAMS)
def test_shapes_and_types_never_change(name):
    batches = take(stream(name), 12)
    described = {str(jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), batch)) for batch in batches}
    assert len(described) == 1
    tokens = batches[0].tokens
    assert tokens.dtype == np.int32
    assert tokens.shape == {
        "text": (4, LENGTH), "prompts": (4, 30),
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_the_seed_decides_the_order(name):
    first, again, other = (take(stream(name, seed=seed), 8) for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize("name", [*STREAMS, "zipped"])
@pytest.mark.parametrize("stop", [0, 1, 5, 17])
def test_a_resumed_stream_equals_the_uninterrupted_one(name, stop):
    uninterrupted = take(stream(name), stop + 9)
    iterator = iter(stream(name))
    for _ in range(stop):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    next(iterator)  # a batch that was read after the last checkpoint
    resumed = iter(stream(name))
    resumed.set_state(state)
    assert same(list(itertools.islice(resumed, 9)), uninterrupted[stop:])


@pytest.mark.parametrize("name", [*STREAMS, "zipped"])
@pytest.mark.parametrize("stop", [0, 1, 5])
def test_prefetching_changes_neither_batches_nor_state(name, stop):
    ahead = iter(pipeline.prefetch(stream(name)))
    plain = iter(stream(name))
    assert all(same(next(ahead), next(plain)) for _ in range(stop))
    assert ahead.get_state() == plain.get_state()
    resumed = iter(pipeline.prefetch(stream(name)))
    resumed.set_state(json.loads(json.dumps(ahead.get_state())))
    assert all(same(next(resumed), next(plain)) for _ in range(9))
    for iterator in (ahead, resumed):
        iterator.close()


@pytest.mark.parametrize("parts", [[(0,), (1,)], [(0,), (1,), (2,), (3,)], [(0, 2), (1, 3)], [(1, 2), (0, 3)]])
@pytest.mark.parametrize("name", ["prompts", "text"])
def test_the_global_batch_does_not_depend_on_which_rows_a_process_reads(name, parts):
    shares = [Share(held, sum(map(len, parts))) for held in parts]
    found = [take(stream(name, share=share), 9) for share in shares]
    for whole, *pieces in zip(take(stream(name), 9), *found, strict=True):
        for share, piece in zip(shares, pieces, strict=True):
            rows = share.rows(len(whole.tokens))
            assert same(jax.tree.map(lambda x, rows=rows: x[rows], whole), piece)


def test_two_processes_share_the_documents_of_an_epoch():
    # Only 36 of 37 documents divide evenly, so each process reads 18 of them in the first epoch.
    parts = [take(stream("text", share=Share((i,), 2)), 12) for i in range(2)]
    first = [documents(batches)[:18] for batches in parts]
    seen = collections.Counter(map(tuple, first[0] + first[1]))
    assert len(seen) == 36 and set(seen.values()) == {1}


@pytest.mark.parametrize("name", ["prompts"])
def test_an_epoch_has_every_row_once_in_a_new_order(name):
    size = len(ROWS[name])
    orders = [texts_of(batch) for batch in take(stream(name, batch_size=size), 4)]
    assert all(sorted(order) == sorted(orders[0]) and len(set(order)) == size for order in orders)
    assert len(set(map(tuple, orders))) == 4


def test_zipping_does_not_change_the_streams():
    prompts, text = zip(*take(stream("zipped"), 7), strict=True)
    assert same(list(prompts), take(stream("prompts"), 7))
    assert same(list(text), take(stream("text"), 7))


def test_a_single_row_is_enough():
    rows = pipeline.prompt_rows(PROMPTS[:1], LAYOUT)
    for batch in take(pipeline.shuffled_batches(rows, batch_size=3, seed=0), 2):
        assert texts_of(batch) == [PROMPTS[0].prompt] * 3


def test_packing_keeps_every_token_once_per_epoch_without_padding():
    batches = take(stream("text"), 60)
    assert all((batch.segments > 0).all() for batch in batches)
    expected = sorted([*TOKENIZER.encode(record.text), TOKENIZER.eos_id] for record in TEXTS)
    found = documents(batches)
    epochs = [found[start : start + len(TEXTS)] for start in range(0, len(found) - len(TEXTS), len(TEXTS))]
    assert len(epochs) > 2
    assert all(sorted(epoch) == expected for epoch in epochs)
    assert epochs[0] != epochs[1]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(min_size=1, max_size=70), min_size=1, max_size=80), st.integers(2, 40))
def test_text_rows_contain_the_documents_in_order(texts, length):
    given = [layouts.document_tokens(Text(text=text), TOKENIZER) for text in texts]
    rows = pipeline.text_rows(given, TOKENIZER, length)
    windows = stack([jax.tree.map(lambda leaf: leaf[None], rows[i]) for i in range(len(rows))])
    expected = [[*TOKENIZER.encode(text), TOKENIZER.eos_id] for text in texts]
    assert documents([windows]) == expected
    assert windows.tokens.shape == (-(-sum(map(len, expected)) // length), length)
    real = windows.segments > 0
    assert real[:-1].all() and not np.diff(real[-1].astype(int)).clip(0).any()
    assert not windows.tokens[~real].any() and not windows.weights[~real].any()


@pytest.mark.parametrize("name", sorted(ROWS))
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("batch_size", [2, 4, 64])
def test_one_pass_in_order_counts_every_row_once(name, count, batch_size):
    rows = ROWS[name]
    parts = [
        list(pipeline.ordered_batches(rows, batch_size=batch_size, share=Share((i,), count))) for i in range(count)
    ]
    batches = [stack(shares) for shares in zip(*parts, strict=True)]
    assert {batch.tokens.shape[0] for batch in batches} == {batch_size}
    found = stack(batches)
    expected = stack([jax.tree.map(lambda leaf: np.asarray(leaf)[None], rows[i]) for i in range(len(rows))])
    assert same(jax.tree.map(lambda leaf: leaf[: len(rows)], found), expected)
    rest = jax.tree.map(lambda leaf: leaf[len(rows) :], found)
    assert 0 <= len(rest.tokens) < batch_size
    assert (rest.tokens == expected.tokens[-1]).all()
    # Prompts have no weights: the caller knows how many there are.
    assert name == "prompts" or not rest.weights.any()


def test_streams_read_prepared_sets(tmp_path):
    records.write(tmp_path / "a.jsonl", TEXTS)
    preparation.prepare(Text, [tmp_path / "a.jsonl"], tmp_path, name="text", validation=0, test=0)
    tokenized.tokenize(tmp_path, TOKENIZER)
    found = tokenized.load(tmp_path, "train", TOKENIZER)
    batches = pipeline.text_batches(found, TOKENIZER, length=LENGTH, batch_size=4, seed=0)
    assert same(take(batches, 20), take(stream("text"), 20))


@pytest.mark.parametrize(("batch_size", "epochs", "expected"), [(23, 1, 1), (8, 1, 3), (8, 16, 46), (32, 0.5, 1)])
def test_steps(batch_size, epochs, expected):
    assert pipeline.steps(DEMONSTRATIONS, batch_size, epochs) == expected


def test_errors_name_the_bad_value():
    with pytest.raises(ConfigError, match="^batch_size: expected a positive multiple of 3, so that .*, found 4$"):
        stream("prompts", batch_size=4, share=Share((0,), 3))
    with pytest.raises(DataError, match="expected at least one record"):
        demonstrations.rows([], LAYOUT)
