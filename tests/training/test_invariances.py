"""What changes no loss and no gradient: padding, packing, order, and how a batch is cut.

Microbatches and devices are in test_step.py, scan, unrolling and remat in test_transformer.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax import losses
from instructjax.batch import Episodes, LMBatch, RankingBatch
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.rollout import episode, sampling
from instructjax.training import objectives
from instructjax.training.step import summed_gradient
from tests import tiny_models

MODEL, SCALAR = LanguageModel(tiny_models.CONFIG), ScalarModel(tiny_models.CONFIG)
POLICY, REWARD = tiny_models.params(MODEL), tiny_models.params(SCALAR, seed=1)
KEY = jax.random.key(0)
PAD = 0
RNG = np.random.default_rng(0)
TEXTS = [RNG.integers(2, 16, size=size) for size in (9, 4, 6, 2)]


def mean_gradient(loss, params, batch, microbatches=1):
    """(the mean loss, the gradient of it)."""
    pair, metrics = jax.jit(lambda p, b: summed_gradient(loss, p, b, KEY, microbatches=microbatches))(params, batch)
    return losses.mean(*metrics["loss"]), losses.mean(*pair)


def assert_same(found, expected):
    """In float32: a gradient of many terms, relative to its largest."""
    (value, gradient), (expected_value, expected_gradient) = found, expected
    np.testing.assert_allclose(value, expected_value, rtol=2e-6)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, float(jnp.abs(b).max())))


class TestLanguageModel:
    """Pretraining, SFT and the ptx term."""

    loss = staticmethod(objectives.language_model_loss(MODEL))

    @staticmethod
    def rows(length, start=0, pad=PAD, texts=TEXTS):
        """A text a row from column `start`; the first two tokens of each are a prompt."""
        shape = len(texts), length
        tokens, segments, positions = np.full(shape, pad), np.zeros(shape, int), np.zeros(shape, int)
        weights = np.zeros(shape, np.float32)
        for i, text in enumerate(texts):
            inside = slice(start, start + len(text))
            tokens[i, inside], segments[i, inside], positions[i, inside] = text, 1, np.arange(len(text))
            weights[i, start + 2 : start + len(text)] = 1.0
        return LMBatch(tokens, segments, positions, weights)

    expected = property(lambda self: mean_gradient(self.loss, POLICY, self.rows(9)))

    @pytest.mark.parametrize(("length", "start", "pad"), [(15, 0, PAD), (12, 3, PAD), (17, 5, 7)])
    def test_padding(self, length, start, pad):
        """More of it, on the left too, and whatever token it is."""
        assert_same(mean_gradient(self.loss, POLICY, self.rows(length, start, pad)), self.expected)

    def test_order(self):
        order = np.array([2, 0, 3, 1])
        batch = jax.tree.map(lambda x: x[order], self.rows(9))
        assert_same(mean_gradient(self.loss, POLICY, batch), self.expected)

    def test_packing(self):
        """Four texts of 9, 4, 6 and 2 tokens in two rows."""
        rows = self.rows(9)
        packed = []
        for members in ((0, 3), (1, 2)):
            columns = []
            for number, i in enumerate(members, start=1):
                size = len(TEXTS[i])
                columns.append([x[i, :size] * (number if n == 1 else 1) for n, x in enumerate(jax.tree.leaves(rows))])
            row = [np.concatenate(parts) for parts in zip(*columns, strict=True)]
            packed.append([np.pad(x, (0, 12 - len(x))) for x in row])
        batch = LMBatch(*(np.stack(column) for column in zip(*packed, strict=True)))
        assert int(batch.segments.max()) == 2
        assert_same(mean_gradient(self.loss, POLICY, batch), self.expected)


class TestRanking:
    loss = staticmethod(objectives.ranking_loss(SCALAR))
    SCORES = np.array([[3, 1, 2, 0], [0, 2, 2, 1]], np.float32)  # the second has a tie

    @classmethod
    def batch(cls, length=9):
        rows = TestLanguageModel.rows(length, texts=[*TEXTS, *(text[::-1] for text in TEXTS)])
        fields = (np.reshape(x, (2, 4, length)) for x in (rows.tokens, rows.segments, rows.positions))
        return RankingBatch(*fields, cls.SCORES, np.ones((2, 4), bool))

    expected = property(lambda self: mean_gradient(self.loss, REWARD, self.batch()))

    def test_padding(self):
        assert_same(mean_gradient(self.loss, REWARD, self.batch(15)), self.expected)

    def test_missing_answers(self):
        """Empty rows for answers that are not there."""
        batch = jax.tree.map(lambda x: np.pad(x, [(0, 0), (0, 2)] + [(0, 0)] * (x.ndim - 2)), self.batch())
        assert_same(mean_gradient(self.loss, REWARD, batch), self.expected)

    def test_order_of_prompts_and_of_answers(self):
        answers = np.array([[2, 0, 3, 1], [1, 3, 0, 2]])
        batch = jax.tree.map(lambda x: x[np.arange(2)[:, None], answers][::-1], self.batch())
        assert_same(mean_gradient(self.loss, REWARD, batch), self.expected)

    def test_all_answers_in_one_element_or_pair_by_pair(self):
        """The mean over a prompt's C(K, 2) pairs, a tie counting as a pair without loss."""
        batch = self.batch()
        pairs = [(p, i, j) for p in range(2) for i in range(4) for j in range(i)]
        elements = [jax.tree.map(lambda x, p=p, i=i, j=j: x[p][[i, j]], batch) for p, i, j in pairs]
        parts = jax.tree.map(lambda *leaves: np.stack(leaves), *elements)
        ties = sum(float(batch.scores[p, i] == batch.scores[p, j]) for p, i, j in pairs)

        def loss(params, batch, key):
            (total, weight), metrics = self.loss(params, batch, key)
            return (total, weight + ties), metrics  # an element of two that tie weighs nothing

        assert_same(mean_gradient(loss, REWARD, parts), self.expected)


class TestPPO:
    """The losses of policy and value, on episodes whose prompts are padded on the left and responses on the right."""

    PROMPTS, RESPONSES = TEXTS, [RNG.integers(2, 16, size=size) for size in (3, 5, 1, 4)]
    NOISE = RNG.normal(size=(4, 5, 4)).astype(np.float32)

    @classmethod
    def batch(cls, prompt_width=9, response_width=5):
        tokens = np.full((4, prompt_width + response_width), PAD)
        segments = np.zeros_like(tokens)
        for i, (prompt, response) in enumerate(zip(cls.PROMPTS, cls.RESPONSES, strict=True)):
            inside = slice(prompt_width - len(prompt), prompt_width + len(response))
            tokens[i, inside], segments[i, inside] = [*prompt, *response], 1
        mask = segments[:, prompt_width:].astype(np.float32)
        noise = np.pad(cls.NOISE, [(0, 0), (0, response_width - 5), (0, 0)])
        positions = np.asarray(sampling.positions_of(segments))
        episodes = Episodes(tokens, segments, positions, mask, log_probs=mask)
        return episodes, noise

    @staticmethod
    def policy_loss(params, batch, key):
        episodes, noise = batch
        log_probs = episode.response_log_probs(MODEL, params, episodes)
        old = jax.lax.stop_gradient(log_probs) + 0.2 * noise[..., 0]
        return losses.policy_loss(log_probs, old, noise[..., 1], episodes.response_mask, 0.2)

    @staticmethod
    def value_loss(params, batch, key):
        episodes, noise = batch
        values = episode.response_values(SCALAR, params, episodes)
        return losses.value_loss(values, noise[..., 2], noise[..., 3], episodes.response_mask, 0.2)

    both = pytest.mark.parametrize("name", ["policy_loss", "value_loss"])

    def gradient(self, name, batch, **keys):
        return mean_gradient(getattr(self, name), POLICY if name == "policy_loss" else REWARD, batch, **keys)

    @both
    @pytest.mark.parametrize("widths", [(14, 5), (9, 8), (12, 7)])
    def test_padding(self, name, widths):
        assert_same(self.gradient(name, self.batch(*widths)), self.gradient(name, self.batch()))

    @both
    def test_order(self, name):
        batch = jax.tree.map(lambda x: x[np.array([3, 1, 0, 2])], self.batch())
        assert_same(self.gradient(name, batch), self.gradient(name, self.batch()))

    @both
    @pytest.mark.parametrize("microbatches", [2, 4])
    def test_microbatches(self, name, microbatches):
        assert_same(self.gradient(name, self.batch(), microbatches=microbatches), self.gradient(name, self.batch()))

    @both
    def test_minibatches_add_up_to_the_whole(self, name):
        """Sums over two minibatches of unequal numbers of tokens, divided once."""
        loss, params = getattr(self, name), POLICY if name == "policy_loss" else REWARD
        sums = jax.jit(lambda b: summed_gradient(loss, params, b, KEY))
        halves = (jax.tree.map(lambda x: x[:2], self.batch()), jax.tree.map(lambda x: x[2:], self.batch()))
        parts = [sums(half) for half in halves]
        (gradient, weight), metrics = jax.tree.map(jnp.add, *parts)
        assert float(parts[0][0][1]) != float(parts[1][0][1])
        assert_same((losses.mean(*metrics["loss"]), losses.mean(gradient, weight)), self.gradient(name, self.batch()))
