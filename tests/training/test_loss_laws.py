"""Choices that do not change losses and gradients of language models and reward models, in float64.

These are padding, packing, order, the split of a batch, and the execution of layers. PPO's losses are
in algorithms/test_ppo_laws.py.
"""

import functools

import numpy as np
import pytest
from hypothesis import given, settings

from instructjax.data.layouts import TokenizedRanking
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.testing import laws, strategies
from instructjax.training import objectives
from tests import fakes, oracles

CONFIG = fakes.float64_config()
POLICY, SCALAR = fakes.float64_params(LanguageModel), fakes.float64_params(ScalarModel, seed=1)

examples = settings(max_examples=10, deadline=None)
layers = pytest.mark.parametrize(
    "config", [fakes.float64_config(**change) for change in fakes.LAYERS], ids=fakes.LAYER_NAMES
)


@functools.cache
def language_model_loss(config=CONFIG):
    return objectives.language_model_loss(LanguageModel(config))


@functools.cache
def ranking_loss(config=CONFIG):
    return objectives.ranking_loss(ScalarModel(config))


class TestLanguageModel:
    """Pretraining, SFT and the ptx term."""

    texts = strategies.packed_texts(rows=4, length=12)

    @examples
    @given(texts)
    def test_padding(self, batch):
        laws.padding_is_ignored(language_model_loss(), POLICY, batch)

    @examples
    @given(texts)
    def test_order(self, batch):
        laws.permutation_of_rows(language_model_loss(), POLICY, batch)

    @examples
    @given(texts)
    def test_packing(self, batch):
        laws.packing_is_ignored(language_model_loss(), POLICY, batch)

    @examples
    @given(texts)
    def test_microbatches(self, batch):
        laws.microbatches_agree(language_model_loss(), POLICY, batch, [(2, 1), (1, 2)])

    @layers
    @examples
    @given(batch=texts)
    def test_layers(self, config, batch):
        laws.losses_agree(language_model_loss(config), language_model_loss(), POLICY, batch)


class TestRanking:
    """The reward model."""

    rankings = strategies.packed_rankings(rows=2, length=24)
    TEXTS = [np.random.default_rng(seed).integers(2, 16, size=size) for seed, size in enumerate((9, 4, 6, 2))]
    RANKINGS = (
        TokenizedRanking(TEXTS[1], [TEXTS[0], TEXTS[2], TEXTS[3], TEXTS[1]], (3.0, 1.0, 2.0, 0.0)),
        TokenizedRanking(TEXTS[3], [text[::-1] for text in TEXTS], (0.0, 2.0, 2.0, 1.0)),  # with a tie
    )

    @classmethod
    def batch(cls, rankings=RANKINGS, answers=4):
        """Returns a batch with one ranking per row."""
        return oracles.packed([[ranking] for ranking in rankings], length=26, prompts=1, answers=answers)

    def test_one_forward_pass_per_prompt(self):
        naive = oracles.naive(self.RANKINGS, length=13, answers=4)
        laws.losses_agree(ranking_loss(), oracles.naive_loss(ScalarModel(CONFIG)), SCALAR, self.batch(), naive)

    @examples
    @given(rankings)
    def test_padding(self, batch):
        laws.padding_is_ignored(ranking_loss(), SCALAR, batch)

    @examples
    @given(rankings)
    def test_packing(self, batch):
        laws.packing_is_ignored(ranking_loss(), SCALAR, batch)

    def test_missing_answers(self):
        """The batch has places for missing answers."""
        laws.losses_agree(ranking_loss(), ranking_loss(), SCALAR, self.batch(answers=6), self.batch())

    def test_order_of_prompts_and_of_answers(self):
        rankings = []
        for ranking, order in zip(self.RANKINGS, ([2, 0, 3, 1], [1, 3, 0, 2]), strict=True):
            responses, scores = [ranking.responses[k] for k in order], [ranking.scores[k] for k in order]
            rankings.append(TokenizedRanking(ranking.prompt, responses, scores))
        laws.losses_agree(ranking_loss(), ranking_loss(), SCALAR, self.batch(rankings[::-1]), self.batch())

    def test_all_answers_in_one_element_or_pair_by_pair(self):
        """The mean is over a prompt's C(K, 2) pairs; a tie counts as a pair without loss."""
        pairs = [
            TokenizedRanking(
                ranking.prompt, [ranking.responses[k] for k in (i, j)], [ranking.scores[k] for k in (i, j)]
            )
            for ranking in self.RANKINGS
            for i in range(4)
            for j in range(i)
        ]
        ties = sum(float(pair.scores[0] == pair.scores[1]) for pair in pairs)
        share = len(self.RANKINGS) / len(pairs)  # a prompt weighs 1

        def loss(params, batch, key):
            (total, weight), metrics = ranking_loss()(params, batch, key)
            return (share * total, share * (weight + ties)), metrics  # an element of two tied answers has weight 0

        laws.losses_agree(loss, ranking_loss(), SCALAR, self.batch(pairs, answers=2), self.batch())

    @examples
    @given(rankings)
    def test_microbatches(self, batch):
        laws.microbatches_agree(ranking_loss(), SCALAR, batch, [(2, 1), (1, 2)])

    def test_microbatches_of_different_weight(self):
        """One prompt has preferences, the other only ties: they weigh 1 and 0."""
        batch = self.batch()
        batch.scores[1] = 1.0
        laws.microbatches_agree(ranking_loss(), SCALAR, batch, [(2, 1)])

    @layers
    @examples
    @given(batch=rankings)
    def test_layers(self, config, batch):
        laws.losses_agree(ranking_loss(config), ranking_loss(), SCALAR, batch)
