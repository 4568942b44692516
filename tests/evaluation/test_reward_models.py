"""Scoring several answers per prompt gives the rewards of scoring each answer alone, in the same order."""

import numpy as np
import pytest

from instructjax.data.layouts import TokenizedRanking
from instructjax.evaluation import reward_models
from instructjax.rollout import episode
from tests import fakes

RNG = np.random.default_rng(0)
SIZES = [(3, (2, 5, 1)), (1, (4,)), (6, (1, 2)), (2, (3, 3, 3))]  # tokens of each prompt and of its answers
RANKINGS = [TokenizedRanking(RNG.integers(1, 16, p), [RNG.integers(1, 16, r) for r in answers]) for p, answers in SIZES]


@pytest.mark.parametrize("batch_size", [2, 64])
def test_rewards_equal_those_of_each_answer_alone(batch_size):
    model, params = fakes.scalar_model()
    found = reward_models.rewards(model, params, RANKINGS, pad_id=0, batch_size=batch_size)
    assert [rewards.dtype for rewards in found] == [np.float64] * len(RANKINGS)
    for ranking, rewards in zip(RANKINGS, found, strict=True):
        assert len(rewards) == len(ranking.responses)
        for response, reward in zip(ranking.responses, rewards, strict=True):
            row = np.concatenate([ranking.prompt, response])[None]
            alone = episode.score(model, params, row, np.ones_like(row), np.arange(row.size)[None])
            np.testing.assert_allclose(reward, alone[0], rtol=1e-4, atol=1e-5)
