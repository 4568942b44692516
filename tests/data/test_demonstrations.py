"""Tests batches of demonstrations: whole, with few empty rows, resumable, and equal for any number of processes."""

import gzip
import itertools
import json

import jax
import numpy as np
import pytest

from instructjax.batch import Share
from instructjax.data import demonstrations, layouts, pipeline
from instructjax.data.layouts import Layout
from instructjax.errors import ConfigError, DataError
from instructjax.records import Demonstration, Text
from instructjax.text.sentencepiece import SentencePieceTokenizer
from tests.local_data import ABSENT, DATA

DOLLY = DATA / "dolly_15k" / "dolly_15k.jsonl.gz"
WORDS = "fox dog owl red blue big small runs sleeps the a and in forest".split()
TOKENIZER = SentencePieceTokenizer.train([" ".join(WORDS)] * 9, 300)
LAYOUT = Layout(TOKENIZER, "\n", 36, 40)


def sentences(count, seed):
    """Returns distinct sentences of many lengths. Each ends with its number."""
    rng = np.random.default_rng(seed)
    return [" ".join([*rng.choice(WORDS, size=rng.integers(0, 9)), str(i)]) for i in range(count)]


# The fewer records there are, the longer grain takes to shuffle an index.
COUNT = 203
PAIRS = list(zip(sentences(COUNT, 0), sentences(COUNT, 1), strict=True))
DEMONSTRATIONS = [Demonstration(prompt=prompt, response=response) for prompt, response in PAIRS]
TEXTS = [layouts.document_tokens(Text(text=text), TOKENIZER) for text in sentences(COUNT, 2)]
MANY = [Demonstration(prompt=prompt, response=prompt) for prompt in sentences(999, 0)]
MANY_TEXTS = [layouts.document_tokens(Text(text=text), TOKENIZER) for text in sentences(999, 2)]


def stream(kind="plain", *, records=DEMONSTRATIONS, texts=TEXTS, batch_size=8, seed=0, steps=40, **keys):
    keys = {"batch_size": batch_size, "seed": seed, "steps": steps, **keys}
    if kind == "plain":
        return demonstrations.batches(records, LAYOUT, **keys)
    return demonstrations.mixed_batches(records, texts, LAYOUT, **{"text_share": 0.25, **keys})


KINDS = pytest.mark.parametrize("kind", ["plain", "mixed"])


def take(batches, count):
    return list(itertools.islice(iter(batches), count))


def same(one, other):
    one, other = jax.tree.leaves(one), jax.tree.leaves(other)
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def is_text(batch):
    """Returns whether each row is a window of text. Windows have no prompt, and therefore no separator."""
    return batch.segments.any(axis=1) & ~(batch.tokens == TOKENIZER.encode("\n")[0]).any(axis=1)


def pairs_of(batch):
    """Reads the prompts and responses of a batch from its arrays."""
    found = []
    for tokens, segments, positions, weights in zip(
        batch.tokens, batch.segments, batch.positions, batch.weights, strict=True
    ):
        for number in range(1, segments.max(initial=0) + 1):
            inside = segments == number
            assert (positions[inside] == np.arange(inside.sum())).all()
            learned = inside & (weights > 0)
            assert tokens[learned][-1] == TOKENIZER.eos_id and np.flatnonzero(learned)[-1] == np.flatnonzero(inside)[-1]
            prompt, response = TOKENIZER.decode(tokens[inside & ~learned]), TOKENIZER.decode(tokens[learned])
            assert prompt.endswith("\n")
            found.append((prompt[:-1], response))
        outside = segments == 0
        assert not (tokens[outside].any() or positions[outside].any() or weights[outside].any())
    return found


def demonstrations_of(batch):
    return pairs_of(jax.tree.map(lambda leaf: leaf[~is_text(batch)], batch))


@KINDS
def test_a_long_run_has_few_empty_rows_and_few_shapes_and_a_short_run_has_one_shape(kind):
    batches = take(stream(kind, records=MANY, texts=MANY_TEXTS, steps=1600), 300)
    assert 1 < len({batch.tokens.shape for batch in batches}) <= 8
    assert (
        np.concatenate([batch.segments.any(axis=1) for batch in batches]).mean() >= 0.94
    )  # at least 0.95 over all steps
    assert np.mean([len(batch.tokens) for batch in batches]) < 7  # of eight examples
    batches = take(stream(kind, steps=40), 40)
    (shape,) = {batch.tokens.shape for batch in batches}
    assert shape[1] == LAYOUT.length
    assert max(batch.segments.any(axis=1).sum() for batch in batches) == shape[0]


@KINDS
def test_a_process_makes_only_its_own_rows(kind, monkeypatch):
    made = []

    def counting(records, *arguments):
        made.extend(records)
        return make(records, *arguments)

    make = layouts.demonstration_row
    monkeypatch.setattr(layouts, "demonstration_row", counting)
    parts = []
    for i in range(4):
        made.clear()
        batches = take(stream(kind, multiple=4, share=Share((i,), 4)), 10)
        parts.append(len(made))
        assert len(made) == sum(map(len, map(demonstrations_of, batches)))
    assert sum(parts) == sum(map(len, map(demonstrations_of, take(stream(kind, multiple=4), 10))))


def test_batches_follow_the_order_of_shuffled_batches():
    order = pipeline.shuffled_batches(pipeline.indices(DEMONSTRATIONS), batch_size=8, seed=3)
    for batch, indices in zip(take(stream(seed=3), 20), take(order, 20), strict=True):
        assert sorted(pairs_of(batch)) == sorted(PAIRS[i] for i in indices)


@KINDS
def test_an_epoch_has_every_demonstration_once(kind):
    found = list(itertools.chain(*map(demonstrations_of, take(stream(kind, batch_size=1), 4 * COUNT))))
    epochs = [found[start : start + COUNT] for start in range(0, len(found) - COUNT + 1, COUNT)]
    assert len(epochs) >= 3 and all(sorted(epoch) == sorted(PAIRS) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == len(epochs)


@pytest.mark.parametrize("share", [0.1, 0.25, 1 / 3, 0.5])
def test_the_share_of_text_holds_from_the_start(share):
    windows = [is_text(batch).sum() for batch in take(stream("mixed", text_share=share, batch_size=6), 40)]
    assert abs(np.cumsum(windows) - share * 6 * np.arange(1, 41)).max() <= 1


def test_windows_of_text_are_full_and_contiguous():
    batches = take(stream("mixed"), 20)
    windows = [row for batch in batches for row in batch.tokens[is_text(batch)]]
    expected = take(pipeline.text_batches(TEXTS, TOKENIZER, length=LAYOUT.length, batch_size=1, seed=0), len(windows))
    assert len(windows) == 40 and same(windows, [batch.tokens[0] for batch in expected])


@KINDS
def test_the_seed_decides_the_order(kind):
    first, again, other = (take(stream(kind, seed=seed), 8) for seed in (1, 1, 2))
    assert same(first, again)
    assert [demonstrations_of(batch) for batch in first] != [demonstrations_of(batch) for batch in other]


@KINDS
@pytest.mark.parametrize("stop", [0, 1, 17])
def test_a_resumed_stream_equals_the_uninterrupted_one(kind, stop):
    uninterrupted = take(stream(kind), stop + 9)
    iterator = iter(stream(kind))
    for _ in range(stop):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    next(iterator)  # a batch that was read after the last checkpoint
    resumed = iter(stream(kind))
    resumed.set_state(state)
    assert same(list(itertools.islice(resumed, 9)), uninterrupted[stop:])


@KINDS
@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_rows_of_a_batch(kind, count):
    alone = take(stream(kind, multiple=4), 9)
    parts = [take(stream(kind, multiple=4, share=Share((i,), count)), 9) for i in range(count)]
    for whole, shares in zip(alone, zip(*parts, strict=True), strict=True):
        assert same(whole, jax.tree.map(lambda *parts: np.concatenate(parts), *shares))


def test_rows_for_evaluation_keep_the_order():
    rows = demonstrations.rows(DEMONSTRATIONS, LAYOUT)
    (batch,) = take(pipeline.ordered_batches(rows, batch_size=len(rows)), 2)
    assert pairs_of(batch) == PAIRS
    assert len(rows) < len(DEMONSTRATIONS)


def test_rows_have_the_given_prompt_weight():
    plain, weighted = (take(stream(prompt_weight=weight), 1)[0] for weight in (0.0, 0.5))
    first = plain.positions == 0
    assert (weighted.weights[(plain.segments > 0) & (plain.weights == 0) & ~first] == 0.5).all()
    assert not weighted.weights[first].any()


def test_errors_name_the_bad_value():
    with pytest.raises(ConfigError, match="^share: expected a number of parts that divides 4 rows, found 3$"):
        stream(multiple=4, share=Share((0,), 3))
    with pytest.raises(ConfigError, match="^ppo_init.text_share: expected a share between 0 and 1, found 1"):
        stream("mixed", text_share=1.0)
    with pytest.raises(DataError, match="expected at least one record"):
        demonstrations.batches([], LAYOUT, batch_size=1, seed=0, steps=1)
    long = Demonstration(prompt="a", response="fox " * 41, where="f:1")
    with pytest.raises(DataError, match="f:1: response: expected at most 40 tokens"):
        demonstrations.rows([*DEMONSTRATIONS, long], LAYOUT)


@pytest.mark.skipif(not DOLLY.is_file(), reason=ABSENT)
@KINDS
def test_lengths_as_people_write_them_waste_less_than_15_percent(kind):
    """Uses rows of 1024 tokens in a run of 16 epochs. One demonstration per row would waste 80%."""
    with gzip.open(DOLLY, "rt", encoding="utf-8") as lines:
        found = [json.loads(line) for line in itertools.islice(lines, 3000)]
    pairs = [("\n".join(filter(None, (one["instruction"], one["context"]))), one["response"]) for one in found]
    layout = Layout(SentencePieceTokenizer.train(["\n".join(pair) for pair in pairs[:500]], 2000), "\n\n", 512, 512)
    records = [
        Demonstration(prompt=prompt, response=response)
        for prompt, response in pairs
        if len(layout.tokenizer.encode(prompt)) < 500 and len(layout.tokenizer.encode(response)) < 500
    ]
    keys = {"batch_size": 64, "seed": 0, "steps": 16 * len(records) // 64}
    if kind == "mixed":
        text = [layouts.document_tokens(Text(text=record.response), layout.tokenizer) for record in records]
        batches = demonstrations.mixed_batches(records, text, layout, **keys)
    else:
        batches = demonstrations.batches(records, layout, **keys)
    segments = [batch.segments for batch in take(batches, 60)]
    wasted = 1 - sum((one > 0).sum() for one in segments) / sum(one.size for one in segments)
    alone = (
        1
        - np.mean(
            [len(layout.encode_prompt(r.prompt, "")) + len(layout.encode_response(r.response, "")) for r in records]
        )
        / 1024
    )
    print(f"{kind}: {wasted:.3f} of the columns are padding, {alone:.3f} with one demonstration per row")
    assert wasted < 0.15 < 0.7 < alone
