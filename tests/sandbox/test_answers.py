"""Tests that the best answers are nearly perfect, flawed answers are worse, and all answers are short."""

import numpy as np
import pytest

from instructjax.sandbox.answers import FLAWS, Manner, draw_manner, write_answer
from instructjax.sandbox.quality import MAX_RESPONSE_WORDS, assess, quality, table3_fields
from instructjax.sandbox.tasks import write_prompt

RNG = np.random.default_rng(0)
PROMPTS = [write_prompt(RNG) for _ in range(800)]


def _mean_quality(manner: Manner, seed: int = 1) -> float:
    rng = np.random.default_rng(seed)
    return float(np.mean([quality(prompt, write_answer(prompt, rng, manner)) for prompt in PROMPTS]))


def test_the_best_manner_answers_every_prompt_nearly_perfectly():
    rng = np.random.default_rng(1)
    for prompt in PROMPTS:
        answer = write_answer(prompt, rng)
        assert quality(prompt, answer) > 0.9, (prompt, answer, assess(prompt, answer))
        fields = table3_fields(prompt, answer)
        assert fields.pop("satisfies_constraint") and not any(fields.values()), (prompt, answer, fields)


def test_answers_in_any_manner_respect_the_length_limit():
    rng = np.random.default_rng(2)
    for prompt in PROMPTS:
        for care, flaw_rate in ((0.1, 1.0), (0.9, 1.0), (0.9, 0.0)):
            words = write_answer(prompt, rng, draw_manner(rng, care, flaw_rate)).split()
            assert 0 < len(words) <= MAX_RESPONSE_WORDS


@pytest.mark.parametrize("flaw", FLAWS)
def test_every_flaw_lowers_the_quality(flaw):
    plain = Manner(fullness=0.5, opens=False, closes=True)
    flawed = Manner(fullness=0.5, opens=False, closes=True, flaws=frozenset([flaw]))
    assert _mean_quality(flawed) < _mean_quality(plain) - 0.05


def test_opening_closing_and_fullness_each_raise_the_quality():
    plain = _mean_quality(Manner(fullness=0.0, opens=False, closes=False))
    for richer in (Manner(0.0, True, False), Manner(0.0, False, True), Manner(1.0, False, False)):
        assert _mean_quality(richer) > plain + 0.05


def test_an_answer_depends_only_on_the_prompt_and_the_generator():
    first = [write_answer(prompt, np.random.default_rng(3)) for prompt in PROMPTS]
    assert first == [write_answer(prompt, np.random.default_rng(3)) for prompt in PROMPTS]
