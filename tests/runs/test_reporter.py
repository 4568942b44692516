"""The estimate of a stage's remaining time comes from steps that the devices have finished."""

import time

import jax.numpy as jnp
import pytest
from etils import epath

from instructjax.runs import progress
from instructjax.runs.reporter import Reporter
from instructjax.training.metrics import Mean


class Clock:
    """A clock that a test moves."""

    seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.mark.parametrize("done", [0, 40])
def test_the_remaining_time_counts_neither_compilation_nor_steps_that_were_only_started(tmp_path, monkeypatch, done):
    clock = Clock()
    monkeypatch.setattr(
        progress.Bar.__init__, "__kwdefaults__", {**progress.Bar.__init__.__kwdefaults__, "clock": clock}
    )
    checked, directory = [], epath.Path(tmp_path) / "sft"
    if done:
        directory.mkdir()
        (directory / "metrics.jsonl").write_text('{"step": 40, "wall_seconds": 80.0}\n')
    reporter = Reporter(directory, done + 100, done, [], time.monotonic(), lambda *values: checked.append(values))

    def start(steps):
        for _ in range(steps):
            reporter.add({"loss": Mean(jnp.float32(1.0), jnp.float32(1.0))})
            reporter.advance()

    with reporter:
        clock.seconds += 60
        start(1)
        assert reporter._bar.seconds_left is None
        start(8)  # at once, as a device lets the host run ahead
        assert reporter._bar.seconds_left is None
        start(1)
        reporter.report_later(done + 10)
        clock.seconds += 18
        start(1)
        assert len(checked) == 1
        assert reporter._bar.seconds_left == 89 * 2
