"""Trackers get each step once, continue their runs, and can neither stop nor slow training.

The tests of real packages work offline. They need the extra trackers, and are skipped without it.
"""

import json
import struct
import sys
import threading
import time
import types

import pytest
from etils import epath

from configs import instructgpt
from instructjax.errors import ConfigError, WorkdirError
from instructjax.recipe import check
from instructjax.runs import trackers
from instructjax.runs.metrics_file import MetricsWriter
from instructjax.runs.trackers import Background
from tests.recipes import changed


def recipe(*names):
    return changed(instructgpt.get_config(), tracking__trackers=names, tracking__project="tests", tracking__run="mine")


def record(folder, config, steps, first_step=0):
    """Writes the lines of these steps, as a stage does."""
    opener = trackers.opener(config, folder, "folder")
    with MetricsWriter(folder, first_step=first_step, others=opener) as writer:
        for step in steps:
            writer.write(step, {"loss": float(step), "reward/mean": 0.5})


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path) / "run" / "ppo"


class Kept:
    """A tracker that keeps what it gets.

    Attributes:
      opened: what each tracker was told.
      lines: (identity, step, loss) of all of them.
    """

    opened: list = []
    lines: list = []

    def __init__(self, tracked):
        self.identity = tracked.identity
        self.opened.append(tracked)

    def write(self, step, scalars):
        self.lines.append((self.identity, step, scalars["loss"]))

    def close(self):
        self.lines.append((self.identity, "closed", 0.0))


@pytest.fixture
def kept(monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "wandb", Kept)
    monkeypatch.setattr(Kept, "opened", [])
    monkeypatch.setattr(Kept, "lines", [])
    return Kept


def test_a_resumed_stage_continues_its_tracked_run_and_repeats_no_step(folder, kept):
    record(folder, recipe("wandb"), range(5))
    record(folder, recipe("wandb"), range(3, 7), first_step=3)  # steps 3 and 4 are repeated
    first, second = kept.opened
    assert first.identity == second.identity
    assert [step for _, step, _ in kept.lines] == [0, 1, 2, 3, 4, "closed", 5, 6, "closed"]


def test_a_stage_that_begins_again_is_another_run(folder, kept):
    for _ in range(2):
        record(folder, recipe("wandb"), range(2))
    assert len({tracked.identity for tracked in kept.opened}) == 2
    assert [step for _, step, _ in kept.lines] == [0, 1, "closed", 0, 1, "closed"]


def test_a_tracker_is_told_names_and_recipe(folder, kept):
    config = recipe("wandb")
    record(folder, config, [0])
    (tracked,) = kept.opened
    assert (tracked.project, tracked.group, tracked.name) == ("tests", "mine", "mine/ppo")
    assert tracked.config["ppo.kl_coefficient"] == 0.02 and tracked.config["seed"] == 0
    record(folder, changed(config, tracking__run=""), [0])
    assert kept.opened[1].name == "folder/ppo"


def test_without_trackers_nothing_is_opened(folder):
    assert trackers.opener(recipe(), folder, "mine") is None
    record(folder, recipe(), [0])
    assert not (folder / "tracked.json").exists()


def broken(error):
    """Opens a tracker whose second line fails."""

    class Broken(Kept):
        def write(self, step, scalars):
            if step:
                raise error

    return Broken


def test_a_tracker_that_fails_is_a_warning_and_the_file_has_all_lines(folder, kept, monkeypatch, capsys):
    monkeypatch.setitem(trackers.TRACKERS, "wandb", broken(OSError("no route\nto host")))
    record(folder, recipe("wandb"), range(4))
    assert capsys.readouterr().out == (
        "warning: tracking.trackers: wandb gets no more metrics of this stage: OSError: no route to host\n"
    )
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_tracker_is_closed_although_a_file_is_not(folder, kept, monkeypatch):
    def fail(self):
        raise WorkdirError("no space")

    monkeypatch.setattr("instructjax.files.GrowingFile.close", fail)
    with pytest.raises(WorkdirError, match="no space"):
        record(folder, recipe("wandb"), [0])
    assert [step for _, step, _ in kept.lines] == [0, "closed"]


def test_a_warning_has_no_password(folder, kept, monkeypatch, capsys):
    error = OSError("request to https://ann:hunter2@server/a@b failed")
    monkeypatch.setitem(trackers.TRACKERS, "wandb", broken(error))
    record(folder, recipe("wandb"), range(2))
    assert "OSError: request to https://server/a@b failed" in capsys.readouterr().out


def test_a_server_that_cannot_be_reached_does_not_stop_a_stage_that_begins(monkeypatch):
    """wandb.login verifies by default, and raises an error of its own if the server does not answer."""

    def login(prompt=True, verify=True):
        if verify:
            raise RuntimeError("the server does not answer")
        return True

    settings = types.SimpleNamespace(settings=types.SimpleNamespace(mode="online"))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(setup=lambda: settings, login=login))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    trackers.check(recipe("wandb"))


def test_a_tracker_that_cannot_be_opened_is_a_warning(folder, monkeypatch, capsys):
    monkeypatch.setitem(trackers.TRACKERS, "wandb", lambda tracked: 1 / 0)
    record(folder, recipe("wandb"), range(2))
    assert "wandb gets no more metrics of this stage: ZeroDivisionError" in capsys.readouterr().out


def test_a_tracker_that_hangs_delays_no_line_and_the_end_only_so_long(capsys):
    release = threading.Event()
    began = time.monotonic()
    writer = Background("slow", release.wait, waiting=3, seconds=0.1)
    for step in range(10):
        writer.write(step, {})
    writer.close()
    assert time.monotonic() - began < 5
    release.set()
    assert capsys.readouterr().out == (
        "warning: tracking.trackers: slow gets no more metrics of this stage: it is 3 lines behind\n"
    )
    writer = Background("stuck", threading.Event().wait, seconds=0.05)
    writer.close()
    assert capsys.readouterr().out.endswith("it did not end within 0.05 seconds\n")


def test_trackers_that_hang_share_the_time_at_the_end(capsys):
    stuck = [Background(f"stuck {i}", threading.Event().wait, seconds=1.0) for i in range(5)]
    began = time.monotonic()
    trackers.Together(stuck).close()
    assert time.monotonic() - began < 3  # one after the other would take 5 seconds
    assert capsys.readouterr().out.count("did not end within 1 seconds\n") == 5


def test_an_interrupt_at_the_end_does_not_wait_for_trackers_that_hang():
    daemons = []
    closing = types.SimpleNamespace(close=lambda: daemons.append(threading.current_thread().daemon))
    trackers.Together([closing, closing]).close()
    assert daemons == [True, True]


@pytest.mark.parametrize("names", [("wandb", "wandb"), ("tensorboard",), "wandb", ([],)])
def test_only_known_trackers_once_each(names):
    config = instructgpt.get_config().unlock()
    config.tracking = {**config.tracking.to_dict(), "trackers": names}
    with pytest.raises(ConfigError, match="tracking.trackers: expected a list from wandb, trackio, mlflow, found "):
        check.keys(config)


@pytest.mark.parametrize("name", trackers.PACKAGES)
def test_a_missing_package_is_an_error_before_any_work(name, monkeypatch):
    monkeypatch.setitem(trackers.PACKAGES, name, "package_that_is_missing")
    with pytest.raises(ConfigError, match=rf"expected the package {name}, found none; pip install 'instructjax\[tr"):
        trackers.check(recipe(name))


def records_of(path):
    """Yields the records of a .wandb file: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    content, position, record = path.read_bytes(), 7, b""
    while position < len(content):
        if (left := -position % 32768) < 7 and left:  # too short for a header
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def read_wandb(folder):
    """Returns the config and the (identity, step, loss) of all offline runs, in the order of writing."""
    from wandb.proto import wandb_internal_pb2

    found, configs = [], []
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        identity = ""
        for content in records_of(path):
            record = wandb_internal_pb2.Record.FromString(content)
            if record.run.run_id:
                identity = record.run.run_id
                configs.append({item.key: json.loads(item.value_json) for item in record.run.config.update})
            if record.history.item:
                item = {item.nested_key[0] if item.nested_key else item.key: item for item in record.history.item}
                found.append((identity, record.history.step.num, json.loads(item["loss"].value_json)))
    return configs, found


def test_wandb_offline(folder, monkeypatch):
    pytest.importorskip("wandb", reason="needs the extra trackers")
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers.check(recipe("wandb"))
    record(folder, recipe("wandb"), range(3))
    time.sleep(1)  # folders are named by the second
    record(folder, recipe("wandb"), range(2, 5), first_step=2)
    configs, found = read_wandb(folder)
    assert configs[0]["ppo.kl_coefficient"] == 0.02
    assert len({identity for identity, _, _ in found}) == 1
    assert [(step, loss) for _, step, loss in found] == [(step, float(step)) for step in range(5)]


def test_wandb_without_a_login(monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb", reason="needs the extra trackers")
    wandb.teardown()  # it reads its settings once
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="tracking.trackers: expected a login of wandb"):
        trackers.check(recipe("wandb"))


def test_mlflow_in_a_database(folder, monkeypatch, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="needs the extra trackers")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    record(folder, recipe("mlflow"), range(3))
    record(folder, recipe("mlflow"), range(2, 5), first_step=2)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert run.data.params["ppo.kl_coefficient"] == "0.02" and run.info.run_name == "mine/ppo"
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(step, float(step)) for step in range(5)]
    assert run.data.metrics["reward/mean"] == 0.5


def test_trackio_on_this_machine(folder, monkeypatch, tmp_path):
    if "trackio" in sys.modules:
        pytest.skip("trackio reads its folder when it is imported")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio", reason="needs the extra trackers")
    record(folder, recipe("trackio"), range(3))
    record(folder, recipe("trackio"), range(2, 5), first_step=2)
    (run,) = trackio.Api().runs("tests")
    assert run.name.startswith("mine/ppo ") and run.config["ppo.kl_coefficient"] == 0.02
    logs = trackio.sqlite_storage.SQLiteStorage.get_logs("tests", run.name)
    assert [(line["step"], line["loss"], line["reward/mean"]) for line in logs] == [(s, s, 0.5) for s in range(5)]
