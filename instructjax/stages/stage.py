"""A stage: a function of a run that trains one network and leaves its checkpoints.

    @stage("dpo", after=("sft",), uses=("rankings",))
    def run(stage: Stage) -> None:
        ...
        stage.train(loss, start, batches, steps=steps)

The decorator says what the rest of the package has to know: which stages come before, which prepared sets decide the
weights, and where the policy lies in the state. It is saved with every checkpoint, so any stage's policy can be
sampled, evaluated, exported and started from, even one that this package does not know.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from etils import epath

from instructjax import warning_log
from instructjax.data import pipeline
from instructjax.errors import CheckpointError, ConfigError
from instructjax.models import flops, lora
from instructjax.models.config import TransformerConfig
from instructjax.models.lora import LoraConfig
from instructjax.recipe import check
from instructjax.recipe.declared import SECTIONS
from instructjax.recipe.key import Section
from instructjax.reporting import curves
from instructjax.runs import alarms, checkpoint, checkpoint_files, cost, folder, loop, processes, trackers
from instructjax.runs.callbacks import Callbacks
from instructjax.runs.schedule import Schedule
from instructjax.runs.speed import Flops, Matmuls
from instructjax.stages import adapter_base, beginning
from instructjax.stages.adapter_base import Base
from instructjax.stages.declaration import Declaration
from instructjax.stages.run import Run
from instructjax.stages.training_step import training_step
from instructjax.text.tokenizer import Tokenizer
from instructjax.training import optimizer, parallel
from instructjax.training import state as train_state
from instructjax.training.state import Params, TrainState

_ADAPTERS = 2**32 - 1  # folded into the key of a stage for fresh adapters: no step has this number


@dataclasses.dataclass(frozen=True)
class StageFunction:
    """A stage that can be run: `sft.run(Run(config, workdir))`.

    Attributes:
      declaration: what it declares about itself.
      keys: the declared keys of its section; None if they are declared nowhere.
      function: what it does.
    """

    declaration: Declaration
    keys: Section | None
    function: Callable[[Stage], None]

    def __call__(self, run: Run) -> None:
        """Runs or resumes the stage on the mesh that the recipe describes.

        Raises:
          InputError: the recipe or the records are invalid, or are not those that the stage began with.
        """
        stage = Stage(run, self.declaration)
        if self.keys:
            check.section(run.config, self.declaration.section, self.keys)
        elif self.declaration.section not in run.config:
            raise ConfigError(f"{self.declaration.section}: expected a section of the recipe, found None")
        processes.first(lambda: trackers.check(run.config))
        with warning_log.kept_in(run.workdir):
            if not stage.section.get("import_from"):  # weights that do not fit are refused before records are prepared
                run.require(stage.name)
            with cost.timed(run.workdir, stage.name), parallel.on_mesh(run.config.parallel):
                if beginning.has_begun(run, self.declaration):  # compared before anything is loaded
                    _ = run.layout
                    processes.first(lambda: beginning.check(run, self.declaration))
                self.function(stage)


def stage(
    name: str,
    *,
    after: Sequence[str] = (),
    uses: Sequence[str],
    policy: str | None = "params",
    section: str = "",
    also: Sequence[str] = (),
    may_change: Sequence[str] = (),
    keys: Section | None = None,
) -> Callable[[Callable[[Stage], None]], StageFunction]:
    """Declares a function of a `Stage` to be a stage.

    Args:
      name: the folder in WORKDIR, and the name in reports.
      after: the stages whose checkpoints it reads.
      uses: the prepared sets that decide its weights, such as "rankings"; it does not resume with others.
      policy: where the policy's weights lie in its state, such as "params" or "policy/ema"; None if there is no policy.
      section: its section of the recipe; the name if not given.
      also: further sections that decide its weights.
      may_change: keys of its section whose values may differ when it resumes.
      keys: the declared keys of its section, with their ranges; not needed for sections of `recipe/declared.py`.
    """
    section = section or name
    changeable = tuple(f"{section}.{key}" for key in may_change)
    declaration = Declaration(name, tuple(after), tuple(uses), policy, section, (*also, section), changeable)
    return functools.partial(StageFunction, declaration, keys or SECTIONS.get(section))


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of one run: what its function works with.

    Attributes:
      run: the recipe, the folder, the records, and the models that earlier stages left.
      declaration: what the stage declares about itself.
    """

    run: Run
    declaration: Declaration

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.declaration.name

    @property
    def config(self) -> ml_collections.ConfigDict:
        """The whole recipe."""
        return self.run.config

    @property
    def section(self) -> ml_collections.ConfigDict:
        """The stage's own section of the recipe."""
        return self.config[self.declaration.section]

    @property
    def directory(self) -> epath.Path:
        """WORKDIR/STAGE."""
        return self.run.directory(self.name)

    @property
    def key(self) -> jax.Array:
        """The root key of the stage's randomness, which differs by name."""
        order = {name: number for number, name in enumerate(folder.PAPER)}
        number = order.get(self.name, len(order) + zlib.crc32(self.name.encode()) % 2**31)
        return jax.random.fold_in(jax.random.key(self.config.seed), number)

    def steps(self, rows: Sequence[Any]) -> int:
        """Returns the updates for the epochs of the section; see `pipeline.steps` and `check_epochs`."""
        steps = pipeline.steps(rows, self.section.batch_size, self.section.epochs)
        self.check_epochs(steps, rows, self.section.batch_size)
        return steps

    def check_epochs(self, steps: int, rows: Sequence[Any], batch_size: float) -> None:
        """Warns if a batch is larger than all epochs of the section: a step is then more epochs than the recipe says.

        Args:
          steps: updates.
          rows: the records.
          batch_size: records in a batch.
        """
        epochs = self.section.epochs
        if batch_size > len(rows) * epochs:
            name, made = self.declaration.section, steps * batch_size / len(rows)
            warning_log.warn(
                f"{self.name}: {steps} x {batch_size:g} records ({name}.batch_size) make {made:.3g} epochs of the "
                f"{len(rows)} records, not {epochs:g} ({name}.epochs)"
            )

    def batching(self) -> dict[str, Any]:
        """Returns how the records of a section become global batches: keyword arguments of every `batches` function.

        Raises:
          ConfigError: the batch does not divide over devices and microbatches.
        """
        section, name = self.section, f"{self.declaration.section}.batch_size"
        parallel.check_batch_size(section.batch_size, name, self.config.parallel, section.microbatches)
        return {
            "batch_size": section.batch_size,
            "seed": self.config.seed,
            "multiple": parallel.rows_multiple(self.config.parallel, section.microbatches),
            "share": parallel.share_of_rows(),
        }

    def train(
        self,
        loss: Callable[..., Any],
        start: Callable[[], Params],
        batches: Callable[[], pipeline.Batches],
        *,
        steps: int,
        network: TransformerConfig | None = None,
        frozen: Sequence[Params] = (),
        schedule: optax.Schedule | None = None,
        callbacks: Callbacks[TrainState] | None = None,
        keep_steps: Sequence[int] = (),
    ) -> None:
        """Trains one network with Adam, from the last checkpoint if there is one.

        Args:
          loss: `loss(params, batch, key, *frozen) -> ((sum, weight), metrics)`.
          start: returns the weights before the first step. A function, so that no other reference keeps them in memory.
          batches: makes the grain dataset.
          steps: updates.
          network: the network's shape, saved with the checkpoints; the policy's if not given.
          frozen: weights that the loss only reads, such as a reference policy.
          schedule: learning rate by update; if not given, the section's rate along a cosine to `final_fraction` of it.
          callbacks: what to measure; see `loop.Callbacks`.
          keep_steps: checkpoints to keep besides the last ones.
        """
        section = self.section
        schedule = schedule or optimizer.cosine_schedule(
            section.learning_rate, steps, final_fraction=section.final_fraction
        )
        shape, has_base = network or self.run.policy_config, self.lora is not None
        step, adam = training_step(self.config, self.declaration.section, loss, schedule, has_base=has_base)

        def begin(params: Params) -> TrainState:
            # Weights that are also read must be another buffer than those that steps change in place.
            return train_state.create(jax.tree.map(jnp.copy, params) if frozen else params, adam)

        base, learned = self.with_adapters(start(), shape) if has_base else (None, start())
        state = parallel.build(begin, learned, shard_optimizer_state=self.config.parallel.shard_optimizer_state)
        del learned
        self.train_with(
            step,
            state,
            batches,
            schedule=Schedule.from_config(self.config.log, steps=steps, keep_steps=keep_steps),
            network=network,
            constants=frozen if base is None else (base, *frozen),
            callbacks=callbacks if base is None or callbacks is None else _of_whole_weights(callbacks, base),
            matmuls=self._matmuls(shape, len(frozen)),
            base=None if base is None else self.describe_base(base),
        )

    @property
    def lora(self) -> LoraConfig | None:
        """The adapters that the stage trains; None if all weights learn, as in a stage that comes after no other."""
        return self.run.lora if self.declaration.after else None

    def with_adapters(self, params: Params, network: TransformerConfig, number: int = 0) -> tuple[Params, Params]:
        """Returns the base of a network, and what learns: its adapters, or fresh ones if it has none, and its head.

        Args:
          params: its weights.
          network: its shape.
          number: a different one for each network of the stage, for fresh adapters.
        """
        assert self.lora is not None
        if not lora.has_adapters(params):
            key = jax.random.fold_in(self.key, np.uint32(_ADAPTERS - number))
            fresh = parallel.build(functools.partial(lora.init, lora=self.lora, config=network), key)
            params = lora.attach(params, fresh)
        return lora.split(params)

    def describe_base(self, base: Params) -> Base:
        """Returns where the base of the stage is saved.

        Raises:
          CheckpointError: these are not the weights of the stage that this one starts from, or not those that it began
            with.
        """
        start = self.run.checkpoints(self.declaration.after[0], self.section.get("init_from", ""))
        found, own = adapter_base.of_start(start, base), self.directory / "checkpoints"
        if checkpoint_files.saved_steps(own):
            began = adapter_base.read(checkpoint.read_meta(own), own)
            if began is None or began.arrays != found.arrays:
                raise CheckpointError(f"{own}: expected the base that the stage began with, found that of {start}")
        return found

    def _matmuls(self, network: TransformerConfig, frozen: int) -> Matmuls:
        """Returns how the matmuls of a step that trains one network are counted."""
        logits = self.declaration.policy is not None

        def count(batch: Any, step: int) -> Flops:
            del step
            found = flops.training_flops(network, batch, logits=logits, frozen=frozen, adapters=self.lora)
            return lambda metrics: found

        return Matmuls(count, network.resolved_matmul_dtype)

    def train_with(
        self,
        step: Callable[..., Any],
        state: Any,
        batches: Callable[[], pipeline.Batches],
        *,
        schedule: Schedule,
        network: TransformerConfig | None = None,
        constants: Sequence[Any] = (),
        callbacks: Callbacks[Any] | None = None,
        matmuls: Matmuls | None = None,
        base: Base | None = None,
    ) -> None:
        """Trains with a custom step, such as an iteration of PPO; see `loop.run`.

        Args:
          step: a pure `step(state, batch, key, *constants) -> (state, metrics)`.
          state: before the first step; it is donated.
          batches: makes the grain dataset.
          schedule: how many steps, and what is due when.
          network: the policy's shape, saved with the checkpoints; the recipe's if not given.
          constants: further arguments of the step.
          callbacks: what to measure. Checks of metrics, curves and trackers are added here.
          matmuls: of a step, for MFU; None if they are not known.
          base: where the rest of the policy's weights is, if its part of the state has only what learns.

        Raises:
          ConfigError: the state has adapters, and no base is given.
        """
        if base is None:
            adapter_base.check_has_none(state, self.name)
        steps = checkpoint_files.saved_steps(self.directory / "checkpoints")
        schedule.check_done(self.directory, steps[-1] if steps else 0)
        if schedule.steps not in steps or not self.run.is_finished(self.name):
            self.begin()
        callbacks = dataclasses.replace(
            callbacks or Callbacks(),
            check_metrics=alarms.check_metrics(self.config, self.section.get("rollout_dtype", "")),
            draw=functools.partial(curves.redraw, self.directory),
            writers=trackers.opener(self.config, self.directory, self.run.workdir.name),
        )
        loop.run(
            parallel.compile_step(step, self.config.parallel),
            state,
            batches,
            self.key,
            directory=self.directory,
            schedule=schedule,
            meta=self.meta(network or self.run.policy_config, self.run.layout.tokenizer, base),
            constants=constants,
            callbacks=callbacks,
            matmuls=matmuls,
        )

    def meta(self, network: TransformerConfig, tokenizer: Tokenizer, base: Base | None = None) -> dict[str, Any]:
        """Returns what is saved with a checkpoint: recipe, network, tokenizer, what stage made it, and its base."""
        described = checkpoint.describe(self.config.to_dict(), dataclasses.asdict(network), tokenizer)
        described["stage"] = dataclasses.asdict(self.declaration)
        if base is not None:
            described["base"] = dataclasses.asdict(base.relative_to(self.run.workdir))
        return described

    def begin(self) -> None:
        """Notes what the stage trains with; see `beginning.note`."""
        processes.first(lambda: beginning.note(self.run, self.declaration))


def _of_whole_weights(callbacks: Callbacks[TrainState], base: Params) -> Callbacks[TrainState]:
    """Returns callbacks of a state of adapters from those of a state of whole weights; no array is copied."""
    evaluate, finish = callbacks.evaluate, callbacks.finish

    def whole(state: TrainState) -> TrainState:
        return state.replace(params=lora.attach(base, state.params))

    def finished(state: TrainState) -> TrainState:
        assert finish is not None
        return state.replace(params=lora.split(finish(whole(state)).params)[1])

    return dataclasses.replace(
        callbacks,
        evaluate=evaluate and (lambda state: evaluate(whole(state))),
        finish=finish and finished,
    )
