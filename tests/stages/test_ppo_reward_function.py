"""PPO with a function of texts as the reward, and without a reward model: no run here has rankings or one."""

import os
import shutil
import signal
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest

from instructjax.batch import PromptBatch
from instructjax.errors import ConfigError, RewardFunctionError
from instructjax.models import flops
from instructjax.models.transformer import ScalarModel
from instructjax.runs import checkpoint_files, metrics_file, speed
from instructjax.runs.interruption import Interrupted
from instructjax.stages import ppo, ppo_weights
from instructjax.stages.run import Run
from instructjax.stages.stage import Stage
from tests import fakes
from tests.recipes import LINES, changed, recipe, save_stage

ITERATIONS = 4
# The calls of a run: before any work, before the first iteration, and then as below.
ITERATION_1, ITERATION_2, VALIDATION_2, ITERATION_3 = 3, 4, 5, 6


def lengths(prompts, responses, records):
    return [float(len(response)) for response in responses]


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """Returns (config, workdir) with the stages before PPO, whose rewards are those of the module planted_judge."""
    folder = tmp_path_factory.mktemp("reward_function")
    prompts = [f'{{"prompt": "{line}", "answer": {i}, "split": "{split(i)}"}}' for i, line in enumerate(LINES)]
    config = changed(
        recipe(folder, prompts=prompts),
        ppo__iterations=ITERATIONS,
        ppo__reward_function="planted_judge:score",
        ppo__validation_prompts=8,
        evaluate__batch_size=8,
        ppo_log__every=1,
        ppo_log__evaluate_every=2,
        ppo_log__save_every=50,
    )
    workdir = folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        plant(patch, lengths)
        tokenizer = Run(config, workdir).layout.tokenizer
    save_stage(config, workdir, "ppo_init", tokenizer)
    return config, workdir


def split(i):
    return ("train", "validation", "test")[i % 3]


def plant(patch, function, at=None, act=None):
    """Makes `function` the reward function, and calls `act` instead at call number `at`."""
    calls = []

    def score(prompts, responses, records):
        calls.append((prompts, responses, records))
        return act(responses) if len(calls) == at else function(prompts, responses, records)

    patch.setitem(sys.modules, "planted_judge", types.SimpleNamespace(score=score, __file__=__file__))
    return calls


@pytest.fixture
def run(before, tmp_path):
    """Returns a function that trains in a copy of the folder."""
    config, workdir = before
    shutil.copytree(workdir, tmp_path / "run")

    def train(**changes):
        ppo.run(Run(changed(config, **changes), tmp_path / "run"))
        return tmp_path / "run"

    return train


def ended(workdir):
    """Returns the digests of the arrays of a run's last state, and its metrics."""
    checkpoints, lines = workdir / "ppo" / "checkpoints", metrics_file.read(workdir / "ppo" / "metrics.jsonl")
    content = checkpoint_files.read_content(checkpoints / str(checkpoint_files.saved_steps(checkpoints)[-1]))
    return content["arrays"], [{name: x for name, x in line.items() if name not in speed.MEASURED} for line in lines]


@pytest.fixture(scope="module")
def whole(before, tmp_path_factory):
    """Returns (calls, state, metrics) of a run without interruption."""
    config, workdir = before
    folder = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(workdir, folder)
    with pytest.MonkeyPatch.context() as patch:
        calls = plant(patch, lengths)
        ppo.run(Run(config, folder))
    return calls, *ended(folder)


def assert_ends_like(workdir, whole):
    (arrays, lines), (_, expected_arrays, expected) = ended(workdir), whole
    assert arrays == expected_arrays and lines == expected


def test_its_scores_are_the_rewards(whole):
    calls, _, (start, *lines) = whole
    assert [len(responses) for _, responses, _ in calls] == [2, 8, 8, 8, 8, 8, 8, 8]
    for line, (_, responses, _) in zip(lines, (calls[i] for i in (2, 3, 5, 6)), strict=True):
        scores = [len(response) for response in responses]
        found = [line[f"reward_{name}"] for name in ("std", "min", "max", "equal")]
        share = max(map(scores.count, scores)) / 8
        assert found == pytest.approx([np.std(scores), min(scores), max(scores), share], rel=1e-4)
        assert line["reward"] == pytest.approx(np.mean(scores), rel=1e-4)
    for line, number in ((start, 1), (lines[1], 4), (lines[3], 7)):
        expected = np.mean([len(response) for response in calls[number][1]])
        assert line["validation_reward"] == pytest.approx(expected, rel=1e-4)


def test_it_gets_the_prompts_and_fields_of_the_records(whole):
    calls, *_ = whole
    for (prompts, _, records), name in zip(calls, ["train", "validation", *["train"] * 2], strict=False):
        for prompt, fields in zip(prompts, records, strict=True):
            assert split(fields["answer"]) == name and LINES[fields["answer"]] == prompt and len(fields) == 1


def test_the_critic_starts_from_the_policy_below_a_fresh_head(before, monkeypatch):
    config, workdir = before
    plant(monkeypatch, lengths)
    opened = Stage(Run(config, workdir), ppo.run.declaration)
    policy, critic = opened.run.load_start("ppo_init"), ScalarModel(opened.run.policy_config)
    started, again = (ppo_weights.critic_start(opened, critic.config, policy, None) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, started["trunk"], policy["trunk"])
    jax.tree.map(np.testing.assert_array_equal, started, again)
    assert np.abs(started["head"]["kernel"]).max() > 0
    reward = fakes.params(critic)
    assert ppo_weights.critic_start(opened, critic.config, policy, reward) is reward


def test_frozen_weights_of_the_same_type_are_not_copied(before, monkeypatch):
    config, workdir = before
    plant(monkeypatch, lengths)
    loaded, given = [], {}
    load = ppo_weights.load
    monkeypatch.setattr(ppo_weights, "load", lambda *args, **keys: loaded.append(load(*args, **keys)) or loaded[-1])
    monkeypatch.setattr(
        Stage, "train_with", lambda stage, step, state, batches, **keys: given.update(keys, state=state)
    )
    ppo.run(Run(changed(config, lora__rank=2), workdir))
    (start,), (frozen, base), state = loaded, given["constants"], given["state"]
    pairs = [(frozen.reference, start.policy), (base, start.bases[0])]
    assert all(a is b for pair in pairs for a, b in zip(*map(jax.tree.leaves, pair), strict=True))
    assert not buffers((frozen, base)) & buffers(state)  # steps donate the state


def buffers(tree):
    """Returns where the arrays of a tree lie in memory."""
    shards = (shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards)
    return {shard.data.unsafe_buffer_pointer() for shard in shards}


def test_flops_leave_out_the_policy_s_updates_while_only_the_critic_learns(before, monkeypatch):
    config, workdir = before
    plant(monkeypatch, lengths)
    opened = Stage(Run(changed(config, ppo__value_warmup_iterations=2), workdir), ppo.run.declaration)
    shape = opened.run.policy_config
    count = ppo._matmuls(opened, shape, uses_scorer=False, needs_critic=True).flops
    batch = PromptBatch(np.ones((8, 16), np.int32), np.ones((8, 16), np.int32)), None
    *waiting, learning = (count(batch, step)({"response_tokens": 12.0}) for step in (1, 2, 3))
    updates = 3 * flops.forward_flops(shape, 8, 16 + 12, 12)
    assert waiting == [pytest.approx(learning - updates)] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {"ppo__advantages": "gae", "ppo__value_warmup_iterations": 2},
        {"ppo__advantages": "rloo", "ppo__samples_per_prompt": 2},
        {"ppo__advantages": "grpo", "ppo__samples_per_prompt": 4},
        {"ppo__advantages": "gae", "lora__rank": 2},
        {"ppo__advantages": "rloo", "ppo__samples_per_prompt": 2, "lora__rank": 2},
    ],
    ids=["PPO", "RLOO", "GRPO", "PPO of adapters", "RLOO of adapters"],
)
def test_a_run_that_was_stopped_ends_like_one_that_was_not(run, before, tmp_path, monkeypatch, keys):
    config, workdir = before
    keys = keys | {
        "ppo__batch_size": 32,  # eight prompts or more, for eight devices
        "ppo__minibatch_size": 16,
        "ppo_log__evaluate_every": 4,
    }
    plant(monkeypatch, lengths)
    shutil.copytree(workdir, tmp_path / "whole")
    ppo.run(Run(changed(config, **keys), tmp_path / "whole"))

    def fail(responses):
        raise ValueError("HTTP 400: bad request")

    calls = plant(monkeypatch, lengths, ITERATION_3 - 1, fail)  # without the validation after iteration 2
    with pytest.raises(RewardFunctionError, match="; step 2 is saved$"):
        run(**keys)
    for prompts, _, records in calls[2:]:  # the samples of a prompt are next to each other, with its record
        size = keys.get("ppo__samples_per_prompt", 1)
        for first in range(0, len(prompts), size):
            assert len(set(prompts[first : first + size])) == 1
            assert {LINES[record["answer"]] for record in records[first : first + size]} == {prompts[first]}
    plant(monkeypatch, lengths)
    found, (expected, lines) = ended(run(**keys)), ended(tmp_path / "whole")
    assert found == (expected, lines)
    values = [name for name in lines[-1] if name.startswith("value")]
    assert bool(values) == (keys["ppo__advantages"] == "gae")
    saved = {name.rpartition("/")[2] for name in expected if name.startswith("policy/params/")}
    assert (saved == {"lora_a", "lora_b"}) == ("lora__rank" in keys)


@pytest.mark.slow
def test_a_run_that_was_stopped_and_failed_resumes_where_it_was(run, whole, monkeypatch):
    release = threading.Event()

    def hang(responses):
        os.kill(os.getpid(), signal.SIGINT)
        release.wait(3000)
        return [0.0] * len(responses)

    plant(monkeypatch, lengths, ITERATION_2, hang)
    with pytest.raises(Interrupted, match="^ppo: stopped by SIGINT after step 1 of 4, which is saved$"):
        run()
    release.set()

    def fail(responses):
        raise ValueError("HTTP 400: bad request")

    plant(monkeypatch, lengths, ITERATION_3 - ITERATION_2 + 2, fail)  # after the call before any work
    with pytest.raises(RewardFunctionError) as error:
        run()
    place = os.path.relpath(__file__)
    start = f"ppo, iteration 3: {place}:score: expected a finite number for each of 8 responses, found ValueError: HTTP"
    assert str(error.value).startswith(start) and str(error.value).endswith("; step 2 is saved")
    plant(monkeypatch, lengths)
    assert_ends_like(run(), whole)


@pytest.mark.slow
def test_a_run_that_failed_at_once_or_in_its_validation_resumes(run, whole, monkeypatch):
    plant(monkeypatch, lengths, ITERATION_1, lambda responses: [1.0])
    with pytest.raises(RewardFunctionError, match="^ppo, iteration 1: .* found 1: .1.0.; no step is saved$"):
        run()
    plant(monkeypatch, lengths, VALIDATION_2, lambda responses: [None] * 8)
    with pytest.raises(RewardFunctionError) as error:
        run()
    assert str(error.value).startswith("ppo, validation after iteration 2: ")
    assert str(error.value).endswith("found None; step 2 is saved")
    plant(monkeypatch, lengths)
    assert_ends_like(run(), whole)  # the validation is made up for


def test_a_missing_reward_function_stops_before_any_work(before):
    config, workdir = before
    with pytest.raises(ConfigError, match="^ppo.reward_function: expected 'math:sevn' to be found"):
        ppo.run_with_text(Run(changed(config, ppo__reward_function="math:sevn"), workdir))
    assert not (workdir / "ppo_ptx").exists()


@pytest.mark.slow
def test_a_judge_may_take_longer_than_a_minute(run, whole, monkeypatch):
    def slow(responses):
        time.sleep(70)
        return lengths([], responses, [])

    plant(monkeypatch, lengths, ITERATION_2, slow)
    assert_ends_like(run(), whole)
