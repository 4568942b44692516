"""Each law holds for a correct loss and catches its bugs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax import losses
from instructjax.batch import Episodes, LMBatch, RankingBatch
from instructjax.data.layouts import TokenizedRanking, ranking_row
from instructjax.testing import laws
from instructjax.training.metrics import Maximum, Mean

B, R, K = 4, 5, 3
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(2, B, R))
MASK = (np.arange(R) < np.array([5, 2, 0, 1])[:, None]).astype(np.float32)
REWARDS, VALID = RNG.normal(size=(B, K)), np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]], bool)
SCORES = np.array([[2, 1, 0], [0, 1, 5], [1, 1, 1], [2, 2, 0]])
RANKINGS = REWARDS, SCORES, VALID


def square(x, y, mask):
    """Computes a correct loss: the squared error over the tokens of the mask."""
    return losses.masked_sum(jnp.square(jnp.where(mask > 0, x - y, 0)), mask)


def broken(law, *arguments, says, **keys):
    with pytest.raises(AssertionError) as error:
        law(*arguments, **keys)
    message = str(error.value)
    assert message.startswith(f"{law.__name__}: "), message
    assert "\ninput" in message, message
    assert says in message, message


class TestAgreement:
    @staticmethod
    def loop(x, y, mask):
        places = [p for p in np.ndindex(*mask.shape) if mask[p]]
        return sum((x[p] - y[p]) ** 2 for p in places), len(places)

    def test_holds(self):
        laws.agrees_with(square, self.loop, (X, Y, MASK))

    def test_catches_a_wrong_factor(self):
        half = lambda x, y, mask: losses.masked_sum(jnp.square(x - y) / 2, mask)  # noqa: E731
        broken(laws.agrees_with, half, self.loop, (X, Y, MASK), says="next to loop: result[0]: expected ")

    def test_catches_float32_on_the_way(self):
        narrow = lambda x, y, mask: square(x.astype(jnp.float32), y.astype(jnp.float32), mask)  # noqa: E731
        broken(laws.agrees_with, narrow, self.loop, (X, Y, MASK), says="apart by")

    def test_catches_a_missing_result_and_nan(self):
        broken(laws.agrees_with, lambda *a: square(*a)[0], self.loop, (X, Y, MASK), says="expected 2 results, found 1")
        broken(laws.agrees_with, lambda *a: (square(*a)[0] * jnp.nan, 8), self.loop, (X, Y, MASK), says="found nan")


class TestRankings:
    @pytest.mark.parametrize("law", [laws.permutation_of_answers, laws.shift_of_rewards, laws.order_of_scores])
    def test_holds(self, law):
        law(losses.ranking_loss, RANKINGS)

    def test_catches_a_tie_counted_as_a_win_of_the_first_answer(self):
        def loss(rewards, scores, valid):
            return losses.ranking_loss(rewards, scores - 1e-3 * jnp.arange(K), valid)

        broken(laws.permutation_of_answers, loss, RANKINGS, says="answers in another order (the first two swapped)")

    def test_catches_an_answer_that_is_always_valid(self):
        def loss(rewards, scores, valid):
            return losses.ranking_loss(rewards, scores, valid.at[:, 0].set(True))

        rankings = REWARDS, SCORES, VALID[:, ::-1]
        broken(laws.permutation_of_answers, loss, rankings, says="answers in another order")

    def test_catches_a_penalty_on_rewards(self):
        def loss(rewards, scores, valid):
            total, weight = losses.ranking_loss(rewards, scores, valid)
            return total + 0.01 * jnp.sum(jnp.square(rewards)), weight

        broken(laws.shift_of_rewards, loss, RANKINGS, says="a constant added to the rewards of a prompt: result[0]")

    def test_catches_a_margin_from_the_scores(self):
        def loss(rewards, scores, valid):
            return losses.ranking_loss(rewards - 0.1 * scores, scores, valid)

        broken(laws.order_of_scores, loss, RANKINGS, says="scores replaced by the squares of their ranks")


class TestMasks:
    ARRAYS = X, Y, MASK

    @pytest.mark.parametrize("law", [laws.mask_is_respected, laws.empty_mask_gives_zeros])
    @pytest.mark.parametrize(
        ("loss", "arrays"),
        [
            (square, ARRAYS),
            (functools.partial(losses.gae, discount=0.9, gae_lambda=0.8), ARRAYS),
            (losses.whiten, (X, MASK)),
            (functools.partial(losses.kl_rewards, beta=0.1), (X[:, 0], X, Y, MASK)),
            (losses.ranking_loss, RANKINGS),
            (losses.masked_sum, (X[:, 0], MASK[:, 1])),
        ],
        ids=["square", "gae", "whiten", "kl_rewards", "ranking_loss", "one axis"],
    )
    def test_holds(self, law, loss, arrays):
        law(loss, arrays)

    def test_catches_multiplying_by_the_mask(self):
        product = lambda x, y, mask: (jnp.sum(jnp.square(x - y) * mask), jnp.sum(mask))  # noqa: E731
        broken(laws.mask_is_respected, product, self.ARRAYS, says="nan where the mask is 0: result")

    def test_catches_nan_in_the_gradient_only(self):
        """The loss applies `where` after a function that overflows."""
        late = lambda x, mask: (jnp.sum(jnp.where(mask > 0, jnp.square(x) * x, 0)), jnp.sum(mask))  # noqa: E731
        arrays = X, MASK
        broken(laws.mask_is_respected, late, arrays, says="nan where the mask is 0: result['gradient']")

    def test_catches_integers_that_are_read(self):
        read = lambda scores, mask: losses.masked_sum(scores - scores.mean(), mask)  # noqa: E731
        broken(laws.mask_is_respected, read, (SCORES, VALID), says="where the mask is 0")

    def test_catches_numbers_left_outside_the_mask(self):
        centered = lambda x, mask: jnp.where(mask > 0, x, 0) - losses.masked_moments(x, mask)[0]  # noqa: E731
        broken(laws.mask_is_respected, centered, (X, MASK), says="0 where the mask is 0: result['value'][1, ")

    def test_catches_a_weight_that_counts_padding(self):
        counts = lambda x, y, mask: (square(x, y, mask)[0] / mask.size, jnp.sum(mask))  # noqa: E731
        broken(laws.mask_is_respected, counts, self.ARRAYS, says="more rows and columns with mask 0")

    def test_catches_a_division_by_an_empty_mask(self):
        divided = lambda x, y, mask: square(x, y, mask)[0] / jnp.sum(mask)  # noqa: E731
        broken(laws.empty_mask_gives_zeros, divided, self.ARRAYS, says="expected 0, found nan")

    def test_catches_a_loss_of_an_empty_mask(self):
        biased = lambda x, y, mask: (square(x, y, mask)[0] + 1.0, jnp.sum(mask))  # noqa: E731
        broken(laws.empty_mask_gives_zeros, biased, self.ARRAYS, says="expected 0, found 1")


class TestRows:
    @staticmethod
    def with_metrics(x, y, mask):
        pair = square(x, y, mask)
        largest = Maximum(jnp.max(jnp.where(mask > 0, x, -jnp.inf)))
        return pair, {"mean": Mean(*pair), "largest": largest, "pair": pair}

    def test_holds(self):
        laws.rows_add_up(self.with_metrics, (X, Y, MASK))

    def test_catches_a_mean(self):
        mean = lambda *arrays: (losses.mean(*square(*arrays)), jnp.ones(()))  # noqa: E731
        broken(laws.rows_add_up, mean, (X, Y, MASK), says="the sum over rows: result[0]")

    def test_catches_whitening_in_the_loss(self):
        whitened = lambda x, y, mask: square(losses.whiten(x, mask), y, mask)  # noqa: E731
        broken(laws.rows_add_up, whitened, (X, Y, MASK), says="the sum over rows: result[0]")


class TestDevices:
    @pytest.mark.parametrize("function", [losses.masked_moments, losses.whiten])
    def test_holds(self, function):
        laws.devices_agree(function, (X, MASK))

    def test_catches_a_mean_of_means(self):
        def moment(x, mask, axis_name=None):
            mean = losses.mean(*losses.masked_sum(x, mask))
            return mean if axis_name is None else jax.lax.pmean(mean, axis_name)

        broken(laws.devices_agree, moment, (X, MASK), says="a row per device")

    def test_catches_rows_that_use_their_own_device_only(self):
        own = lambda x, mask, axis_name=None: losses.whiten(x, mask)  # noqa: E731
        broken(laws.devices_agree, own, (X, MASK), says="a row per device")


class TestGradient:
    def test_holds(self):
        laws.gradient_is_finite_difference(square, X, Y, MASK)
        params = {"w": np.float32(0.3), "b": X.astype(np.float32)}
        laws.gradient_is_finite_difference(lambda p, y: jnp.sum(jnp.sin(p["w"] * p["b"] - y)), params, Y)

    def test_catches_a_stopped_gradient(self):
        stopped = lambda x, y, mask: square(x, jax.lax.stop_gradient(x) + y, mask)  # noqa: E731
        half = lambda x, y, mask: square(x, 0.5 * jax.lax.stop_gradient(x), mask)  # noqa: E731
        for loss in (stopped, half):
            broken(laws.gradient_is_finite_difference, loss, X, Y, MASK, says="slope by the input")

    def test_names_the_array_with_the_wrong_gradient(self):
        def loss(params):
            return jnp.sum(jnp.square(params["right"])) + jnp.sum(jnp.square(jax.lax.stop_gradient(params["wrong"])))

        broken(laws.gradient_is_finite_difference, loss, {"right": X, "wrong": Y}, says="slope by the input['wrong']")


# Objectives, of a table of logits instead of a network: token t is predicted from token t - 1 of its segment.

V = 9
TEXTS = [RNG.integers(1, V, size=size) for size in (5, 3, 1, 4)]


def table(dtype=np.float64):
    return {"table": np.random.default_rng(1).normal(size=(V, V)).astype(dtype)}


def texts():
    """Returns two rows of two texts each, with different numbers of tokens."""
    length = 9
    tokens, segments, positions = np.zeros((3, 2, length), np.int32)
    weights = np.zeros((2, length), np.float32)
    for row, members in enumerate(([0, 1], [2, 3])):
        start = 0
        for number, i in enumerate(members, start=1):
            inside = slice(start, start + len(TEXTS[i]))
            tokens[row, inside], segments[row, inside] = TEXTS[i], number
            positions[row, inside] = np.arange(len(TEXTS[i]))
            weights[row, start + 1 : inside.stop] = 1
            start = inside.stop
    return LMBatch(tokens, segments, positions, weights)


def bigram(params, batch, key):
    """Computes a correct loss of rows of texts."""
    log_probs = losses.log_probs(params["table"][batch.tokens[:, :-1]], batch.tokens[:, 1:])
    same = batch.segments[:, 1:] == batch.segments[:, :-1]
    pair = losses.cross_entropy(jnp.where(same, log_probs, 0), batch.weights[:, 1:])
    return pair, {"largest": Maximum(jnp.max(jnp.where(batch.weights[:, 1:] > 0, log_probs, -jnp.inf)))}


def unmasked(params, batch, key):
    """Reads the token before the first one of a segment, and the tokens of padding."""
    log_probs = losses.log_probs(params["table"][batch.tokens[:, :-1]], batch.tokens[:, 1:])
    return (-jnp.sum(log_probs), jnp.sum(batch.weights)), {}


def bag(params, batch, key):
    """Sees all texts of a row at once."""
    counts = jax.nn.one_hot(batch.tokens, V) * (batch.segments > 0)[..., None]
    logits = jnp.broadcast_to((counts.sum(1) @ params["table"])[:, None], (*batch.tokens.shape, V))
    return losses.cross_entropy(losses.log_probs(logits, batch.tokens), batch.weights), {}


def mean_of_rows(params, batch, key):
    total, weight = bigram(params, batch, key)[0]
    return (total / weight, jnp.ones(())), {}


def first_row_only(params, batch, key):
    return bigram(params, jax.tree.map(lambda x: x[:1], batch), key)


def absolute(params, batch, key):
    """Reads the column of a token instead of its position in the text."""
    scale = jnp.arange(1.0, batch.tokens.shape[1] + 1)
    return losses.masked_sum(scale * params["table"][0, batch.tokens], batch.weights), {}


class TestObjectives:
    LAWS = laws.permutation_of_rows, laws.padding_is_ignored, laws.packing_is_ignored, laws.microbatches_agree

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("law", LAWS)
    def test_holds(self, law, dtype):
        law(bigram, table(dtype), texts(), *([[(2, 1), (1, 2)]] if law is laws.microbatches_agree else []))

    @pytest.mark.parametrize(
        ("law", "loss", "says"),
        [
            (laws.permutation_of_rows, first_row_only, "rows in another order"),
            (laws.padding_is_ignored, unmasked, "token"),
            (laws.padding_is_ignored, absolute, "6 columns of padding more on the left"),
            (laws.packing_is_ignored, unmasked, "several segments in a row"),
            (laws.packing_is_ignored, bag, "several segments in a row"),
        ],
    )
    def test_catches(self, law, loss, says):
        broken(law, loss, table(), texts(), says=says)

    @pytest.mark.parametrize("cut", [(2, 1), (1, 2)])
    def test_catches_a_mean_of_means(self, cut):
        says = f"{cut[0]} microbatches on each of {cut[1]} devices"
        broken(laws.microbatches_agree, mean_of_rows, table(), texts(), [cut], says=says)

    def test_catches_a_metric_that_was_divided(self):
        def loss(params, batch, key):
            pair, _ = bigram(params, batch, key)
            return pair, {"mean": Mean(losses.mean(*pair), jnp.ones(()))}

        broken(laws.microbatches_agree, loss, table(), texts(), [(2, 1)], says="result['mean'].total")

    def test_parts(self):
        rows = [jax.tree.map(lambda x, i=i: x[i : i + 1], texts()) for i in (0, 1)]
        laws.parts_add_up(bigram, table(), rows, texts())
        broken(laws.parts_add_up, mean_of_rows, table(), rows, texts(), says="a batch in 2 parts")

    def test_two_losses(self):
        def constant(params, batch, key):
            """Computes the value of `bigram` without its gradient."""
            return bigram(jax.lax.stop_gradient(params), batch, key)

        laws.losses_agree(bigram, bigram, table(), texts())
        alone = jax.tree.map(lambda x: x[::-1], texts())
        laws.losses_agree(bigram, bigram, table(), texts(), alone)
        broken(laws.losses_agree, constant, bigram, table(), texts(), says="result['gradient']['table']")


class TestRewriting:
    """Rankings and episodes are padded and unpacked as the layouts lay them out."""

    RANKINGS = [
        TokenizedRanking([3, 4], [[5], [6, 7]], [1.0, 0.0]),
        TokenizedRanking([8], [[2, 3], [4], [5]], [1.0, 1.0, 0.0]),
    ]

    @classmethod
    def row(cls, rankings, length=14, pad=0):
        row = ranking_row(rankings, length=length, max_prompts=2, max_responses=3, pad_id=pad)
        return jax.tree.map(lambda x: x[None], row)

    def test_unpacked_rankings(self):
        parts = laws.rewriting.unpacked(self.row(self.RANKINGS))
        for part, ranking in zip(parts, self.RANKINGS, strict=True):
            jax.tree.map(np.testing.assert_array_equal, part, self.row([ranking]))

    def test_padded_rankings(self):
        found = laws.rewriting.padded(self.row(self.RANKINGS), 0, 4, 7)
        expected = self.row(self.RANKINGS, length=18, pad=7)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        left = laws.rewriting.padded(self.row(self.RANKINGS), 4, 0, 7)
        for b, s, k in zip(*np.nonzero(left.valid), strict=True):
            assert left.tokens[b, left.ends[b, s, k]] == self.RANKINGS[s].responses[k][-1]

    def test_padded_episodes(self):
        segments = np.array([[0, 1, 1, 1, 0]])
        episodes = Episodes(
            3 * segments, segments, segments, segments[:, 2:] * 1.0, -0.5 * segments[:, 2:], np.zeros(1)
        )
        found = laws.rewriting.padded(episodes, 2, 1, 9)
        assert found.tokens.tolist() == [[9, 9, 9, 3, 3, 3, 9, 9]]
        assert found.response_mask.tolist() == [[1, 1, 0, 0]]
        assert found.log_probs.tolist() == [[-0.5, -0.5, 0, 0]]

    def test_other_batches(self):
        for rewrite in (laws.rewriting.unpacked, functools.partial(laws.rewriting.padded, left=0, right=1, token=0)):
            with pytest.raises(TypeError, match="^expected an LMBatch.*, found dict$"):
                rewrite({})


def test_rankings_are_unpacked_for_the_law():
    def loss(params, batch: RankingBatch, key):
        ends = jnp.take_along_axis(batch.tokens, batch.ends.reshape(len(batch.tokens), -1), axis=1)
        rewards = params["table"][0, ends].reshape(-1, batch.valid.shape[-1])
        flat = [x.reshape(-1, x.shape[-1]) for x in (batch.scores, batch.valid)]
        return losses.ranking_loss(rewards, *flat), {}

    batch = TestRewriting.row(TestRewriting.RANKINGS)
    laws.packing_is_ignored(loss, table(), batch)
    laws.padding_is_ignored(loss, table(), batch)

    def first(params, batch, key):
        """Reads only the first prompt of a row."""
        return loss(params, batch.replace(valid=batch.valid & (np.arange(2) == 0)[:, None]), key)

    broken(laws.packing_is_ignored, first, table(), batch, says="several segments in a row")
