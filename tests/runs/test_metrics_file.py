import json
import math
import time

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from instructjax.errors import RecordError
from instructjax.runs import metrics_file
from instructjax.runs.metrics_file import MetricsWriter


def write_steps(workdir, steps, first_step=0, **extra):
    with MetricsWriter(workdir, first_step=first_step) as writer:
        for step in steps:
            writer.write(step, {"loss": 1 / (step + 1), **extra})
        return writer.path


def events(workdir):
    """Returns every event in the TensorBoard files, in the order in which they were written."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            length, crc = data[:8], data[8:12]
            assert int.from_bytes(crc, "little") == masked_crc32c(length)
            size = int.from_bytes(length, "little")
            found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
            data = data[12 + size + 4 :]
    return found


def scalars(workdir):
    return [(e.step, v.tag, v.simple_value) for e in events(workdir) for v in e.summary.value]


def test_lines_are_in_the_file_when_write_returns(tmp_path):
    with MetricsWriter(tmp_path / "new" / "run") as writer:
        writer.write(3, {"loss": 0.5, "kl": 2})
        assert writer.path == tmp_path / "new" / "run" / "metrics.jsonl"
        assert writer.path.read_text() == '{"step": 3, "loss": 0.5, "kl": 2.0}\n'


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_have_six_significant_digits(tmp_path, value):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"x": value})
    (line,) = metrics_file.read(tmp_path / "metrics.jsonl")
    assert line["x"] == pytest.approx(value, rel=5.01e-6, abs=1e-320)
    assert len(repr(line["x"]).split("e")[0].strip("-0.").replace(".", "")) <= 6 or abs(line["x"]) >= 1e6


@pytest.mark.parametrize("value", [jnp.float32(0.25), np.float64(0.25), jnp.array(0.25, jnp.bfloat16)])
def test_scalars_of_numpy_and_jax(tmp_path, value):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"x": value})
    assert metrics_file.read(tmp_path / "metrics.jsonl") == [{"step": 1, "x": 0.25}]


def test_numbers_that_are_not_finite_stay_visible(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": math.nan, "norm": math.inf})
    (line,) = metrics_file.read(tmp_path / "metrics.jsonl")
    assert math.isnan(line["loss"]) and line["norm"] == math.inf


def test_a_resumed_run_reports_every_step_once(tmp_path):
    write_steps(tmp_path / "once", range(0, 11, 2))
    write_steps(tmp_path / "twice", range(0, 9, 2))
    write_steps(tmp_path / "twice", range(6, 11, 2), first_step=5)
    once, twice = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("once", "twice"))
    assert once == twice


def test_a_new_run_keeps_no_old_lines(tmp_path):
    write_steps(tmp_path, [0, 1, 2])
    path = write_steps(tmp_path, [0])
    assert [line["step"] for line in metrics_file.read(path)] == [0]


def test_resuming_drops_an_unfinished_line(tmp_path):
    path = write_steps(tmp_path, [1, 2])
    whole = path.read_text()
    path.write_text(whole + '{"step": 3, "lo')
    assert [line["step"] for line in metrics_file.read(path)] == [1, 2]
    write_steps(tmp_path, [], first_step=3)
    assert path.read_text() == whole


def test_resuming_leaves_no_other_file(tmp_path):
    write_steps(tmp_path, [1, 2])
    write_steps(tmp_path, [2], first_step=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_last_value(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        assert writer.last("loss") is None
        writer.write(1, {"loss": 3.0, "rare": 7.0})
        writer.write(2, {"loss": 2.0})
        writer.write(3, {"loss": 1.0})
        assert (writer.last("loss"), writer.last("rare")) == (1.0, 7.0)
    with MetricsWriter(tmp_path, first_step=3) as writer:
        assert (writer.last("loss"), writer.last("rare")) == (2.0, 7.0)


def test_steps_must_increase(tmp_path):
    write_steps(tmp_path, [1, 2])
    with MetricsWriter(tmp_path, first_step=3) as writer:
        with pytest.raises(ValueError, match="expected a step after 2, found 2"):
            writer.write(2, {"loss": 0.0})
        with pytest.raises(ValueError, match="step"):
            writer.write(3, {"step": 0.0})
    assert len(metrics_file.read(writer.path)) == 2


def test_tensorboard_gets_the_same_numbers(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": 0.5, "kl": 0.125})
        writer.write(2, {"loss": 0.25})
    assert scalars(tmp_path) == [(1, "loss", 0.5), (1, "kl", 0.125), (2, "loss", 0.25)]


def test_tensorboard_discards_repeated_steps(tmp_path):
    write_steps(tmp_path, [1, 2, 3])
    write_steps(tmp_path, [3], first_step=3)
    restarts = [e.step for e in events(tmp_path) if e.session_log.status == event_pb2.SessionLog.START]
    assert restarts == [0, 3]
    assert [step for step, _, _ in scalars(tmp_path)] == [1, 2, 3, 3]


def shown(workdir):
    """Returns the steps that TensorBoard shows. It reads files by name, and a restart hides repeated steps."""
    steps = []
    for event in events(workdir):
        if event.session_log.status == event_pb2.SessionLog.START:
            steps = [step for step in steps if step < event.step]
        steps += [event.step] * len(event.summary.value)
    return steps


def test_a_killed_run_leaves_its_reported_steps_in_tensorboard(tmp_path):
    for first_step in (0, 3):
        writer = MetricsWriter(tmp_path, first_step=first_step)  # which is never closed
        for step in range(first_step or 1, (first_step or 1) + 3):
            writer.write(step, {"loss": 1.0})
            assert shown(tmp_path) == [line["step"] for line in metrics_file.read(writer.path)]
    assert shown(tmp_path) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("back", [0, 1, 86_400, 10**9])
def test_the_clock_may_be_set_back_between_two_starts(tmp_path, monkeypatch, back):
    write_steps(tmp_path, [1, 2, 3])
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - back)
    write_steps(tmp_path, [3, 4], first_step=3)
    write_steps(tmp_path, [4, 5], first_step=4)
    assert shown(tmp_path) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "text, expected",
    [("[1]\n", ":1: step"), ('{"loss": 1}\n', ":1: step"), ('{"step": 1}\n{]\n', ":2: expected a JSON object")],
)
def test_a_line_that_is_not_metrics(tmp_path, text, expected):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with pytest.raises(RecordError) as error:
        metrics_file.read(path)
    assert f"{path}{expected}" in str(error.value) and "\n" not in str(error.value)


def test_no_file(tmp_path):
    with pytest.raises(RecordError, match="no such file"):
        metrics_file.read(tmp_path / "metrics.jsonl")
    with pytest.raises(RecordError, match="no such file"):
        MetricsWriter(tmp_path, first_step=6)


def test_every_line_is_json(tmp_path):
    path = write_steps(tmp_path, range(5), accuracy=0.5)
    for text in path.read_text().splitlines():
        assert list(json.loads(text)) == ["step", "loss", "accuracy"]
