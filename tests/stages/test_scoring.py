"""Scores from the host take the place of the reward model's: the same update, no callback, any number of devices."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from instructjax.data.layouts import Layout
from instructjax.records import Prompt
from instructjax.rollout import episode, samplers
from instructjax.rollout.reward_function import RewardFunction
from instructjax.stages import scoring
from instructjax.text.tokenizer import Tokenizer
from instructjax.training import parallel
from tests.algorithms import test_ppo as ppo

LIMITS = ml_collections.ConfigDict({"reward_retries": 0, "reward_retry_seconds": 0.0, "reward_timeout_seconds": 0.0})
RECORDS = [Prompt(prompt=f"prompt {i}") for i in range(ppo.BATCH)]
LETTERS = mock.create_autospec(Tokenizer, instance=True, eos_id=ppo.EOS, eos_ids=(ppo.EOS,), bos=())
LAYOUT = Layout(LETTERS, "", max_prompt=1, max_response=1)
LETTERS.decode = lambda tokens: "".join(chr(97 + token) for token in tokens)


def judged(function, config, text=None, **keys):
    """Runs an iteration whose scores `function(prompts, responses)` gives; returns (state, metrics)."""
    iterate = ppo.make(ppo.changed(**keys), axis_name=parallel.axis_name(config.mode))
    state, frozen = ppo.initial(ppo.fake_params())
    score = scoring.make_score(RewardFunction(function, "judge.py:score", "", False), LIMITS)
    prepare = scoring.rollout_and_score("ppo", iterate, score, RECORDS, LAYOUT, config)
    given = (ppo.prompts(), np.arange(ppo.BATCH, dtype=np.int32)), text
    batch, found = prepare(1, state, given, ppo.KEY)
    state, metrics = parallel.compile_step(iterate.learn, config)(state, batch, ppo.KEY, frozen)
    return jax.device_get(state), ppo.numbers(metrics | found)


def parallel_config(mode="jit"):
    return ml_collections.ConfigDict(ppo.PARALLEL | {"mode": mode})


@pytest.fixture(scope="module")
def expected():
    """Returns the scores of the reward model by response, and the iteration that they give."""
    state, frozen = ppo.initial(ppo.fake_params())
    iterate = ppo.make()
    episodes, _ = jax.jit(iterate.sample)(state, ppo.prompts(), ppo.KEY)
    scores = episode.score(ppo.FAKE[1], frozen.reward, episodes.tokens, episodes.segments, episodes.positions)
    prompts = [record.prompt for record in RECORDS]
    known = dict(zip(zip(prompts, samplers.texts(LAYOUT, episodes), strict=True), scores.tolist(), strict=True))
    state, metrics = jax.jit(iterate)(state, (ppo.prompts(), ppo.text()), ppo.KEY, frozen)
    return known, jax.device_get(state), ppo.numbers(metrics)


@pytest.mark.parametrize(("mode", "devices"), [("jit", 1), ("jit", 8), ("pmap", 8)])
def test_the_scores_of_the_reward_model_give_the_update_of_the_reward_model(expected, mode, devices):
    known, expected_state, expected_metrics = expected
    config = parallel_config(mode)

    def score(prompts, responses):
        return [known[asked] for asked in zip(prompts, responses, strict=True)]

    with contextlib.nullcontext() if devices == 1 else parallel.on_mesh(config):
        state, metrics = judged(score, config, ppo.text())
    ppo.assert_close(state, expected_state, rtol=1e-4, atol=1e-5)
    assert set(metrics) - set(expected_metrics) == {"reward_std", "reward_min", "reward_max", "reward_equal"}
    for name in set(expected_metrics) - {"rollout_padding"}:  # under pmap each device decodes until its rows are done
        assert metrics[name] == pytest.approx(expected_metrics[name], rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_a_judge_may_run_a_compiled_model_for_each_response(devices):
    model = jax.jit(lambda x: jnp.sum(jnp.tanh(x @ x.T)))

    def score(prompts, responses):
        found = [float(model(np.full((1500, 1500), len(text) / 1e3, np.float32))) / 1e6 for text in responses[:3]]
        return found + [0.0] * (len(responses) - 3)

    mesh = parallel.make_mesh((devices, 1, 1), jax.devices()[:devices])
    with contextlib.nullcontext() if devices == 1 else jax.set_mesh(mesh):
        _, metrics = judged(score, parallel_config())
    assert metrics["reward_min"] < metrics["reward_max"]


def test_rewards_are_scaled_then_clipped():
    def score(prompts, responses):
        return [3.0, *[-10.0] * (len(responses) - 1)]

    keys = {"reward_scale": 2.0, "reward_clip": 8.0, "missing_eos_penalty": 0.0}
    _, metrics = judged(score, parallel_config(), **keys)
    assert metrics["shaped_reward"] == pytest.approx((6.0 - 8.0 * (ppo.BATCH - 1)) / ppo.BATCH)
    assert metrics["reward"] == pytest.approx((3.0 - 10.0 * (ppo.BATCH - 1)) / ppo.BATCH)
    assert (metrics["reward_min"], metrics["reward_max"]) == (-10.0, 3.0)


def test_no_program_calls_back_to_the_host():
    iterate = ppo.make()
    state, frozen = ppo.initial(ppo.fake_params())
    episodes, _ = jax.eval_shape(iterate.sample, state, ppo.prompts(), ppo.KEY)
    scores = jax.ShapeDtypeStruct((ppo.BATCH,), jnp.float32)
    sample = jax.jit(iterate.sample).lower(state, ppo.prompts(), ppo.KEY)
    learn = jax.jit(iterate.learn).lower(state, (episodes, scores, None), ppo.KEY, frozen)
    called = jax.jit(lambda x: jax.pure_callback(np.sin, x, x)).lower(jnp.zeros(()))
    assert [("callback" in program.as_text()) for program in (sample, learn, called)] == [False, False, True]


def test_the_spread_of_scores():
    found = ppo.numbers(scoring.spread(np.float32([1, 1, 4, 1])))
    expected = {"reward_std": np.std([1, 1, 4, 1]), "reward_min": 1.0, "reward_max": 4.0, "reward_equal": 0.75}
    assert found == pytest.approx(expected)


@pytest.mark.slow
def test_the_first_of_two_processes_calls_the_function_for_both():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    path = pathlib.Path(__file__).with_name("scoring_worker.py")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(path.parents[2])}
    running = [
        subprocess.Popen(
            [sys.executable, path, coordinator, str(index)], env=environment, stdout=subprocess.PIPE, text=True
        )
        for index in range(2)
    ]
    printed = [process.communicate(timeout=240)[0] for process in running]
    found = [dict(line.split(" ", 1) for line in text.splitlines() if line[0] in "sec") for text in printed]
    error = "ppo, iteration 2: judge.py:score: expected a finite number of float32 for the response 'x', found None"
    assert found == [{"scores": "[1.0, 3.0]", "error": error, "calls": calls} for calls in ("2", "0")]
