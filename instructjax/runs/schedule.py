"""Which steps of a run are reported, evaluated and saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import ml_collections
from etils import epath

from instructjax.errors import ConfigError
from instructjax.recipe import check


@dataclasses.dataclass(frozen=True)
class Due:
    """What is due after a step.

    Attributes:
      report: write a line of metrics.
      evaluate: measure the state; the step is also reported.
      save: write a checkpoint.
      last: this is the last step; it is reported, evaluated and saved.
    """

    report: bool
    evaluate: bool
    save: bool
    last: bool


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The length of a run and its intervals, in steps.

    Attributes:
      steps: the number of the last step; the first is 1.
      every: steps between lines of metrics.
      save_every: steps between checkpoints.
      evaluate_every: steps between evaluations, a multiple of `every`.
      keep: how many of the newest checkpoints are kept.
      keep_steps: steps whose checkpoints are kept as well.
      profile_steps: how many steps are profiled in each start of a run, from its third step on.
      key: the config key that decides `steps`, for errors.
    """

    steps: int
    every: int
    save_every: int
    evaluate_every: int
    keep: int
    keep_steps: tuple[int, ...] = ()
    profile_steps: int = 0
    key: str = "steps"

    @classmethod
    def from_config(
        cls,
        log: ml_collections.ConfigDict,
        *,
        steps: int,
        keep_steps: Sequence[int] = (),
        section: str = "log",
        key: str = "steps",
    ) -> Schedule:
        """Returns the schedule of a recipe's section `log` or `ppo_log`.

        Args:
          log: the section.
          steps: the number of steps of the run.
          keep_steps: steps whose checkpoints are kept in addition to the newest `log.keep`.
          section: the section's name, for errors.
          key: see `Schedule.key`.

        Raises:
          ConfigError: see `recipe.check.intervals`.
        """
        check.intervals(log, section)
        intervals = log.every, log.save_every, log.evaluate_every, log.keep
        return cls(steps, *intervals, tuple(keep_steps), log.profile_steps, key)

    def check_done(self, directory: epath.Path, done: int) -> None:
        """Raises ConfigError if a run has made more steps than it should have: none of them can be undone.

        Args:
          directory: WORKDIR/STAGE.
          done: the step of its newest checkpoint.
        """
        if done > self.steps:
            raise ConfigError(
                f"{directory}: {self.key}: expected at least the {done} that are done, found {self.steps}; "
                "choose another --workdir"
            )

    def due(self, step: int) -> Due:
        """Returns what is due after a step, 1 <= step <= steps."""
        last = step == self.steps
        return Due(
            report=last or step % self.every == 0,
            evaluate=last or step % self.evaluate_every == 0,
            save=last or step % self.save_every == 0,
            last=last,
        )
