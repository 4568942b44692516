"""A run: a recipe and the folder that its stages share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import ml_collections
import numpy as np
from etils import epath

from instructjax import files
from instructjax.batch import LMBatch, RankingBatch
from instructjax.data import demonstrations, documents, mixtures, pipeline, prepared
from instructjax.data.layouts import Layout
from instructjax.data.mixtures import Mixture
from instructjax.data.rankings import ranking_rows, tokenize_rankings
from instructjax.models import sizes
from instructjax.models.config import TransformerConfig
from instructjax.models.lora import LoraConfig
from instructjax.models.partitioning import even_rows
from instructjax.records import Demonstration, R, Ranking, Record, Text
from instructjax.runs import folder
from instructjax.runs.best import best_step
from instructjax.sources import registry
from instructjax.sources.source import Source
from instructjax.stages import prepare, trained
from instructjax.stages.adapter_base import Base, lora_config
from instructjax.stages.trained import Trained
from instructjax.training.state import Params

Step: TypeAlias = int | Literal["best"] | None  # of a checkpoint; see `Run.open_policy`


@dataclasses.dataclass(frozen=True)
class Run:
    """A recipe and the folder of its run: what every stage is a function of.

    The recipe is checked and the records are prepared when `layout` or records are first used, once for all stages
    of a process. Everything else follows from these fields and from what earlier stages left in the folder.

    Attributes:
      config: the whole recipe.
      workdir: the folder; see `runs/folder.py`.
      recipe: the recipe as it was named, such as "configs/sandbox.py:smoke".
    """

    config: ml_collections.ConfigDict
    workdir: epath.Path
    recipe: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "workdir", files.parse_workdir(self.workdir, "workdir"))

    # What the recipe describes.

    @functools.cached_property
    def source(self) -> Source:
        """Where the records come from, and who judges answers."""
        return registry.make_source(self.config)

    @functools.cached_property
    def layout(self) -> Layout:
        """The layout of prompts and responses, with the tokenizer.

        Raises:
          InputError: see `prepare.prepare`.
        """
        return prepare.prepare(self)

    def require(self, *stages: str) -> None:
        """Prepares the records, and checks that they have what these stages need, before any of them runs.

        Raises:
          InputError: see `prepare.prepare`.
        """
        if "layout" in self.__dict__:  # the records are prepared once
            prepare.check_needs(self, stages)
        else:
            self.__dict__["layout"] = prepare.prepare(self, stages)

    @functools.cached_property
    def policy_config(self) -> TransformerConfig:
        """The policy's network, with the tokenizer's vocabulary and without dropout."""
        return policy_config(self.config, self.layout.tokenizer.vocab_size)

    @functools.cached_property
    def reward_config(self) -> TransformerConfig:
        """The network of reward model and value: the policy's, or `reward.size` with the same arithmetic."""
        return sizes.resized(self.policy_config, self.config.reward.size)

    @functools.cached_property
    def lora(self) -> LoraConfig | None:
        """The adapters of the recipe; None if all weights learn."""
        return lora_config(self.config)

    @property
    def data_folder(self) -> epath.Path:
        """Returns WORKDIR/data, with the tokenizer and the records that this run has written."""
        return self.workdir / "data"

    @functools.cached_property
    def prepared_folder(self) -> epath.Path:
        """Returns the local folder of the prepared sets: `data.prepared`, or WORKDIR/data.

        If WORKDIR is in a bucket, each host has a folder for the run in its user's cache instead.
        """
        if named := self.config.data.prepared:
            return files.parse(named, "data.prepared", schemes=())
        return files.local_folder(self.workdir) / "data"

    # Prepared records. Whatever is asked for first prepares them all.

    def has(self, kind: type) -> bool:
        """Returns whether records of a kind are prepared: rankings may be collected later."""
        _ = self.layout
        return (self.prepared_folder / prepared.SET_NAMES[kind]).exists()

    def records(self, kind: type[R], split: str) -> Sequence[R]:
        """Returns the prepared records of a kind and split, without those that are too long."""
        _ = self.layout
        return prepare.load(self, kind, split)

    def mixture(self, kind: type[Record]) -> Mixture | None:
        """Returns how often each source of the training records of a kind is drawn; None for all records alike."""
        return mixtures.mix(self.records(kind, "train"), self.config.mixture)

    def documents(self, split: str) -> Sequence[np.ndarray]:
        """Returns the prepared text of a split as token ids, [n] for each of `records(Text, split)`."""
        found = documents.load(self.prepared_folder, split, self.layout.tokenizer)
        return prepare.used(self, found, Text, split)

    def validation_text(self) -> list[LMBatch]:
        """Returns the first `evaluate.text_windows` windows of the validation text, in batches; [] if there is none."""
        if not self.has(Text) or "validation" not in prepared.split_sizes(self.prepared_folder, "text"):
            return []
        rows = pipeline.text_rows(self.documents("validation"), self.layout.tokenizer, self.config.pretrain.length)
        rows = rows[: self.config.evaluate.text_windows]
        return _in_batches(rows, self.config.evaluate.batch_size)

    def validation_demonstrations(self) -> list[LMBatch]:
        """Returns the validation demonstrations, in batches."""
        rows = demonstrations.rows(self.records(Demonstration, "validation"), self.layout)
        return _in_batches(rows, self.config.evaluate.batch_size)

    def validation_rankings(self) -> list[RankingBatch]:
        """Returns the validation rankings, in batches."""
        tokenized = tokenize_rankings(self.records(Ranking, "validation"), self.layout)
        rows = ranking_rows(tokenized, self.layout.tokenizer.pad_id)
        return _in_batches(rows, self.config.reward.batch_size)

    # What stages have left.

    def directory(self, stage: str) -> epath.Path:
        """Returns WORKDIR/STAGE."""
        return folder.stage_directory(self.workdir, stage)

    def is_finished(self, stage: str) -> bool:
        """Returns whether a stage made its last step."""
        return folder.is_finished(self.workdir, stage)

    def checkpoints(self, stage: str, elsewhere: str = "") -> epath.Path:
        """Returns the checkpoint folder of a stage of this run, or the one that the recipe names instead.

        Args:
          stage: its name.
          elsewhere: the value of a config key such as `sft.init_from`; "" for this run.

        Raises:
          CheckpointError: the stage of this run is not finished.
        """
        if elsewhere:
            return files.parse_workdir(elsewhere, f"the checkpoints of {stage}")
        return folder.finished_checkpoints(self.workdir, stage)

    def load_start(self, stage: str, elsewhere: str = "", network: TransformerConfig | None = None) -> Params:
        """Loads the policy that another stage starts from: the last checkpoint of a stage, or of a folder.

        Args:
          stage: its name.
          elsewhere: see `checkpoints`.
          network: the policy's shape, if it is not the recipe's.

        Returns:
          Its weights. If the recipe has adapters, those of the checkpoint are kept next to their kernels, and
          `Stage.train` trains them further.

        Raises:
          CheckpointError, TokenizerError: see `checkpoints` and `trained.load_policy`.
        """
        start, network = self.checkpoints(stage, elsewhere), network or self.policy_config
        return trained.load_policy(start, network, self.layout.tokenizer, adapters=self.lora).params

    def load_policy(self, stage: str, step: int | None = None) -> Trained:
        """Loads the policy of a finished stage: the chosen checkpoint of SFT, the moving average of PPO.

        Args:
          stage: its name.
          step: of another checkpoint.
        """
        step = folder.selected_step(self.workdir, stage) if step is None else step
        return trained.load_policy(self.checkpoints(stage), self.policy_config, self.layout.tokenizer, step=step)

    def check_policy(self, stage: str, step: int | None = None) -> None:
        """Raises the errors of `load_policy` without reading weights."""
        step = folder.selected_step(self.workdir, stage) if step is None else step
        trained.check_policy(self.checkpoints(stage), self.policy_config, self.layout.tokenizer, step=step)

    def load_reward_model(
        self,
        elsewhere: str = "",
        *,
        adapters: LoraConfig | None = None,
        shared: tuple[Base, Params] | None = None,
    ) -> Trained:
        """Loads the reward model of this run, or of the folder in `ppo.reward_from`, its offset included.

        Args:
          elsewhere: see `checkpoints`.
          adapters: see `trained.load_reward_model`.
          shared: see `trained.load_reward_model`.
        """
        start, tokenizer = self.checkpoints("reward", elsewhere), self.layout.tokenizer
        return trained.load_reward_model(start, self.reward_config, tokenizer, adapters=adapters, shared=shared)

    def open_policy(self, stage: str, step: Step = None) -> tuple[Trained, Layout]:
        """Loads a policy with the network and layout that its checkpoint describes. Its stage may be in progress.

        Args:
          stage: its name.
          step: of the checkpoint; "best" for that with the largest validation_reward, None for the one that
            `load_policy` loads.

        Raises:
          CheckpointError: there is no such checkpoint.
        """
        return trained.open_policy(folder.saved_checkpoints(self.workdir, stage), step=self._saved_step(stage, step))

    def policy_layout(self, stage: str, step: Step = None) -> Layout:
        """Reads the layout of a policy, without its weights; see `open_policy`."""
        return trained.describe(folder.saved_checkpoints(self.workdir, stage), self._saved_step(stage, step))[1]

    def _saved_step(self, stage: str, step: Step) -> int | None:
        if step == "best":
            return best_step(self.directory(stage))
        return folder.selected_step(self.workdir, stage) if step is None else step

    def reward_layout(self) -> Layout:
        """Reads the layout that the reward model's checkpoint describes, without its weights."""
        return trained.describe(self.checkpoints("reward"))[1]

    def open_reward_model(self) -> tuple[Trained, Layout]:
        """Loads the reward model, with the network and layout that its checkpoint describes."""
        return trained.open_reward_model(self.checkpoints("reward"))


def _in_batches(rows: Sequence[Any], batch_size: int) -> list[Any]:
    """Returns all rows in order, in batches of at most about `batch_size`; see `pipeline.ordered_batches`."""
    return list(pipeline.ordered_batches(rows, batch_size=even_rows(min(len(rows), batch_size))))


def policy_config(config: ml_collections.ConfigDict, vocab_size: int) -> TransformerConfig:
    """Returns the policy's network of a recipe, without dropout.

    Raises:
      ConfigError: a value of `model` is impossible.
    """
    network = TransformerConfig(vocab_size=vocab_size, **config.model.to_dict())
    lora = lora_config(config)
    return network if lora is None else dataclasses.replace(network, lora_alpha=lora.alpha)
