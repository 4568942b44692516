"""Properties of the equations, and agreement with slow loops in float64."""

import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax import losses
from instructjax.testing import laws, strategies
from tests import oracles as loops

B, R, K, V = 4, 6, 5, 7  # one shape for all drawn examples: nothing is compiled twice
examples = settings(max_examples=25, deadline=None)


floats, ints = strategies.floats, strategies.integers
rankings = strategies.rankings(B, K)
rollouts = strategies.masked_arrays(2, B, R)
minibatches = st.tuples(floats(B, R, bound=1), floats(B, R, bound=1), floats(B, R), strategies.masks(B, R))

# Compiled once, so that drawn examples are fast.
compiled = types.SimpleNamespace(
    **{
        name: jax.jit(getattr(losses, name))
        for name in (
            "log_probs entropy is_most_likely cross_entropy ranking_loss ranking_accuracy kl_rewards gae "
            "masked_moments policy_loss importance_weights ratio_deviation value_loss"
        ).split()
    },
    whiten=jax.jit(losses.whiten, static_argnames="shift_mean"),
)


WHITENED = [
    [functools.partial(function, shift_mean=shift_mean) for function in (losses.whiten, loops.whiten)]
    for shift_mean in (True, False)
]


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def close(actual, expected, tolerance=1e-11):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def in_float64(test):
    """Runs all examples of a hypothesis test with 64-bit numbers."""

    @functools.wraps(test)
    def run():
        with jax.enable_x64(True):
            test()

    return run


def cross_entropy(logits, tokens, weights):
    return losses.cross_entropy(losses.log_probs(logits, tokens), weights)


# Agreement with the loops.


@in_float64
@examples
@given(floats(B, R, V, bound=50), ints(0, V - 1, B, R), floats(B, R).map(abs))
def test_language_modeling_agrees_with_the_loops(logits, tokens, weights):
    expected = loops.log_probs(logits, tokens)
    close(compiled.log_probs(logits, tokens), expected)
    close(compiled.entropy(logits), loops.entropy(logits))
    close(compiled.cross_entropy(expected, weights), loops.weighted_sum(-expected, weights))
    np.testing.assert_array_equal(compiled.is_most_likely(logits, tokens), logits.argmax(-1) == tokens)


@examples
@given(rankings)
def test_ranking_agrees_with_the_loops(ranking):
    laws.agrees_with(losses.ranking_loss, loops.ranking_loss, ranking)
    laws.agrees_with(losses.ranking_accuracy, loops.ranking_accuracy, ranking)


@examples
@given(floats(B), rollouts, st.floats(0, 2), st.floats(0, 1), st.floats(0, 1))
def test_rewards_and_advantages_agree_with_the_loops(scores, rollout, beta, discount, gae_lambda):
    first, _, mask = rollout
    laws.agrees_with(losses.kl_rewards, loops.kl_rewards, (scores, *rollout, beta))
    laws.agrees_with(losses.gae, loops.gae, (*rollout, discount, gae_lambda))
    laws.agrees_with(losses.masked_moments, loops.moments, (first, mask))
    for whiten, slow in WHITENED:
        laws.agrees_with(whiten, slow, (first, mask), tolerance=1e-9)


@in_float64
@examples
@given(minibatches, st.floats(0.01, 0.9))
def test_minibatch_losses_agree_with_the_loops(minibatch, clip):
    log_probs, old_log_probs, advantages, mask = minibatch
    total, clipped, kl, tokens, largest = loops.policy_loss(*minibatch, clip)
    pair, metrics = compiled.policy_loss(*minibatch, clip)
    close(pair, (total, tokens))
    close(metrics["clip_fraction"], (clipped, tokens))
    close(metrics["approx_kl"], (kl, tokens))
    close(compiled.ratio_deviation(log_probs, old_log_probs, mask), largest)
    ratio = [
        [min(math.exp(a - b), 1 + clip) if inside else 1.0 for a, b, inside in zip(*row, strict=True)]
        for row in zip(log_probs, old_log_probs, mask, strict=True)
    ]
    close(compiled.importance_weights(log_probs, old_log_probs, mask, 1 + clip), ratio)

    total, clipped, tokens = loops.value_loss(*minibatch, clip)
    pair, metrics = compiled.value_loss(*minibatch, clip)
    close(pair, (total, tokens))
    close(metrics["clip_fraction"], (clipped, tokens))


def test_float32_is_close_to_float64():
    logits, tokens = 30 * normal(0, B, R, V), np.random.default_rng(1).integers(0, V, (B, R))
    actual = compiled.log_probs(logits.astype(np.float32), tokens)
    assert actual.dtype == jnp.float32
    close(actual, loops.log_probs(logits, tokens), 1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32])
def test_narrow_numbers_are_computed_in_float32(dtype):
    mask = jnp.ones((B, R), bool)

    @jax.jit
    def everything(x):
        return (
            losses.masked_sum(x, mask),
            losses.gae(x, x, mask, 1.0, 0.95),
            losses.whiten(x, mask),
            losses.kl_rewards(x[:, 0], x, x, mask, 0.1),
            losses.policy_loss(x, x, x, mask, 0.2),
            losses.value_loss(x, x, x, mask, 0.2),
            losses.ranking_loss(x, x, mask),
            losses.log_probs(x, jnp.zeros(B, jnp.int32)),
        )

    x = jnp.asarray(10 * normal(0, B, R), dtype)
    results = everything(x)
    assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {jnp.dtype(jnp.float32)}
    jax.tree.map(lambda narrow, wide: close(narrow, wide, 1e-6), results, everything(x.astype(jnp.float32)))


# Language modeling.


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_large_logits_stay_exact(size):
    logits = jnp.array([[size, 0.0, -size], [size, size, size], [size, 0.0, -jnp.inf]])
    close(compiled.log_probs(logits, jnp.array([0, 1, 0])), [0, -math.log(3), 0], 1e-6)
    close(compiled.log_probs(logits, jnp.array([2, 2, 2])), [-2 * size, -math.log(3), -jnp.inf], 1e-6)
    close(compiled.entropy(logits), [0, math.log(3), 0], 1e-6)
    for gradient in (
        jax.jit(jax.grad(lambda z: losses.entropy(z).sum()))(logits),
        jax.jit(jax.grad(lambda z: losses.log_probs(z, jnp.array([0, 1, 0])).sum()))(logits),
    ):
        assert np.isfinite(gradient).all()


def test_log_probs_are_normalized_and_ignore_a_shift():
    logits = normal(0, R, V)
    tables = [compiled.log_probs(z, np.full(R, v)) for z in (logits, logits + 100) for v in range(V)]
    close(np.exp(tables[:V]).sum(0), 1, 1e-6)
    close(tables[:V], tables[V:], 1e-4)


def test_entropy_of_uniform_and_certain_distributions():
    close(compiled.entropy(np.zeros((2, V))), math.log(V), 1e-6)
    close(compiled.entropy(np.array([[0.0, -np.inf, -np.inf]])), 0)


def test_a_token_outside_the_vocabulary_gives_nan():
    assert np.isnan(compiled.log_probs(np.zeros((1, V)), np.array([V]))).all()


def test_an_impossible_token_without_weight_does_not_count():
    logits, weights = np.array([[0.0, 0.0, -np.inf], [0.0, 0.0, 0.0]]), np.array([0.0, 1.0])
    loss = jax.jit(jax.value_and_grad(lambda z: cross_entropy(z, jnp.array([2, 2]), weights)[0]))
    value, gradient = loss(logits)
    close(value, math.log(3), 1e-6)
    close(gradient, [[0, 0, 0], [1 / 3, 1 / 3, -2 / 3]], 1e-6)


# The reward model.


@pytest.mark.parametrize("function", [losses.ranking_loss, losses.ranking_accuracy])
@examples
@given(ranking=rankings)
def test_order_of_the_answers_does_not_matter(function, ranking):
    laws.permutation_of_answers(function, ranking)


@examples
@given(rankings)
def test_only_differences_of_rewards_matter(ranking):
    laws.shift_of_rewards(losses.ranking_loss, ranking)


@examples
@given(rankings)
def test_only_the_order_of_scores_matters(ranking):
    laws.order_of_scores(losses.ranking_loss, ranking)


def test_two_answers_give_the_bradley_terry_loss():
    rewards = np.array([[0.3, 1.1], [2.0, -1.0]])
    total, weight = compiled.ranking_loss(rewards, np.array([[0, 1], [0, 1]]), np.ones((2, 2)))
    close(total, -sum(math.log(1 / (1 + math.exp(-margin))) for margin in (0.8, -3.0)), 1e-6)
    assert weight == 2


def test_every_prompt_without_ties_weighs_the_same():
    """Because of 1 / C(K, 2), a prompt with 9 answers (36 pairs) counts like one with 2 (1 pair)."""
    for answers in range(2, 10):
        valid = np.arange(9)[None] < answers
        total, weight = compiled.ranking_loss(np.zeros((1, 9)), np.arange(9)[None], valid)
        close((total, weight), (math.log(2), 1), 1e-6)


def test_ties_are_dropped_from_the_sum_and_counted_in_the_number_of_pairs():
    rewards, scores = np.array([[1.0, 0.0, 5.0]]), np.array([[2, 1, 1]])
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.exp(4))) / 3  # C(3, 2)
    close(compiled.ranking_loss(rewards, scores, np.ones((1, 3))), (expected, 1), 1e-6)
    gradient = jax.grad(lambda r: compiled.ranking_loss(r, np.array([[1, 1, 0]]), jnp.array([[1, 1, 0]]))[0])(rewards)
    close(gradient, np.zeros((1, 3)), 0)


def test_equal_rewards_count_as_half_right():
    right, pairs = compiled.ranking_accuracy(np.array([[1.0, 1.0, 0.0]]), np.array([[2, 1, 0]]), np.ones((1, 3)))
    assert (right, pairs) == (2.5, 3)


def test_a_larger_margin_costs_less_and_never_overflows():
    margins = np.array([-1e4, -1.0, 0.0, 1.0, 1e4])
    rewards = np.stack([margins, np.zeros(5)], axis=1)
    cost = [compiled.ranking_loss(r[None], np.array([[1, 0]]), np.ones((1, 2)))[0] for r in rewards]
    assert np.isfinite(cost).all() and (np.diff(cost) < 0).all()
    close(cost[0], 1e4, 1e-6)


# Rewards and advantages.


def test_the_score_is_on_the_last_token():
    mask = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [0, 1, 0], [1, 0, 1]])
    rewards = losses.kl_rewards(np.array([3, 2, 1, 4, 5]), np.zeros((5, 3)), np.zeros((5, 3)), mask, 0.1)
    close(rewards, [[0, 0, 3], [2, 0, 0], [0, 0, 0], [0, 4, 0], [0, 0, 5]], 0)


def test_integer_scores_do_not_truncate_rewards():
    log_probs, ref_log_probs = np.full((1, 2), -1.0), np.full((1, 2), -1.73)
    rewards = losses.kl_rewards(np.array([1]), log_probs, ref_log_probs, np.ones((1, 2), np.int32), 1)
    close(rewards, [[-0.73, 0.27]], 1e-6)


@in_float64
@examples
@given(floats(B), rollouts)
def test_rewards_of_an_episode_sum_to_score_minus_kl(scores, rollout):
    log_probs, ref_log_probs, mask = rollout
    rewards = compiled.kl_rewards(scores, log_probs, ref_log_probs, mask, 0.5)
    kl = ((log_probs - ref_log_probs) * mask).sum(1)
    close(rewards.sum(1), np.where(mask.any(1), scores - 0.5 * kl, 0))


@in_float64
@examples
@given(rollouts, st.floats(0, 1))
def test_lambda_one_is_monte_carlo_and_lambda_zero_is_one_step(rollout, discount):
    rewards, values, mask = rollout
    advantages, returns = compiled.gae(*rollout, discount, 1.0)
    to_go = np.zeros((B, R))
    for t in reversed(range(R)):
        to_go[:, t] = rewards[:, t] * mask[:, t] + (discount * to_go[:, t + 1] if t + 1 < R else 0)
    close(returns, to_go * mask)
    close(advantages, (to_go - values) * mask)

    after = np.concatenate([(values * mask)[:, 1:], np.zeros((B, 1))], axis=1)
    close(compiled.gae(*rollout, discount, 0.0)[0], (rewards + discount * after - values) * mask)


@in_float64
@examples
@given(rollouts, st.floats(0, 1), st.floats(0, 1))
def test_true_values_have_no_advantage(rollout, discount, gae_lambda):
    rewards, _, mask = rollout
    _, values = loops.gae(rewards, np.zeros((B, R)), mask, discount, 1.0)
    close(compiled.gae(rewards, values, mask, discount, gae_lambda)[0], np.zeros((B, R)))


def test_whitening_gives_mean_zero_and_variance_one():
    x, mask = 5 + 3 * normal(0, 64, 32), np.random.default_rng(1).random((64, 32)) < 0.7
    close(compiled.masked_moments(compiled.whiten(x, mask), mask), (0, 1), 1e-5)
    kept, _ = compiled.masked_moments(x, mask)
    close(compiled.masked_moments(compiled.whiten(x, mask, shift_mean=False), mask), (kept, 1), 1e-5)


@pytest.mark.parametrize("function", [losses.masked_moments, losses.whiten, losses.explained_variance])
def test_statistics_of_a_split_batch_are_those_of_the_whole(function):
    """The split is ragged: one device has 1 token, another none."""
    mask = (np.arange(R) < np.array([1, 0, 6, 4])[:, None]).astype(np.float32)
    arrays = [normal(seed, B, R) for seed in range(2 if function is losses.explained_variance else 1)]
    laws.devices_agree(function, (*arrays, mask))


def test_explained_variance():
    returns, mask = normal(0, B, R), np.ones((B, R))
    close(losses.explained_variance(returns + 3, returns, mask), 1, 1e-5)
    close(losses.explained_variance(np.full((B, R), 2.0), returns, mask), 0, 1e-5)
    close(losses.explained_variance(-returns, returns, mask), -3, 1e-5)
    close(losses.explained_variance(returns, np.ones((B, R)), mask), 0, 0)


# The losses of a minibatch.


def test_at_ratio_one_the_policy_gradient_is_reinforce(x64):
    logits, advantages = normal(0, B, R, V), normal(1, B, R)
    tokens = np.random.default_rng(2).integers(0, V, (B, R))
    mask = np.arange(R) < np.array([[6], [2], [0], [1]])
    old = losses.log_probs(logits, tokens)

    def surrogate(z):
        return losses.policy_loss(losses.log_probs(z, tokens), old, advantages, mask, 0.2)[0][0]

    def reinforce(z):
        return -(losses.log_probs(z, tokens) * advantages * mask).sum()

    close(jax.jit(jax.grad(surrogate))(logits), jax.jit(jax.grad(reinforce))(logits))
    assert losses.ratio_deviation(old, old, mask) == 0


@pytest.mark.parametrize(("ratio", "advantage", "slope"), [
    (1.5, 1.0, 0.0), (0.5, -1.0, 0.0),  # already too far in the intended direction
    (0.5, 1.0, -0.5), (1.5, -1.0, 1.5),  # in the wrong direction: the way back stays open
    (1.1, 1.0, -1.1), (0.9, -1.0, 0.9),
])  # fmt: skip
def test_the_policy_clip_is_one_sided(ratio, advantage, slope):
    def loss(log_prob):
        return compiled.policy_loss(log_prob, jnp.zeros((1, 1)), jnp.full((1, 1), advantage), jnp.ones((1, 1)), 0.2)

    log_prob = jnp.full((1, 1), math.log(ratio))
    close(jax.grad(lambda x: loss(x)[0][0])(log_prob)[0, 0], slope, 1e-6)
    close(loss(log_prob)[1]["clip_fraction"], (float(slope == 0), 1), 0)


@pytest.mark.parametrize(("value", "target", "slope"), [
    (1.0, 5.0, 0.0), (-1.0, -5.0, 0.0),  # further than the clip from the old value, toward the target
    (1.0, -5.0, 6.0), (-1.0, 5.0, -6.0),  # further, but away from the target
    (0.1, 5.0, -4.9),
])  # fmt: skip
def test_the_value_clip_is_one_sided(value, target, slope):
    def loss(v):
        return compiled.value_loss(v, jnp.zeros((1, 1)), jnp.full((1, 1), target), jnp.ones((1, 1)), 0.2)

    close(jax.grad(lambda v: loss(v)[0][0])(jnp.full((1, 1), value))[0, 0], slope, 1e-6)
    close(loss(jnp.full((1, 1), value))[1]["clip_fraction"], (float(slope == 0), 1), 0)


@in_float64
@examples
@given(minibatches)
def test_an_infinite_value_clip_is_least_squares(minibatch):
    values, _, returns, mask = minibatch
    (total, _), metrics = compiled.value_loss(*minibatch, np.inf)
    close(total, (mask * (values - returns) ** 2).sum() / 2)
    assert metrics["clip_fraction"][0] == 0


def test_old_values_advantages_and_returns_are_constants():
    x, mask = [jnp.asarray(normal(seed, B, R)) for seed in range(3)], jnp.ones((B, R))
    for loss in (losses.policy_loss, losses.value_loss):
        gradients = jax.jit(jax.grad(lambda *x, loss=loss: loss(*x, mask, 0.2)[0][0], argnums=(0, 1, 2)))(*x)
        assert np.abs(gradients[0]).sum() > 1
        close(gradients[1:], np.zeros((2, B, R)), 0)


# Properties of all equations.


def differentiable():
    """Yields (name, loss of one array, that array) for every equation with a gradient."""
    mask = np.arange(R) < np.array([[6], [2], [0], [1]])
    tokens = np.random.default_rng(0).integers(0, V, (B, R))
    scores, valid = np.array([[3, 1, 1, 0, 2]] * B), np.arange(K) < np.array([[5], [2], [4], [3]])
    logits, x, old, advantages = normal(1, B, R, V), normal(2, B, R), normal(3, B, R), normal(4, B, R)
    return [
        ("cross_entropy", lambda z: cross_entropy(z, tokens, mask)[0], logits),
        ("entropy", lambda z: losses.masked_sum(losses.entropy(z), mask)[0], logits),
        ("ranking_loss", lambda r: losses.ranking_loss(r, scores, valid)[0], normal(5, B, K)),
        ("policy_loss", lambda p: losses.policy_loss(p, old, advantages, mask, 0.2)[0][0], x),
        ("value_loss", lambda v: losses.value_loss(v, old, advantages, mask, 0.2)[0][0], x),
    ]


@pytest.mark.parametrize(("name", "loss", "x"), [pytest.param(*case, id=case[0]) for case in differentiable()])
def test_gradients_are_those_of_finite_differences(name, loss, x):
    laws.gradient_is_finite_difference(loss, x)


def pairs_of(mask):
    """Returns a function that computes every pair, and a batch of B rows for it."""

    def compute(log_probs, old, advantages, scores, rows_mask, logits, tokens):
        policy, policy_metrics = losses.policy_loss(log_probs, old, advantages, rows_mask, 0.2)
        value, value_metrics = losses.value_loss(log_probs, old, advantages, rows_mask, 0.2)
        return {
            "policy": policy,
            "value": value,
            "policy_metrics": policy_metrics,
            "value_metrics": value_metrics,
            "language": cross_entropy(logits, tokens, rows_mask),
            "accuracy": losses.masked_sum(losses.is_most_likely(logits, tokens), rows_mask),
            "ranking": losses.ranking_loss(log_probs, scores, rows_mask),
            "ranking_accuracy": losses.ranking_accuracy(log_probs, scores, rows_mask),
        }

    rng = np.random.default_rng(0)
    batch = (*(normal(s, B, R) for s in range(3)), rng.integers(0, 3, (B, R)), mask)
    return jax.jit(compute), (*batch, normal(3, B, R, V), rng.integers(0, V, (B, R)))


def test_microbatches_add_up_to_the_batch():
    laws.rows_add_up(*pairs_of(np.arange(R) < np.array([[6], [2], [0], [1]])))


MASKED = {
    "masked_sum": (losses.masked_sum, 1),
    "policy_loss": (functools.partial(losses.policy_loss, clip=0.2), 3),
    "value_loss": (functools.partial(losses.value_loss, clip=0.2), 3),
    "gae": (functools.partial(losses.gae, discount=1.0, gae_lambda=0.95), 2),
    "masked_moments": (losses.masked_moments, 1),
    "whiten": (losses.whiten, 1),
    "explained_variance": (losses.explained_variance, 2),
}


@pytest.mark.parametrize("name", MASKED)
@examples
@given(drawn=strategies.masked_arrays(3, B, R))
def test_padding_has_no_influence(name, drawn):
    """This holds for any content and any amount of padding."""
    function, count = MASKED[name]
    arrays = *drawn[:count], drawn[-1]
    laws.mask_is_respected(function, arrays)
    laws.empty_mask_gives_zeros(function, arrays)


def test_padding_has_no_influence_on_a_maximum():
    """The numbers differ, because at a tie the gradient of a maximum is shared, even with padding."""
    mask = (np.arange(R) < np.array([[6], [2], [0], [1]])).astype(np.float32)
    laws.mask_is_respected(losses.ratio_deviation, (normal(0, B, R), normal(1, B, R), mask))


def test_importance_weights_are_finite_constants():
    """Whatever is on padding, and however unlikely a token was for the sampler."""
    log_probs, sampler = np.array([[-1.0, np.nan, -1.0]]), np.array([[-1e4, np.inf, -1.0]])
    found, gradient = (
        function(log_probs, sampler, np.array([[1, 0, 1]]), 2.0)
        for function in (losses.importance_weights, jax.grad(lambda *given: losses.importance_weights(*given).sum()))
    )
    close(found, [[2, 1, 1]], 1e-6)
    close(gradient, np.zeros((1, 3)), 0)


KL_REWARDS = functools.partial(losses.kl_rewards, beta=0.1)


@examples
@given(floats(B), rollouts)
def test_padding_has_no_influence_on_rewards(scores, rollout):
    laws.mask_is_respected(KL_REWARDS, (scores, *rollout))
    laws.empty_mask_gives_zeros(KL_REWARDS, (scores, *rollout))


@examples
@given(rankings)
def test_missing_answers_have_no_influence(ranking):
    for function in (losses.ranking_loss, losses.ranking_accuracy):
        laws.mask_is_respected(function, ranking)
        laws.empty_mask_gives_zeros(function, ranking)


def test_an_empty_mask_gives_zeros():
    """Sums, weights, means, statistics and gradients have no NaN."""
    mask = np.zeros((B, R))
    compute, batch = pairs_of(mask)
    jax.tree.map(lambda x: close(x, 0, 0), compute(*batch))
    x = jnp.asarray(normal(0, B, R))
    assert losses.mean(*losses.masked_sum(x, mask)) == 0
    statistics = (compiled.masked_moments(x, mask), compiled.whiten(x, mask), losses.explained_variance(x, x, mask))
    jax.tree.map(lambda leaf: close(leaf, 0, 0), statistics)

    def objective(x, logits):
        pairs = compute(x, *batch[1:5], logits, batch[6])
        return sum(losses.mean(*pairs[name]) for name in ("policy", "value", "language", "ranking"))

    jax.tree.map(lambda leaf: close(leaf, 0, 0), jax.jit(jax.grad(objective, argnums=(0, 1)))(x, batch[5]))


@pytest.mark.parametrize("call", [
    lambda x: losses.masked_sum(x, x[:, :1]),
    lambda x: losses.policy_loss(x, x, x[:, :1], x, 0.2),
    lambda x: losses.value_loss(x[..., None], x, x, x, 0.2),
    lambda x: losses.kl_rewards(x[:, :1], x, x, x, 0.1),
    lambda x: losses.gae(x, x[:, 1:], x, 1.0, 0.95),
    lambda x: losses.ranking_loss(x, x[0], x),
    lambda x: losses.cross_entropy(x, x[:, 1:]),
    lambda x: losses.log_probs(jnp.zeros((B, R, V)), x[:, 1:].astype(int)),
    lambda x: losses.is_most_likely(jnp.zeros((B, R, V)), x[:, 1:].astype(int)),
])  # fmt: skip
def test_shapes_that_would_broadcast_are_rejected(call, unchecked_shapes):
    with pytest.raises(ValueError, match=r"expected arrays of one shape, found .*\("):
        call(jnp.ones((B, R)))


# Pretraining mix.


def test_ppo_ptx_is_the_gradient_of_the_sum_of_means(x64):
    """Compares separately computed sums of gradients with one gradient of the whole equation 2."""
    params = {"w": jnp.asarray(normal(0, V)), "b": jnp.asarray(normal(1, V))}
    tokens, texts = np.random.default_rng(2).integers(0, V, (2, B, R))
    mask, weights = np.arange(R) < np.array([[6], [2], [0], [1]]), np.abs(normal(3, B, R))
    old, advantages, gamma = normal(4, B, R) - 2, normal(5, B, R), 27.8

    def logits(params):
        return params["w"] * jnp.arange(B * R).reshape(B, R, 1) / 10 + params["b"]

    def ppo(params):
        return compiled.policy_loss(compiled.log_probs(logits(params), tokens), old, advantages, mask, 0.2)[0]

    def ptx(params):
        return cross_entropy(logits(params), texts, weights)

    def total(params):
        (ppo_sum, ppo_weight), (ptx_sum, ptx_weight) = ppo(params), ptx(params)
        return ppo_sum / ppo_weight + gamma * ptx_sum / ptx_weight

    def summed(loss):
        (value, weight), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return (value, gradient), weight

    value, gradient = losses.ppo_ptx(summed(ppo), summed(ptx), gamma)
    jax.tree.map(close, (value, gradient), jax.jit(jax.value_and_grad(total))(params))
    value, gradient = losses.ppo_ptx(summed(ppo), summed(ptx), 0.0)
    jax.tree.map(close, (value, gradient), losses.mean(*summed(ppo)))
