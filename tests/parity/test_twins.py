"""PPO here and in TRL, from the same start."""

import json
import math

import command_line
import pytest

from configs import sandbox
from instructjax.stages.run import Run
from tests import recipes, scripts

RECIPE = f"{command_line.ROOT}/configs/sandbox.py:smoke"
SMALL = {
    "sandbox.documents": 300,
    "sandbox.demonstrations": 60,
    "sandbox.reward_prompts": 60,
    "sandbox.prompts": 80,
    "model.d_model": 32,
    "model.num_heads": 2,
    "model.d_ff": 64,
    "ppo.batch_size": 16,
    "ppo.minibatch_size": 8,
    "ppo.validation_prompts": 16,
}


def twins(tmp_path, *changes):
    """Returns twins.json of two seeds of two iterations, and what was printed."""
    small = [f"--config.{key}={value}" for key, value in SMALL.items()]
    output = tmp_path / "twins"
    printed = scripts.run(
        *("benchmarks/twins.py", f"--config={RECIPE}", *small, *changes, f"--workdir={tmp_path / 'run'}"),
        *(f"--output={output}", "--seeds=2", "--iterations=2", "--every=1"),
    )
    return json.loads((output / "twins.json").read_text()), printed


@pytest.fixture
def start(tmp_path):
    pytest.importorskip("trl.experimental.ppo", reason="needs the extra parity")
    config = sandbox.get_config("smoke").unlock()
    config.update_from_flattened_dict(SMALL)
    run = Run(config.lock(), tmp_path / "run")
    _ = run.layout
    recipes.save_run(run)
    return tmp_path


@pytest.mark.parity
def test_at_learning_rate_zero_both_sides_stay_the_same_policy(start):
    results, printed = twins(start, "--config.ppo.learning_rate=0.0")
    assert results["runs"]["instructjax"] == results["runs"]["TRL"]
    assert [row["mean"] for row in results["comparisons"]] == [0.0] * 10
    assert printed.rstrip().endswith("the twins agree: none differs at 5 %")


@pytest.mark.parity
def test_both_sides_learn_and_a_finished_run_is_kept(start):
    results, _ = twins(start)
    for measured in (*results["runs"]["instructjax"], *results["runs"]["TRL"]):
        assert [line["step"] for line in measured] == [0, 1, 2]
        assert all(math.isfinite(value) for line in measured for value in line.values())
        assert measured[2]["kl"] != measured[1]["kl"] != measured[0]["kl"]
    path = start / "twins" / "trl-1.json"
    kept = json.loads(path.read_text())
    kept["measured"][1]["reward"] = 7.0
    path.write_text(json.dumps(kept))
    again, _ = twins(start)
    assert again["runs"]["TRL"][1][1]["reward"] == 7.0
    assert again["runs"]["instructjax"] == results["runs"]["instructjax"]
    changed, _ = twins(start, "--config.ppo.kl_coefficient=0.5")
    assert changed["runs"]["TRL"][1][1]["reward"] != 7.0
