"""Writers of metrics for Weights & Biases, trackio and MLflow. Only this module imports them.

Each stage is one run of a tracker, with the whole recipe as its config. A thread of its own serves each tracker, so
training does not wait for it. If a tracker fails, or cannot keep up, a warning says so once, and it gets no more
metrics of this stage; WORKDIR/STAGE/metrics.jsonl has all of them. A stage that resumes continues its tracked run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import os
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
from etils import epath

from instructjax import files, warning_log
from instructjax.errors import ConfigError
from instructjax.runs.metrics_file import Writer

WAITING = 1000  # lines of metrics that may wait for a tracker
SECONDS = 60.0  # that the end of a stage waits for its trackers
PACKAGES = {"wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow"}


@dataclasses.dataclass(frozen=True)
class Tracked:
    """What a tracker is told about a stage.

    Attributes:
      project: the list of runs that it belongs to.
      group: the name of the run.
      stage: its name.
      identity: a random text, different for each start of the stage from its first step.
      config: the recipe, by dotted key.
      folder: WORKDIR/STAGE, or a local folder in its place.
    """

    project: str
    group: str
    stage: str
    identity: str
    config: Mapping[str, Any]
    folder: epath.Path

    @property
    def name(self) -> str:
        """Returns the name that people see."""
        return f"{self.group}/{self.stage}"


class _Wandb:
    """A run of Weights & Biases. With WANDB_MODE=offline it is in WORKDIR/STAGE/wandb, for `wandb sync`."""

    def __init__(self, tracked: Tracked):
        import wandb

        self._run = wandb.init(
            project=tracked.project,
            group=tracked.group,
            name=tracked.name,
            id=tracked.identity,
            resume="allow",
            config=dict(tracked.config),
            dir=None if os.environ.get("WANDB_DIR") else os.fspath(tracked.folder),
            settings=wandb.Settings(console="off", silent=True, reinit="create_new"),
        )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def flush(self) -> None:
        pass  # it has a process of its own

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """A run of trackio, in its folder on this machine (TRACKIO_DIR), or where its environment variables say."""

    def __init__(self, tracked: Tracked):
        import trackio

        self._run = trackio.init(
            project=tracked.project,
            group=tracked.group,
            name=f"{tracked.name} {tracked.identity}",  # resumed by name
            config=dict(tracked.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """A run of MLflow, on the server or in the database of MLFLOW_TRACKING_URI."""

    TAG = "instructjax.identity"  # by which a run is found again; MLflow chooses the id

    def __init__(self, tracked: Tracked):
        import mlflow
        from mlflow.entities import Metric, Param

        self._client, self._metric = mlflow.MlflowClient(), Metric
        found = self._client.get_experiment_by_name(tracked.project)
        experiment = found.experiment_id if found else self._client.create_experiment(tracked.project)
        runs = self._client.search_runs([experiment], f"tags.`{self.TAG}` = '{tracked.identity}'")
        if runs:
            self._id = runs[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        tags = {self.TAG: tracked.identity, "instructjax.run": tracked.group}
        self._id = self._client.create_run(experiment, run_name=tracked.name, tags=tags).info.run_id
        params = [Param(key, str(value)) for key, value in tracked.config.items()]
        for begin in range(0, len(params), 100):  # the most that one call takes
            self._client.log_batch(self._id, params=params[begin : begin + 100])

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(self._id, metrics=[self._metric(name, x, now, step) for name, x in scalars.items()])

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._client.set_terminated(self._id)


TRACKERS: Mapping[str, Callable[[Tracked], Writer]] = {"wandb": _Wandb, "trackio": _Trackio, "mlflow": _MLflow}


class Background:
    """A writer that another thread opens and serves. It never raises, and waits only when it is closed."""

    def __init__(
        self, name: str, open_writer: Callable[[], Writer], *, waiting: int = WAITING, seconds: float = SECONDS
    ):
        """Starts the thread.

        Args:
          name: of the tracker, for warnings.
          open_writer: opens it.
          waiting: lines that may wait.
          seconds: that `close` may take.
        """
        self._name, self._open, self._seconds = name, open_writer, seconds
        self._lines: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(waiting)
        self._failed = False
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Hands a line to the thread."""
        if self._failed:
            return
        try:
            self._lines.put_nowait((step, scalars))
        except queue.Full:
            self._give_up(f"it is {self._lines.maxsize} lines behind")

    def flush(self) -> None:
        """Does nothing: a checkpoint does not wait for a tracker."""

    def close(self) -> None:
        """Waits for the lines that are left, and ends the tracked run."""
        deadline = time.monotonic() + self._seconds
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=self._seconds)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._give_up(f"it did not end within {self._seconds:g} seconds")

    def _serve(self) -> None:
        try:
            writer = self._open()
            while (line := self._lines.get()) is not None:
                if not self._failed:
                    writer.write(*line)
            writer.close()
        except Exception as error:  # of a package, a network or a disk
            found = _without_logins(" ".join(str(error).split()))
            self._give_up(f"{type(error).__name__}: {found[:200]}")

    def _give_up(self, why: str) -> None:
        if not self._failed:
            self._failed = True
            warning_log.warn(f"tracking.trackers: {self._name} gets no more metrics of this stage: {why}")


class Together:
    """Several trackers. They are closed at the same time, so the end of a stage waits for the slowest one only."""

    def __init__(self, trackers: Sequence[Writer]):
        """Takes trackers that never raise."""
        self._trackers = trackers

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Hands a line to each tracker."""
        for tracker in self._trackers:
            tracker.write(step, scalars)

    def flush(self) -> None:
        """Does nothing; see `Background.flush`."""

    def close(self) -> None:
        """Closes all trackers."""
        # Python waits at its exit for threads that are not daemons, so an interrupt would not end the process.
        threads = [threading.Thread(target=tracker.close, daemon=True) for tracker in self._trackers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _without_logins(text: str) -> str:
    """Removes names and passwords from addresses such as https://NAME:PASSWORD@server, which errors may quote."""
    return re.sub(r"(?<=://)[^\s/@]+@", "", text)


def check(config: ml_collections.ConfigDict) -> None:
    """Raises an error if a tracker of the recipe cannot be used.

    Raises:
      ConfigError: its package is missing, or Weights & Biases has no login and is not offline.
    """
    for name in config.tracking.trackers:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise ConfigError(
                f"tracking.trackers: expected the package {name}, found none; pip install 'instructjax[trackers]'"
            )
        if name == "wandb":
            _check_login()


def _check_login() -> None:
    import wandb

    if wandb.setup().settings.mode in ("offline", "disabled", "dryrun"):
        return
    if not wandb.login(prompt=False, verify=False):  # a server that cannot be reached is a warning, later
        raise ConfigError(
            "tracking.trackers: expected a login of wandb (WANDB_API_KEY or `wandb login`) or WANDB_MODE=offline, "
            "found neither"
        )


def opener(
    config: ml_collections.ConfigDict, directory: epath.Path, run: str
) -> Callable[[bool], Sequence[Writer]] | None:
    """Returns `open(resumes)`, which opens the trackers of a stage; None if the recipe has none.

    Args:
      config: the whole recipe.
      directory: WORKDIR/STAGE. The identity of the tracked run is kept in its tracked.json.
      run: the name of the run, unless `tracking.run` is one.
    """
    names = config.tracking.trackers
    return functools.partial(_open, config, directory, config.tracking.run or run) if names else None


def _open(config: ml_collections.ConfigDict, directory: epath.Path, run: str, resumes: bool) -> Sequence[Writer]:
    path = directory / "tracked.json"
    identity = files.read_json(path)["identity"] if resumes and files.exists(path) else uuid.uuid4().hex[:12]
    files.write_json(path, {"identity": identity})
    folder = files.local_folder(directory)
    tracked = Tracked(config.tracking.project, run, directory.name, identity, _flatten(config), folder)
    return [
        Together([Background(name, functools.partial(TRACKERS[name], tracked)) for name in config.tracking.trackers])
    ]


def _flatten(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the recipe by dotted key."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            found |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            found[name] = value
    return found
