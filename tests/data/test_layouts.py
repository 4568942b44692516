"""Tests the layouts of rows on the examples of the docstrings and on random text."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax.data import layouts
from instructjax.data.layouts import Layout
from instructjax.errors import ConfigError, DataError
from instructjax.records import Demonstration, Prompt, Ranking, Text
from instructjax.text.sentencepiece import SentencePieceTokenizer

WORDS = "name a color dark red fox b c d e f g".split()


class Words:
    """A tokenizer with one token per word, as in the drawings."""

    pad_id, eos_id = SentencePieceTokenizer.pad_id, SentencePieceTokenizer.eos_id
    eos_ids, bos = (eos_id,), ()

    def encode(self, text):
        return [(["\n", *WORDS].index(word) + 3) for word in text.replace("\n", " \n ").split(" ") if word]

    encode_opening = encode

    def lost(self, text):
        return ""


BREAK, NAME, A, COLOR, DARK, RED, FOX, B, C, D, E, F, G = range(3, 16)
EOS = SentencePieceTokenizer.eos_id
LAYOUT = Layout(Words(), "\n", max_prompt=5, max_response=4)
PROMPT = [NAME, A, COLOR, BREAK]


def test_document():
    assert layouts.document_tokens(Text(text="a fox"), Words()).tolist() == [A, FOX, EOS]


def test_window():
    tokens = np.array([B, C, EOS, D, E, F, EOS, G], np.int32)
    row = layouts.window_row(tokens, np.ones(8, bool), EOS)
    assert row.tokens.tolist() == tokens.tolist()
    assert row.segments.tolist() == [1, 1, 1, 2, 2, 2, 2, 3]
    assert row.positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 0]
    assert row.weights.tolist() == [0, 1, 1, 0, 1, 1, 1, 0]


def test_the_padding_of_a_window_is_not_a_segment():
    row = layouts.window_row(np.array([B, EOS, D, EOS, 0, 0], np.int32), np.arange(6) < 4, EOS)
    assert row.segments.tolist() == [1, 1, 2, 2, 0, 0]
    assert row.positions.tolist() == [0, 1, 0, 1, 0, 0]
    assert row.weights.tolist() == [0, 1, 0, 1, 0, 0]


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_demonstration(weight):
    row = layouts.demonstration_row([Demonstration(prompt="name a color", response="dark red")], LAYOUT, weight)
    assert row.tokens.tolist() == [*PROMPT, DARK, RED, EOS, 0, 0]
    assert row.segments.tolist() == [1, 1, 1, 1, 1, 1, 1, 0, 0]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 0]
    assert row.weights.tolist() == [0, weight, weight, weight, 1, 1, 1, 0, 0]


def test_a_row_of_two_demonstrations():
    first = Demonstration(prompt="a", response="b")
    row = layouts.demonstration_row([first, Demonstration(prompt="c d", response="")], LAYOUT, 0.5)
    assert row.tokens.tolist() == [A, BREAK, B, EOS, C, D, BREAK, EOS, 0]
    assert row.segments.tolist() == [1] * 4 + [2] * 4 + [0]
    assert row.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert row.weights.tolist() == [0, 0.5, 1, 1, 0, 0.5, 0.5, 1, 0]


def ranking_row(*records, **changes):
    sizes = {"length": 11, "max_prompts": 1, "max_responses": 3, "pad_id": 0}
    return layouts.ranking_row([layouts.tokenize_ranking(record, LAYOUT) for record in records], **sizes | changes)


def test_ranking_row():
    row = ranking_row(Ranking(prompt="name a color", responses=("dark red", "a fox"), scores=(2, 1)))
    assert row.tokens.tolist() == [*PROMPT, DARK, RED, EOS, A, FOX, EOS, 0]
    assert row.segments.tolist() == [1] * 10 + [0]
    assert row.branches.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 0]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 0]
    assert row.ends.tolist() == [[6, 9, 0]]
    assert row.scores.tolist() == [[2, 1, 0]]
    assert row.valid.tolist() == [[True, True, False]]


def test_a_row_of_two_rankings():
    first = Ranking(prompt="a", responses=("b", "c d"), scores=(1, 1))
    second = Ranking(prompt="e f", responses=("g", "b", ""), scores=(0, 2, 1))
    row = ranking_row(first, second, length=16, max_prompts=3)
    assert row.tokens.tolist() == [A, BREAK, B, EOS, C, D, EOS, E, F, BREAK, G, EOS, B, EOS, EOS, 0]
    assert row.segments.tolist() == [1] * 7 + [2] * 8 + [0]
    assert row.branches.tolist() == [0, 0, 1, 1, 2, 2, 2, 0, 0, 0, 1, 1, 2, 2, 3, 0]
    assert row.positions.tolist() == [0, 1, 2, 3, 2, 3, 4, 0, 1, 2, 3, 4, 3, 4, 3, 0]
    assert row.ends.tolist() == [[3, 6, 0], [11, 13, 14], [0, 0, 0]]
    assert row.scores.tolist() == [[1, 1, 0], [1, 3, 2], [0, 0, 0]]
    assert row.valid.tolist() == [[True, True, False], [True] * 3, [False] * 3]


def test_an_empty_row_is_padding():
    row = ranking_row(pad_id=7)
    assert (row.tokens == 7).all()
    assert not any(leaf.any() for leaf in (row.segments, row.branches, row.positions, row.valid))
    row = layouts.demonstration_row([], LAYOUT)
    assert not any(leaf.any() for leaf in (row.tokens, row.segments, row.positions, row.weights))


def test_prompt():
    row = layouts.prompt_row(Prompt(prompt="name a color"), Layout(Words(), "\n", 6, 1))
    assert row.tokens.tolist() == [0, 0, *PROMPT]
    assert row.segments.tolist() == [0, 0, 1, 1, 1, 1]


@pytest.fixture(scope="module")
def tokenizer():
    return SentencePieceTokenizer.train(["name a color dark red fox"] * 9, 280)


texts = st.text(min_size=1, max_size=10)


@given(texts, texts, st.integers(0, 9))
def test_all_layouts_agree_on_the_tokens_of_a_prompt_and_a_response(tokenizer, asked, answered, slack):
    layout = Layout(tokenizer, "\n", 50 + slack, 60 + slack)
    row = layouts.demonstration_row([Demonstration(prompt=asked, response=answered)], layout)
    ranked = layouts.tokenize_ranking(Ranking(prompt=asked, responses=("no", answered), scores=(0, 1)), layout)
    left = layouts.prompt_row(Prompt(prompt=asked), layout)
    prompt_ids = left.tokens[left.segments == 1].tolist()
    response_ids = row.tokens[row.weights == 1].tolist()
    assert (list(ranked.prompt), list(ranked.responses[1])) == (prompt_ids, response_ids)
    assert row.tokens[row.segments == 1].tolist() == prompt_ids + response_ids
    assert tokenizer.decode(prompt_ids) == asked + "\n"
    assert tokenizer.decode(response_ids) == answered
    assert response_ids[-1] == tokenizer.eos_id
    assert response_ids[:-1] == tokenizer.encode(asked + "\n" + answered)[len(prompt_ids) :]


@given(st.lists(st.text(max_size=6), min_size=1, max_size=5), st.integers(0, 5))
def test_each_document_of_a_window_is_a_segment(tokenizer, documents, padding):
    parts = [layouts.document_tokens(Text(text=text), tokenizer) for text in documents]
    tokens = np.concatenate([*parts, np.zeros(padding, np.int32)])
    row = layouts.window_row(tokens, np.arange(len(tokens)) < len(tokens) - padding, EOS)
    for number, part in enumerate(parts, start=1):
        inside = row.segments == number
        assert row.tokens[inside].tolist() == part.tolist()
        assert row.positions[inside].tolist() == list(range(len(part)))
        assert row.weights[inside].tolist() == [0] + [1] * (len(part) - 1)
    assert not row.segments[len(tokens) - padding :].any() and not row.weights[len(tokens) - padding :].any()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            Prompt(prompt="a a a a a", where="f:3"),
            r"f:3: prompt: expected at most 5 tokens \(data.max_prompt\), found 6",
        ),
        (
            Demonstration(prompt="a", response="a a a a", where="f:4"),
            r"f:4: response: expected at most 4 tokens \(data.max_response\), found 5",
        ),
        (
            Ranking(prompt="a", responses=("a", "a a a a a"), scores=(1, 2), where="f:5"),
            r"f:5: responses\[1\]: expected at most 4 tokens \(data.max_response\), found 6",
        ),
    ],
)
def test_a_record_that_does_not_fit_is_an_error(record, message):
    make = {Prompt: lambda r: layouts.prompt_row(r, LAYOUT)}
    make |= {
        Demonstration: lambda r: layouts.demonstration_row([r], LAYOUT),
        Ranking: lambda r: layouts.tokenize_ranking(r, LAYOUT),
    }
    with pytest.raises(DataError, match="^" + message):
        make[type(record)](record)


def test_a_record_that_just_fits_is_not_an_error():
    row = layouts.demonstration_row([Demonstration(prompt="a a a a", response="a a a")], LAYOUT)
    assert row.segments.all()


def test_a_longer_prompt_is_cut_from_the_left_if_the_layout_says_so():
    layout = dataclasses.replace(LAYOUT, cut_prompts=True)
    assert layout.encode_prompt("b c name a color") == [C, *PROMPT]
    assert layout.encode_prompt("name a color") == PROMPT


@pytest.mark.parametrize(
    "scores", [(0.3, 0.30000000000000004, -1e300, 0.3), (2**53, 2**53 + 2, 0, 2**53), (2, 3, -7, 2)]
)
def test_scores_are_used_by_their_order_only(scores):
    record = Ranking(prompt="a", responses=("a", "b", "c", "d"), scores=tuple(map(float, scores)))
    assert list(layouts.tokenize_ranking(record, LAYOUT).scores) == [2, 3, 1, 2]


def test_too_small_lengths_are_errors():
    with pytest.raises(ConfigError, match=r"^data.max_prompt: expected at least 1 token, found 0"):
        Layout(Words(), "\n", 0, 4)
