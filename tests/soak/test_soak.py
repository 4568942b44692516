"""Kills a real run, smaller than the smoke run, a few times; tests/soak/soak.py kills the smoke run."""

import random

import pytest

from tests.soak.soak import PARTS, aims, differences, is_there, soak

SMALL = {
    "sandbox": dict(
        documents=400, demonstrations=100, reward_prompts=100, prompts=200, users=60, validation_prompts=10
    ),
    "data": dict(max_prompt=40, max_response=40),  # of a small vocabulary
    "tokenizer": dict(vocab_size=600),
    "model": dict(num_layers=1, d_model=32, num_heads=2, d_ff=64),
    "log": dict(every=5, save_every=10),
    "pretrain": dict(steps=40, batch_size=8),
    "sft": dict(epochs=4, batch_size=16, selection_prompts=16),
    "comparisons": dict(prompts=64, max_answers=4),
    "reward": dict(batch_size=16),
    "ppo_init": dict(batch_size=16),
    "ppo": dict(batch_size=16),
    "evaluate": dict(prompts=16, batch_size=16, text_windows=8, few_shot_candidates=1),
}


def test_differences_are_named():
    assert differences({"a": 1, "b": [2.0], "c": 3}, {"a": 1, "b": [2.5], "d": 4}) == ["b", "c", "d"]


def test_aims_are_in_the_order_of_the_run_with_starts_anywhere():
    found = aims(400, random.Random(0))
    assert all(found.count(part) > 25 for part in PARTS)
    ranks = [PARTS.index(part) for part in found if part != "start"]
    assert ranks == sorted(ranks)
    assert "start" in found[-100:]


def test_a_run_has_reached_a_part_when_it_writes_or_was_further():
    before = {"pretrain/metrics.jsonl": 1, "pretrain/summary.json": 2, "sft/metrics.jsonl": 3}
    assert is_there("start", before, before) and is_there("pretrain", before, before)
    assert not is_there("sft", before, before) and is_there("sft", before | {"sft/metrics.jsonl": 4}, before)
    assert not is_there("reward", before, before) and not is_there("evaluate", before, before)


@pytest.mark.slow
def test_three_kills_change_nothing(tmp_path):
    flags = [f"--config.{section}.{key}={value}" for section, keys in SMALL.items() for key, value in keys.items()]
    seed = 50
    assert aims(3, random.Random(seed)) == ["sft", "reward", "ppo"]
    made, compared = soak(tmp_path, 3, seed=seed, overrides=flags)
    assert sum(made.values()) == 3 and compared >= 1
