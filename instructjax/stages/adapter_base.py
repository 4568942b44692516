"""The base of adapters: weights that do not learn, in the checkpoint of the stage that trained them.

A stage with adapters saves what it learns, and this description of the rest (see models/lora.py). It starts from
weights without adapters, which become its base, or from adapters, which it trains further on the same base.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections
from etils import epath

from instructjax import files
from instructjax.errors import CheckpointError, ConfigError
from instructjax.models.lora import LORA_A, LoraConfig
from instructjax.runs import checkpoint, digest
from instructjax.runs.checkpoint_files import absolute, read_content, step_path
from instructjax.training.state import Params


@dataclasses.dataclass(frozen=True)
class Base:
    """Where the weights of a base are saved, and what they are.

    Attributes:
      checkpoints: the folder of checkpoints. In a checkpoint of the same run, it is relative to the run's folder.
      step: of the checkpoint.
      item: where the weights lie in its state, such as "params".
      arrays: type, shape and digest of each array of the base, by its path in the weights.
    """

    checkpoints: str
    step: int
    item: str
    arrays: Mapping[str, str]

    def restore(self, template: Params) -> Params:
        """Reads the weights of the template.

        Raises:
          CheckpointError: the checkpoint is not there, or has other weights than those of the adapters.
        """
        path = step_path(self.checkpoints, self.step)
        self.require(digest.subtree(read_content(path)["arrays"], self.item.split("/")), str(path))
        return {
            name: checkpoint.restore_params(self.checkpoints, part, item=f"{self.item}/{name}", step=self.step)
            for name, part in template.items()
        }

    def require(self, found: Mapping[str, str], place: str) -> None:
        """Raises CheckpointError if some array of the base has another digest, or none, among those found."""
        for name, expected in self.arrays.items():
            if found.get(name) != expected:
                raise CheckpointError(
                    f"{place}: {name}: expected the base of the adapters, {expected}, found {found.get(name, 'none')}"
                )

    def relative_to(self, workdir: epath.Path) -> Base:
        """Returns the description that is saved in a folder of a run, which may be moved."""
        inside = f"{absolute(workdir)}/"
        return dataclasses.replace(self, checkpoints=self.checkpoints.removeprefix(inside))


def read(meta: Mapping[str, Any], checkpoints: epath.PathLike) -> Base | None:
    """Returns the base of the adapters in a checkpoint; None if it has none.

    Args:
      meta: of the checkpoint.
      checkpoints: its folder, WORKDIR/STAGE/checkpoints.
    """
    if "base" not in meta:
        return None
    base = Base(**meta["base"])
    if files.is_bucket(base.checkpoints) or epath.Path(base.checkpoints).is_absolute():
        return base
    return dataclasses.replace(base, checkpoints=str(absolute(checkpoints).parent.parent / base.checkpoints))


def of_start(checkpoints: epath.PathLike, params: Params) -> Base:
    """Returns the base of a stage that starts from the policy in the last checkpoint of a folder.

    Args:
      checkpoints: the folder.
      params: the base's weights, loaded from there.

    Raises:
      CheckpointError: these are not the weights in the checkpoint.
    """
    path = step_path(checkpoints, None)
    content, digests = read_content(path), digest.digests(params)
    if (base := read(content["meta"], checkpoints)) is None:
        item = content["meta"]["stage"]["policy"]
        saved = digest.subtree(content["arrays"], item.split("/"))
        base = Base(str(path.parent), int(path.name), item, saved)
    # A scalar model has no unembedding.
    base = dataclasses.replace(base, arrays={name: base.arrays.get(name, "none") for name in digests})
    base.require(digests, f"{checkpoints}: the start of the stage")
    return base


def lora_config(config: ml_collections.ConfigDict | Mapping[str, Any]) -> LoraConfig | None:
    """Returns the adapters of a recipe; None if it has none.

    Args:
      config: a whole recipe, or the recipe in the meta of a checkpoint.
    """
    keys = config["lora"]
    if not keys["rank"]:
        return None
    return LoraConfig(keys["rank"], keys["alpha"], keys["dropout"], tuple(keys["matrices"]))


def check_adapters(expected: LoraConfig, found: LoraConfig, place: str) -> None:
    """Raises CheckpointError if the adapters in a checkpoint are not those of the recipe; dropout may differ."""
    for name in ("rank", "alpha", "matrices"):
        wanted, there = getattr(expected, name), getattr(found, name)
        if wanted != there:
            raise CheckpointError(f"{place}: lora.{name}: expected {wanted}, found adapters with {there}")


def check_has_none(state: Any, stage: str) -> None:
    """Raises ConfigError if the state of a stage without a base has adapters: they would be lost when it is loaded."""
    if any(name.endswith(LORA_A) for name in digest.kinds(state)):
        raise ConfigError(
            f"lora.rank: expected 0 for the stage {stage}, which trains adapters with a step of its own and does not "
            "say where their base is (Stage.train_with, base), found more"
        )


def check_shared(found: Base | None, shared: Base, place: epath.PathLike) -> None:
    """Raises CheckpointError if the reward model in a checkpoint does not have the trunk of a shared base.

    Args:
      found: the base of the reward model; None if it has no adapters.
      shared: the policy's base.
      place: the folder of the checkpoint.
    """
    if found is None or any(shared.arrays.get(name) != array for name, array in found.arrays.items()):
        other = "one without adapters" if found is None else f"one on {found.checkpoints}/{found.step}"
        raise CheckpointError(
            f"{place}: lora.one_base: expected a reward model with adapters on the policy's base, "
            f"{shared.checkpoints}/{shared.step}, found {other}; lora.one_base=False holds its trunk, too"
        )
