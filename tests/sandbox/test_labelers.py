"""Tests that simulated labelers agree as often as people do, and that a policy can improve on SFT under them."""

import dataclasses

import numpy as np
import pytest

from instructjax import records
from instructjax.records import TABLE3_FLAGS
from instructjax.sandbox.answers import draw_manner, write_answer
from instructjax.sandbox.labelers import (
    compare,
    heldout_labelers,
    perceive,
    rank,
    rate,
    training_labelers,
)
from instructjax.sandbox.quality import quality, table3_fields
from instructjax.sandbox.tasks import write_prompt

TRAINING, HELDOUT = training_labelers(), heldout_labelers()
COUNT = 4000


def _choose(labelers, rng):
    return labelers[rng.integers(len(labelers))]


def _like_sft(prompt: str, rng: np.random.Generator) -> str:
    """Writes a demonstration, which stands in for a sample of an SFT model."""
    labeler = _choose(TRAINING, rng)
    return write_answer(prompt, rng, draw_manner(rng, labeler.care, labeler.flaw_rate))


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(0)
    prompts = [write_prompt(rng) for _ in range(COUNT)]
    pairs = [(_like_sft(prompt, rng), _like_sft(prompt, rng)) for prompt in prompts]
    return prompts, pairs


def _agreement(study, first, second) -> float:
    rng, agreed = np.random.default_rng(1), []
    for prompt, (a, b) in zip(*study, strict=True):
        votes = [compare(prompt, a, b, _choose(group, rng), rng) for group in (first, second)]
        if 0.5 not in votes:
            agreed.append(votes[0] == votes[1])
    assert len(agreed) > 0.6 * COUNT  # most pairs are not ties
    return float(np.mean(agreed))


def test_labelers_agree_on_about_73_percent_of_untied_pairs(study):
    training, heldout = _agreement(study, TRAINING, TRAINING), _agreement(study, HELDOUT, HELDOUT)
    assert 0.69 < training < 0.77
    assert abs(heldout - training) < 0.05


def test_less_noise_raises_the_agreement(study):
    quiet = training_labelers(noise=0.05)
    assert _agreement(study, quiet, quiet) > _agreement(study, TRAINING, TRAINING) + 0.08


def test_sft_like_answers_vary_and_leave_room_for_improvement(study):
    prompts, pairs = study
    values = np.array([quality(prompt, a) for prompt, (a, _) in zip(prompts, pairs, strict=True)])
    assert values.std() > 0.2
    assert 1 - values.mean() > 1.5 * values.std()


def test_best_of_16_answers_beat_sft_like_answers(study):
    rng, wins = np.random.default_rng(2), []
    for prompt, (a, _) in list(zip(*study, strict=True))[:1000]:
        best = max((_like_sft(prompt, rng) for _ in range(16)), key=lambda answer: quality(prompt, answer))
        wins.append(compare(prompt, best, a, _choose(HELDOUT, rng), rng))
    assert np.mean(wins) > 0.78


def test_identical_texts_always_tie():
    prompt, rng = "what does the owl eat ?", np.random.default_rng(0)
    jumpy = dataclasses.replace(TRAINING[0], noise=5.0, tie_threshold=0.0)
    for _ in range(50):
        assert compare(prompt, "seeds .", " seeds  .", jumpy, rng) == 0.5
        first, _, third = perceive(prompt, ("seeds .", "fish .", "seeds ."), jumpy, rng)
        assert first == third
        ranking = rank(prompt, ("seeds .", "fish .", "seeds ."), jumpy, rng)
        assert ranking.scores[0] == ranking.scores[2] != ranking.scores[1]
    assert rank(prompt, ("seeds .", "seeds ."), jumpy, rng) is None


def test_a_labeler_without_noise_or_ties_ranks_by_quality():
    rng = np.random.default_rng(3)
    exact = dataclasses.replace(TRAINING[0], noise=0.0, tie_threshold=0.0, flag_error=0.0)
    for _ in range(100):
        prompt = write_prompt(rng)
        answers = [_like_sft(prompt, rng) for _ in range(6)]
        qualities = perceive(prompt, answers, exact, rng)
        ranking = rank(prompt, answers, exact, rng)
        if ranking is None:
            assert len(set(qualities)) == 1
            continue
        for i in range(6):
            for j in range(6):
                assert np.sign(ranking.scores[i] - ranking.scores[j]) == np.sign(qualities[i] - qualities[j])
            assert {k: ranking.metadata[i][k] for k in TABLE3_FLAGS} == table3_fields(prompt, answers[i])


def test_a_level_spans_less_than_the_tie_threshold():
    rng = np.random.default_rng(4)
    labeler = dataclasses.replace(TRAINING[0], noise=0.0, tie_threshold=0.1)
    for _ in range(100):
        prompt = write_prompt(rng)
        answers = [_like_sft(prompt, rng) for _ in range(9)]
        qualities, ranking = perceive(prompt, answers, labeler, rng), rank(prompt, answers, labeler, rng)
        if ranking is not None:
            for level in set(ranking.scores):
                members = qualities[np.array(ranking.scores) == level]
                assert np.ptp(members) < 0.1


def test_rankings_are_valid_records():
    rng = np.random.default_rng(5)
    for k in range(4, 10):
        prompt = write_prompt(rng)
        ranking = rank(prompt, [_like_sft(prompt, rng) for _ in range(k)], TRAINING[k], rng)
        assert records.parse(records.to_json(ranking), records.Ranking) == ranking
        assert ranking.labeler == TRAINING[k].name
        assert all(1 <= entry["overall_quality"] <= 7 and len(entry) == 12 for entry in ranking.metadata)


def test_likert_scores_follow_quality():
    rng = np.random.default_rng(6)
    prompt = "what does the owl eat ?"
    good, bad = (
        np.mean([rate(prompt, answer, labeler, rng)["overall_quality"] for labeler in TRAINING])
        for answer in ("sure . the owl eats seeds . it can fly . glad to help .", "what does the fox eat ?")
    )
    assert good > 5.5 and bad < 2


def test_labelers_depend_only_on_their_group_and_seed():
    assert [labeler.name for labeler in TRAINING + HELDOUT] == sorted(
        {labeler.name for labeler in TRAINING + HELDOUT}, key=lambda name: (name[0] != "t", name)
    )
    again = training_labelers()
    assert all((a.weights == b.weights).all() and a.care == b.care for a, b in zip(TRAINING, again, strict=True))
    assert not (training_labelers(seed=1)[0].weights == TRAINING[0].weights).all()
