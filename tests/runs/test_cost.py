"""The cost of a run: seconds add up over starts, memory is the peak, and nothing is added if nothing was done."""

import json
import subprocess
import sys

import numpy as np
import pytest

from instructjax.errors import CheckpointError, ConfigError, WorkdirError
from instructjax.runs import cost, metrics_file


def spent(workdir):
    return json.loads((workdir / "cost.json").read_text())


def test_seconds_add_up(tmp_path, monkeypatch):
    clock = iter([0.0, 1.5, 10.0, 11.0, 20.0, 20.25])
    monkeypatch.setattr(cost.time, "monotonic", lambda: next(clock))
    for stage in ("sft", "sft", "reward"):
        with cost.timed(tmp_path / "run", stage):
            pass
    found = spent(tmp_path / "run")
    assert list(found) == ["sft", "reward"]
    assert found["sft"]["seconds"] == 2.5 and found["reward"]["seconds"] == 0.25
    assert found["sft"]["peak_rss_gib"] > 0
    seconds, peak = cost.total(tmp_path / "run", evaluate=3.0)
    assert list(seconds) == ["sft", "reward", "evaluate", "total"] and seconds["total"] == 5.8
    assert peak >= round(found["sft"]["peak_rss_gib"], 3)


def test_a_run_without_a_file_has_cost_what_is_given(tmp_path):
    assert cost.total(tmp_path, evaluate=1.5)[0] == {"evaluate": 1.5, "total": 1.5}


def test_refused_work_is_not_added(tmp_path):
    with pytest.raises(ConfigError), cost.timed(tmp_path, "sft"):
        raise ConfigError("sft.epochs: expected at least 1, found 0")
    assert not (tmp_path / "cost.json").exists()


def test_work_that_failed_after_it_began_is_added(tmp_path):
    """A disk that is full after hours is an input error, too."""
    for number in (0, 1):
        with pytest.raises(CheckpointError), cost.timed(tmp_path, "sft"):
            with metrics_file.MetricsWriter(tmp_path / "sft", first_step=number) as writer:
                writer.write(number, {"loss": 1.0})
            raise CheckpointError("checkpoints: expected to write a checkpoint, found no space")
    seconds = spent(tmp_path)["sft"]["seconds"]
    with pytest.raises(CheckpointError), cost.timed(tmp_path, "sft"):
        raise CheckpointError("pretrain: expected the finished stage pretrain, found none")
    assert spent(tmp_path)["sft"]["seconds"] == seconds > 0


def test_interrupted_work_is_added(tmp_path):
    with pytest.raises(KeyboardInterrupt), cost.timed(tmp_path, "sft"):
        raise KeyboardInterrupt
    assert "sft" in spent(tmp_path)


def test_a_finished_stage_costs_nothing(tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "summary.json").write_text("{}")
    with cost.timed(tmp_path, "sft"):
        pass
    assert not (tmp_path / "cost.json").exists()


def test_a_finished_stage_that_goes_on_has_cost_something(tmp_path):
    (tmp_path / "ppo").mkdir()
    (tmp_path / "ppo" / "summary.json").write_text('{"steps": 50}')
    with cost.timed(tmp_path, "ppo"):
        (tmp_path / "ppo" / "summary.json").write_text('{"steps": 80}')
    assert "ppo" in spent(tmp_path)


def test_a_damaged_file_is_reported_before_the_work(tmp_path):
    (tmp_path / "cost.json").write_text("{")
    with pytest.raises(WorkdirError, match="cost.json: expected JSON that a run wrote"):
        with cost.timed(tmp_path, "sft"):
            pytest.fail("the work began")
    with pytest.raises(WorkdirError):
        cost.check(tmp_path)


def test_the_memory_of_the_process_that_started_this_one_is_not_counted():
    program = "from instructjax.runs import cost; print(cost._peak_rss_gib())"
    held = np.ones(1 << 27)  # 1 GiB
    found = float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
    del held
    assert 0 < found < 1
