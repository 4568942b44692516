"""The best checkpoint of a run, by a metric of its evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from etils import epath

from instructjax import files
from instructjax.errors import CheckpointError
from instructjax.runs import checkpoint_files, metrics_file
from instructjax.runs.checkpoint import Checkpoints

METRICS = ("validation_reward",)  # by which the best checkpoint of a stage is kept, if it measures one of them


class Best:
    """Keeps the best checkpoint while a run trains. After a resume, metrics.jsonl shows which one was best before."""

    def __init__(self, directory: epath.Path, metric: str, checkpoints: Checkpoints, done: int):
        """Finds the best step so far.

        Args:
          directory: WORKDIR/STAGE.
          metric: see `loop.Callbacks.best`.
          checkpoints: of the run.
          done: the step that the run continues from.
        """
        self._metric, self._checkpoints = metric, checkpoints
        steps = [step for step in checkpoints.steps() if step <= done]
        self._best = _largest(directory, metric, steps) if metric else None
        if self._best:
            checkpoints.keep_best(self._best[0])

    def note(self, step: int, values: Mapping[str, float]) -> bool:
        """Returns whether the values of a step are the best so far. If so, its checkpoint is kept once it is saved."""
        if self._metric not in values:
            return False
        value = metrics_file.rounded(values[self._metric])  # as in metrics.jsonl, from which a resume takes it
        if self._best and value <= self._best[1]:
            return False
        self._best = step, value
        self._checkpoints.keep_best(step)
        return True


def best_step(directory: epath.PathLike) -> int:
    """Returns the step of the best checkpoint in WORKDIR/STAGE/checkpoints.

    Raises:
      CheckpointError: the stage has none that was evaluated.
    """
    directory = epath.Path(directory)
    steps = checkpoint_files.saved_steps(directory / "checkpoints")
    for metric in METRICS:
        if found := _largest(directory, metric, steps):
            return found[0]
    raise CheckpointError(f"{directory}: expected a checkpoint with {' or '.join(METRICS)}, found none")


def _largest(directory: epath.Path, metric: str, steps: Sequence[int]) -> tuple[int, float] | None:
    """Returns the first step with the largest value of a metric, and the value."""
    path = directory / "metrics.jsonl"
    lines = metrics_file.read(path) if files.exists(path) else []
    measured = {line["step"]: line[metric] for line in lines if metric in line and line["step"] in steps}
    return max(measured.items(), key=lambda item: item[1], default=None)
