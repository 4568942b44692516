"""What changes no loss and no gradient of a language model or a reward model, in float64.

Padding, packing, order, how a batch is cut, and how the layers are run. PPO's losses are in
rollout/test_ppo_invariances.py.
"""

import functools

import jax
import numpy as np
import pytest

from instructjax.batch import LMBatch
from instructjax.data.layouts import TokenizedRanking
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.training import objectives
from tests import naive_rankings
from tests.float64_gradients import CONFIG, LAYERS, PAD, POLICY, SCALAR, TEXTS, assert_same, changed, mean


def rows(length, start=0, pad=PAD, texts=TEXTS):
    """A text a row from column `start`; the first two tokens of each are a prompt."""
    shape = len(texts), length
    tokens, segments, positions = np.full(shape, pad), np.zeros(shape, int), np.zeros(shape, int)
    weights = np.zeros(shape)
    for i, text in enumerate(texts):
        inside = slice(start, start + len(text))
        tokens[i, inside], segments[i, inside], positions[i, inside] = text, 1, np.arange(len(text))
        weights[i, start + 2 : start + len(text)] = 1.0
    return LMBatch(tokens, segments, positions, weights)


padding = pytest.mark.parametrize(("start", "pad"), [(0, PAD), (6, PAD), (3, 7)], ids=["right", "left", "both"])
layers = pytest.mark.parametrize("change", LAYERS, ids=["unrolled", "rematerialised"])


class TestLanguageModel:
    """Pretraining, SFT and the ptx term."""

    loss = staticmethod(objectives.language_model_loss(LanguageModel(CONFIG)))

    def mean(self, batch, **keys):
        return mean(self.loss, POLICY, batch, **keys)

    @functools.cached_property
    def expected(self):
        return self.mean(rows(9))

    @padding
    def test_padding(self, start, pad):
        """More of it, on the left too, and whatever token it is."""
        assert_same(self.mean(rows(15, start, pad)), self.expected)

    def test_order(self):
        assert_same(self.mean(jax.tree.map(lambda x: x[[2, 0, 3, 1]], rows(9))), self.expected)

    def test_packing(self):
        """Four texts of 9, 4, 6 and 2 tokens in two rows."""
        separate, packed = rows(9), []
        for members in ((0, 3), (1, 2)):
            columns = []
            for number, i in enumerate(members, start=1):
                size = len(TEXTS[i])
                row = jax.tree.map(lambda x, i=i, size=size: x[i, :size], separate)
                columns.append(jax.tree.leaves(row.replace(segments=number * row.segments)))
            joined = [np.concatenate(parts) for parts in zip(*columns, strict=True)]
            packed.append([np.pad(x, (0, 12 - len(x))) for x in joined])
        batch = LMBatch(*(np.stack(column) for column in zip(*packed, strict=True)))
        assert batch.segments.max() == 2
        assert_same(self.mean(batch), self.expected)

    def test_microbatches(self):
        """Of 9 and of 4 tokens to predict."""
        assert_same(self.mean(rows(9), microbatches=2), self.expected)

    @layers
    def test_layers(self, change):
        loss = objectives.language_model_loss(LanguageModel(changed(**change)))
        assert_same(mean(loss, POLICY, rows(9)), self.expected)


class TestRanking:
    """The reward model. What is expected is computed the naive way, an answer a row."""

    loss = staticmethod(objectives.ranking_loss(ScalarModel(CONFIG)))
    RANKINGS = (
        TokenizedRanking(TEXTS[1], [TEXTS[0], TEXTS[2], TEXTS[3], TEXTS[1]], (3.0, 1.0, 2.0, 0.0)),
        TokenizedRanking(TEXTS[3], [text[::-1] for text in TEXTS], (0.0, 2.0, 2.0, 1.0)),  # with a tie
    )

    @classmethod
    def batch(cls, rows=None, length=26, **keys):
        rows = [[ranking] for ranking in cls.RANKINGS] if rows is None else rows
        return naive_rankings.packed(rows, **{"length": length, "prompts": 1, "answers": 4, "pad": PAD} | keys)

    def mean(self, batch, **keys):
        return mean(self.loss, SCALAR, batch, **keys)

    @functools.cached_property
    def expected(self):
        naive = naive_rankings.naive(self.RANKINGS, length=13, answers=4)
        return mean(naive_rankings.naive_loss(ScalarModel(CONFIG)), SCALAR, naive)

    def test_one_forward_pass_a_prompt(self):
        assert_same(self.mean(self.batch()), self.expected)

    @padding
    def test_padding(self, start, pad):
        batch = self.batch(length=40, pad=pad)
        shifted = {name: np.roll(getattr(batch, name), start, axis=1) for name in ("tokens", "segments", "branches")}
        shifted |= {"positions": np.roll(batch.positions, start, axis=1), "ends": batch.ends + start}
        assert_same(self.mean(batch.replace(**shifted)), self.expected)

    def test_packing(self):
        """Two rankings in a row, and a row of padding."""
        assert_same(self.mean(self.batch([self.RANKINGS, []], length=50, prompts=3)), self.expected)

    def test_missing_answers(self):
        """Places for answers that are not there."""
        assert_same(self.mean(self.batch(answers=6)), self.expected)

    def test_order_of_prompts_and_of_answers(self):
        rankings = []
        for ranking, order in zip(self.RANKINGS, ([2, 0, 3, 1], [1, 3, 0, 2]), strict=True):
            responses, scores = [ranking.responses[k] for k in order], [ranking.scores[k] for k in order]
            rankings.append(TokenizedRanking(ranking.prompt, responses, scores))
        assert_same(self.mean(self.batch([[ranking] for ranking in reversed(rankings)])), self.expected)

    def test_all_answers_in_one_element_or_pair_by_pair(self):
        """The mean over a prompt's C(K, 2) pairs, a tie counting as a pair without loss."""
        pairs = [
            TokenizedRanking(
                ranking.prompt, [ranking.responses[k] for k in (i, j)], [ranking.scores[k] for k in (i, j)]
            )
            for ranking in self.RANKINGS
            for i in range(4)
            for j in range(i)
        ]
        ties = sum(float(pair.scores[0] == pair.scores[1]) for pair in pairs)

        def loss(params, batch, key):
            (total, weight), metrics = self.loss(params, batch, key)
            return (total, weight + ties), metrics  # an element of two that tie weighs nothing

        assert_same(mean(loss, SCALAR, self.batch([[pair] for pair in pairs], answers=2)), self.expected)

    def test_microbatches(self):
        """One prompt has preferences, the other only ties: they weigh 1 and 0."""
        batch = self.batch()
        batch.scores[1] = 1.0
        assert_same(self.mean(batch, microbatches=2), self.mean(batch))

    @layers
    def test_layers(self, change):
        loss = objectives.ranking_loss(ScalarModel(changed(**change)))
        assert_same(mean(loss, SCALAR, self.batch()), self.expected)
