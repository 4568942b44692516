"""Scores of choices and sampled answers, compared with one text at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.errors import DataError, RecordError
from instructjax.evaluation.tasks import outputs, results
from instructjax.evaluation.tasks.registry import TASKS
from instructjax.evaluation.tasks.task import Example, Output
from tests import fakes

LETTERS = "abcdefghisl "


class Letters:
    """A tokenizer with a token per letter, and merged tokens that cross the border of a prompt."""

    pad_id, eos_id, vocab_size, fingerprint = 0, 1, 16, "letters"
    eos_ids, bos, chat_template, altered = (1,), (), "", None

    def encode(self, text):
        return [2 + LETTERS.index(letter) for letter in text.replace("ab", "l")]

    encode_opening = encode

    def lost(self, text):
        return ""

    def decode(self, ids):
        return "".join(LETTERS[i - 2] if 2 <= i < 14 else "\n" for i in ids if i > 1)

    def to_bytes(self):
        raise NotImplementedError

    def save(self, path):
        raise NotImplementedError


MODEL, PARAMS = fakes.language_model()


@jax.jit
def plain_logits(row):
    """Returns the logits [T, V] of one row of 24 tokens; those behind its end change nothing before it."""
    return MODEL.apply({"params": PARAMS}, row[None], jnp.ones((1, 24), jnp.int32), jnp.arange(24)[None])[0][0]


def logits_of(tokens):
    return plain_logits(jnp.array([*tokens, *[0] * (24 - len(tokens))]))


def log_prob(tokens, start):
    """Returns the log-probability of tokens[start:] after those before, from a plain forward pass."""
    log_probs = jax.nn.log_softmax(logits_of(tokens).astype(jnp.float32))
    return float(sum(log_probs[t - 1, tokens[t]] for t in range(start, len(tokens))))


def test_choices_are_scored_as_if_each_stood_alone():
    examples = [
        Example("", choices=("cd", "efg", "c"), where="1"),
        Example("", choices=("b", "c"), where="2"),  # "ab" is one token, so prompt and choice share less
        Example("", choices=("he", "she"), where="3"),
        Example("", choices=("dd", "dde"), where="4"),
    ]
    prompts = ["hig ", "gga", "", "d"]
    found = outputs.tokenize_choices(Letters(), prompts, examples, max_length=24, truncate=False)
    assert [len(ranking.prompt) for ranking in found] == [4, 2, 1, 1]
    assert found[2].prompt == [Letters.eos_id]
    batches = list(outputs.score_choices(MODEL, PARAMS, found, pad_id=0, batch_size=2))
    scored = dict(pair for batch in batches for pair in batch)
    assert sorted(scored) == [0, 1, 2, 3]
    for i, ranking in enumerate(found):
        alone = [log_prob([*ranking.prompt, *choice], len(ranking.prompt)) for choice in ranking.responses]
        np.testing.assert_allclose(scored[i].log_probs, alone, rtol=1e-4)
        assert scored[i].tokens == tuple(map(len, ranking.responses))
    assert not list(outputs.score_choices(MODEL, PARAMS, found, pad_id=0, batch_size=2, done=scored))


def test_a_prompt_that_does_not_fit_is_refused_or_truncated():
    example = Example("", choices=("cd", "e"), where="FILE:3")
    with pytest.raises(DataError, match=r"FILE:3: prompt: expected at most 22 of the model's 24 tokens .* found 30"):
        outputs.tokenize_choices(Letters(), ["h" * 29 + "i"], [example], max_length=24, truncate=False)
    (cut,) = outputs.tokenize_choices(Letters(), ["h" * 29 + "i"], [example], max_length=24, truncate=True)
    assert cut.prompt == Letters().encode("h" * 21 + "i")
    long = Example("", choices=("c" * 30, "e"), where="FILE:4")
    with pytest.raises(DataError, match="FILE:4: expected a continuation of fewer than 24 tokens"):
        outputs.tokenize_choices(Letters(), ["h"], [long], max_length=24, truncate=True)
    task = dataclasses.replace(TASKS["truthful_qa"], max_tokens=4)
    with pytest.raises(DataError, match="FILE:3: prompt: expected at most 20"):
        outputs.fit_prompts(Letters(), task, ["h" * 21], [example], max_length=24, truncate=False)
    assert outputs.fit_prompts(Letters(), task, ["h" * 29 + "i"], [example], max_length=24, truncate=True) == [
        "h" * 19 + "i"
    ]


def test_an_empty_prompt_is_refused():
    with pytest.raises(DataError, match="FILE:3: prompt: expected at least one token to continue, found none"):
        outputs.fit_prompts(
            Letters(), TASKS["real_toxicity"], [""], [Example("", where="FILE:3")], max_length=24, truncate=False
        )


def test_answers_are_greedy_and_those_that_are_done_are_left_out():
    task, prompts = dataclasses.replace(TASKS["truthful_qa"], max_tokens=4), ["abc", "hh", "cd e", "g"]

    def sample(**flags):
        batches = outputs.sample_answers(MODEL, PARAMS, Letters(), task, prompts, batch_size=3, **flags)
        return {i: output.response for batch in batches for i, output in batch}

    found = sample()
    for i, prompt in enumerate(prompts):
        tokens = Letters().encode(prompt)
        start = len(tokens)
        while len(tokens) < start + 4 and tokens[-1] != Letters.eos_id:
            tokens.append(int(jnp.argmax(logits_of(tokens)[len(tokens) - 1])))
        assert found[i] == outputs.cut(Letters().decode(tokens[start:]))
    assert sample(done=[0, 2]) == {i: found[i] for i in (1, 3)}


def test_an_answer_ends_at_the_first_line_break():
    assert outputs.cut(" red \nowl") == "red" and outputs.cut("\nowl") == ""


EXAMPLES = [Example("a", choices=("b", "c"), answer=1), Example("d", choices=("e", "f"), answer=0)]
SCORED = {0: Output(log_probs=(-1.5, -2.0), tokens=(1, 2)), 1: Output(log_probs=(-1.0, -3.0), tokens=(1, 1))}


def read(path, head=None):
    return results.parse(results.read(path), path, EXAMPLES, head)


def test_outputs_are_continued_after_a_cut_line(tmp_path):
    path, head = tmp_path / "o.jsonl", results.header(TASKS["sst"], "model", ["a", "d"])
    assert results.parse("", path, EXAMPLES, head) == {}
    with results.continued(path, head, {}) as write:
        write([(0, SCORED[0])])
    path.write_text(path.read_text() + '{"index": 1, "log_pr')
    known = read(path, head)
    assert known == {0: SCORED[0]}
    with results.continued(path, head, known) as write:
        write([(1, SCORED[1])])
    assert read(path, head) == read(path) == SCORED
    with pytest.raises(DataError, match="of the same model and prompts, found another model, prompts; choose another"):
        read(path, results.header(TASKS["sst"], "other", ["a"]))


def test_metrics_stand_next_to_the_papers():
    result, *_ = results.compute(TASKS["sst"], "", 0, EXAMPLES, [SCORED[0], SCORED[1]], {})
    assert (result.value, result.n, result.prompt_type, result.paper["gpt-175b"]) == (1.0, 2, "zero-shot", 0.898)
    result, *_ = results.compute(TASKS["sst"], "", 15, EXAMPLES, [SCORED[0], SCORED[0]], {})
    assert (result.value, result.stderr, result.paper["gpt-175b"]) == (0.5, 0.5, 0.944)


def test_questions_about_one_paragraph_count_as_one_for_the_standard_error():
    def error(*groups):
        examples = [Example("", references=("red",), group=group) for group in groups]
        found = [Output(response=text) for text in ("red", "red", "owl", "owl")]
        return results.compute(TASKS["squadv2"], "", 0, examples, found, {})[0].stderr

    assert error("a", "b", "c", "d") == pytest.approx(50 / np.sqrt(3))
    assert error("a", "a", "b", "b") == pytest.approx(50)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"index": 2, "log_probs": [1, 2], "tokens": [1, 1]}', "index: expected 0 to 1, found 2"),
        ('{"index": 0, "log_probs": [1], "tokens": [1, 1]}', r"log_probs: expected 2 numbers, found \[1\]"),
        ('{"index": 0, "log_probs": [1, 2]}', "tokens: expected 2 numbers, found None"),
        ("[1]", "expected a JSON object, found list"),
        ('{"index"', "expected one JSON object, found"),
    ],
)
def test_a_wrong_line_of_outputs_is_named(tmp_path, line, message):
    (tmp_path / "o.jsonl").write_text(line + "\n")
    with pytest.raises(RecordError, match=f"o.jsonl:1: {message}"):
        read(tmp_path / "o.jsonl")
