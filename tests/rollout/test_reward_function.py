"""A reward function gets the sampled texts, and its scores are the rewards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.batch import Episodes
from instructjax.data.layouts import Layout
from instructjax.errors import ConfigError
from instructjax.rollout import episode, reward_function, samplers
from instructjax.rollout.reward_function import RewardFunction
from instructjax.text.sentencepiece import SentencePieceTokenizer

PROMPTS, RESPONSES = ["the fox", "a red owl", "the owl and the fox"], ["sleeps", "", "sleep in a forest"]


@pytest.fixture(scope="module")
def layout():
    return Layout(SentencePieceTokenizer.train([*PROMPTS, *RESPONSES] * 9, 290), "\n", max_prompt=16, max_response=16)


def episodes(layout):
    """Returns episodes with prompts padded on the left, and responses and EOS padded on the right."""
    tokens, segments = np.full((3, 32), layout.tokenizer.pad_id, np.int32), np.zeros((3, 32), np.int32)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        before, after = layout.encode_prompt(prompt), layout.encode_response(response)
        tokens[row, 16 - len(before) : 16 + len(after)] = [*before, *after]
        segments[row, 16 - len(before) : 16 + len(after)] = 1
    positions = np.maximum(np.cumsum(segments, axis=1) - 1, 0)
    mask = segments[:, 16:].astype(np.float32)
    return Episodes(*map(jnp.asarray, (tokens, segments, positions, mask, 0 * mask, np.arange(len(tokens)))))


def test_it_sees_the_texts_and_gives_the_rewards(layout):
    seen = []

    def length(prompts, responses):
        seen.append((prompts, responses))
        return [len(prompt) + 100 * len(response) for prompt, response in zip(prompts, responses, strict=True)]

    found = samplers.make_scorer(RewardFunction(length, layout))({}, episodes(layout))
    assert seen == [(PROMPTS, RESPONSES)]
    np.testing.assert_array_equal(found, [607, 9, 1719])


def test_it_can_be_computed_in_parts_and_on_several_devices(layout):
    four = jax.tree.map(lambda x: jnp.concatenate([x, x[:1]]), episodes(layout))
    model = RewardFunction(lambda prompts, responses: [float(len(text)) for text in responses], layout)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))

    @jax.jit
    def score(batch):
        parts = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), batch)
        return jax.lax.map(lambda e: episode.score(model, {}, e.tokens, e.segments, e.positions), parts).reshape(-1)

    np.testing.assert_array_equal(score(four), [6, 0, 17, 6])
    np.testing.assert_array_equal(score(jax.device_put(four, rows)), [6, 0, 17, 6])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("math", "expected MODULE:FUNCTION, found 'math'"),
        ("nowhere_at_all:f", "expected 'nowhere_at_all:f' to be found, found: No module named 'nowhere_at_all'"),
        ("math:f", "expected 'math:f' to be found, found: module 'math' has no attribute 'f'"),
        ("builtins:zip", "expected 2 finite numbers for 2 responses, found <zip"),
        ("wrong_rewards:one", "expected 2 finite numbers for 2 responses, found [1.0]"),
        ("wrong_rewards:nan", "expected 2 finite numbers for 2 responses, found [nan, nan]"),
    ],
)
def test_an_invalid_reward_function_is_reported(tmp_path, monkeypatch, name, message):
    (tmp_path / "wrong_rewards.py").write_text("one = lambda p, r: [1.0]\nnan = lambda p, r: [float('nan')] * 2\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        reward_function.load(name)
    assert str(error.value).startswith(f"ppo.reward_function: {message}")
