"""The folder of a run: where each stage finds what the stages before it left.

WORKDIR/data/                 prepared records and the tokenizer
WORKDIR/STAGE/checkpoints/    weights, tokenizer and config of a stage
WORKDIR/STAGE/metrics.jsonl   its curves
WORKDIR/STAGE/config.json     the config that it ran with
WORKDIR/STAGE/began.json      fingerprints of the records that it learns from, and the version of the code
WORKDIR/results.json, report.md
"""

from __future__ import annotations

import dataclasses
import functools
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath

from instructjax import files
from instructjax.data.layouts import Layout
from instructjax.errors import CheckpointError, InputError
from instructjax.models import sizes
from instructjax.models.config import TransformerConfig
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.recipe import check
from instructjax.runs import checkpoint, guards, invariants, processes, provenance
from instructjax.text import tokenizer_files
from instructjax.text.tokenizer import Tokenizer
from instructjax.training import parallel

T = TypeVar("T")

STAGES = ("pretrain", "sft", "reward", "ppo_init", "ppo", "ppo_ptx")

# What decides a stage's weights, beside its own section. Not `log` or `evaluate`, nor how devices share the work.
_SHARED = ("seed", "data", "tokenizer", "model", "optimizer", *check.SOURCES)
_SECTIONS = {"reward": ("comparisons", "reward"), "ppo_ptx": ("ppo",)}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model as a stage left it.

    Attributes:
      model: a LanguageModel or a ScalarModel, without dropout.
      params: its weights.
      tokenizer: the tokenizer it was trained with.
    """

    model: Any
    params: Any
    tokenizer: Tokenizer


def stage_directory(workdir: epath.PathLike, stage: str) -> epath.Path:
    """WORKDIR/STAGE."""
    return epath.Path(workdir) / stage


def is_finished(workdir: epath.PathLike, stage: str) -> bool:
    """Whether a stage of this run made its last step."""
    return (stage_directory(workdir, stage) / "summary.json").exists()


def checkpoints_of(configured: str, workdir: epath.PathLike, stage: str) -> epath.Path:
    """The checkpoint folder named in a config, or else that of a stage of this run.

    Raises:
      CheckpointError: the stage of this run is not finished.
    """
    if configured:
        return epath.Path(configured)
    directory = stage_directory(workdir, stage)
    if not is_finished(workdir, stage):
        found = "an unfinished one" if (directory / "checkpoints").exists() else "none"
        raise CheckpointError(f"{directory}: expected the finished stage {stage}, found {found}")
    return directory / "checkpoints"


def model_config(config: ml_collections.ConfigDict, tokenizer: Tokenizer) -> TransformerConfig:
    """The shape of a recipe's networks, with the tokenizer's vocabulary and without dropout.

    Raises:
      ConfigError: a value of `model` is impossible.
    """
    return TransformerConfig(vocab_size=tokenizer.vocab_size, **config.model.to_dict())


def reward_config(config: ml_collections.ConfigDict, tokenizer: Tokenizer) -> TransformerConfig:
    """The shape of a recipe's reward model and value network: the policy's, or `reward.size` with its arithmetic.

    Raises:
      ConfigError: see `model_config`.
    """
    return sizes.resized(model_config(config, tokenizer), config.reward.size)


def initial_params(model: Any, key: jax.Array) -> Any:
    """Random weights of a LanguageModel or ScalarModel."""
    return parallel.build(functools.partial(random_params, model), key)


def random_params(model: Any, key: jax.Array) -> Any:
    """`initial_params` as a pure function, which places nothing."""
    token = jnp.ones((1, 1), jnp.int32)
    return model.init(key, token, token, token * 0)["params"]


def load_language_model(
    directory: epath.PathLike, shape: TransformerConfig, tokenizer: Tokenizer, *, item: str = "params", step=None
) -> Trained:
    """Reads a language model that must have the given shape and tokenizer.

    Args:
      directory: a folder of checkpoints.
      shape: the model that the config describes.
      tokenizer: the run's tokenizer.
      item: where the weights are in the state: "params", or "policy/ema" for PPO's average.
      step: the checkpoint to read; None for the last.

    Raises:
      CheckpointError: there is no checkpoint, or it is one of another model.
      TokenizerError: the checkpoint was trained with another tokenizer.
    """
    return _load(LanguageModel(shape), directory, tokenizer, item, step)


def load_reward_model(directory: epath.PathLike, shape: TransformerConfig, tokenizer: Tokenizer) -> Trained:
    """Reads a reward model, its offset included; see `load_language_model`."""
    return _load(ScalarModel(shape), directory, tokenizer, "params", None)


def _load(model: Any, directory: epath.PathLike, tokenizer: Tokenizer, item: str, step: int | None) -> Trained:
    checkpoint.check_tokenizer(directory, tokenizer.fingerprint, step=step)
    found = checkpoint.read_meta(directory, step=step)["model"]
    for name in ("num_heads", "d_head", "local_window"):  # no array's shape tells them
        if found[name] != (expected := getattr(model.config, name)):
            raise CheckpointError(f"{directory}: model.{name}: expected {expected}, found a model with {found[name]}")
    template = parallel.abstract(jax.eval_shape(lambda: random_params(model, jax.random.key(0))))
    return Trained(model, checkpoint.restore_params(directory, template, item=item, step=step), tokenizer)


def describe(config: ml_collections.ConfigDict, shape: TransformerConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """What is saved with a stage's checkpoints; see `checkpoint.describe`."""
    return checkpoint.describe(config.to_dict(), dataclasses.asdict(shape), tokenizer)


def begin(config: ml_collections.ConfigDict, workdir: epath.PathLike, stage: str) -> epath.Path:
    """Notes what a stage is begun with, unless it has a checkpoint: then recipe and records must be those.

    Returns:
      WORKDIR/STAGE.

    Raises:
      ConfigError: see `provenance.check_config`; what may change is logging, evaluation and the sections
        of other stages.
      DataError: see `provenance.check`.
    """
    directory = stage_directory(workdir, stage)
    recipe, began = directory / "config.json", directory / "began.json"

    def note() -> None:
        if began.exists() and checkpoint.saved_steps(directory / "checkpoints"):
            provenance.check_config(config, recipe, (*_SHARED, *_SECTIONS.get(stage, (stage,))))
            provenance.check(began, workdir, stage)
        else:
            directory.mkdir(parents=True, exist_ok=True)
            files.write_json(recipe, config.to_dict())
            files.write_json(began, provenance.describe(workdir, stage))

    processes.first(note)
    return directory


def root_key(config: ml_collections.ConfigDict, stage: str) -> jax.Array:
    """The key that a stage's randomness is folded from: another for each stage."""
    return jax.random.fold_in(jax.random.key(config.seed), STAGES.index(stage))


def judge(config: ml_collections.ConfigDict) -> Callable[[str, dict[str, float]], None]:
    """`judge(place, values)` for `loop.run`: stops, or warns, where an invariant or a guard does not hold."""
    precision, ranges = (
        invariants.precision(config.model.matmul_dtype or config.model.dtype),
        guards.of_recipe(config.guards),
    )

    def enforce(place: str, values: dict[str, float]) -> None:
        invariants.enforce(place, values, precision=precision, action=config.invariants)
        guards.enforce(place, values, ranges, config.guards.action)

    return enforce


def load_policy(workdir: epath.PathLike, stage: str, shape: TransformerConfig, tokenizer: Tokenizer) -> Trained:
    """The policy that a stage of this run left: SFT's chosen checkpoint, PPO's moving average."""
    directory = checkpoints_of("", workdir, stage)
    return load_language_model(directory, shape, tokenizer, **_place_of_policy(workdir, stage))


def open_policy(workdir: epath.PathLike, stage: str) -> tuple[Trained, Layout]:
    """Like `load_policy`, with shape, tokenizer and layout as the checkpoint describes them."""
    directory, place = checkpoints_of("", workdir, stage), _place_of_policy(workdir, stage)
    shape, layout = _described(directory, place["step"])
    return load_language_model(directory, shape, layout.tokenizer, **place), layout


def open_reward_model(workdir: epath.PathLike) -> tuple[Trained, Layout]:
    """The reward model that a run left, with shape, tokenizer and layout as its checkpoint describes them."""
    directory = checkpoints_of("", workdir, "reward")
    shape, layout = _described(directory, None)
    return load_reward_model(directory, shape, layout.tokenizer), layout


def _described(directory: epath.Path, step: int | None) -> tuple[TransformerConfig, Layout]:
    meta = checkpoint.read_meta(directory, step=step)
    data = meta["config"]["data"]
    tokenizer = tokenizer_files.from_bytes(checkpoint.tokenizer_bytes(meta))
    layout = Layout(tokenizer, data["separator"], data["max_prompt"], data["max_response"])
    return TransformerConfig(**meta["model"]), layout


def _place_of_policy(workdir: epath.PathLike, stage: str) -> dict[str, Any]:
    if stage in ("ppo", "ppo_ptx"):
        return {"item": "policy/ema", "step": None}
    selected = stage_directory(workdir, stage) / "selected.json"
    return {"item": "params", "step": files.read_json(selected)["step"] if selected.exists() else None}


def timed(stage: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Decorates `run(config, workdir, ...)` to add its seconds and peak memory to WORKDIR/cost.json.

    Nothing is added where nothing was done: to a stage that was finished, or that was refused.
    """

    def decorate(run: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(run)
        def timed_run(config: ml_collections.ConfigDict, workdir: epath.PathLike, *arguments: Any) -> T:
            start, worked = time.monotonic(), not is_finished(workdir, stage)
            _spent(workdir)  # a file that is damaged is better known now than after the work
            try:
                with parallel.on_mesh(config.parallel):
                    return run(config, workdir, *arguments)
            except InputError:
                worked = False
                raise
            finally:
                if worked and processes.is_first():
                    _add_cost(workdir, stage, time.monotonic() - start)

        return timed_run

    return decorate


def _spent(workdir: epath.PathLike) -> dict[str, dict[str, float]]:
    """WORKDIR/cost.json, {} where there is none yet."""
    path = epath.Path(workdir) / "cost.json"
    return files.read_json(path) if path.exists() else {}


def _add_cost(workdir: epath.PathLike, stage: str, seconds: float) -> None:
    path, spent = epath.Path(workdir) / "cost.json", _spent(workdir)
    before = spent.get(stage, {"seconds": 0.0, "peak_rss_gib": 0.0})
    spent[stage] = {
        "seconds": before["seconds"] + seconds,
        "peak_rss_gib": max(before["peak_rss_gib"], _peak_rss_gib()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, spent)


def cost(workdir: epath.PathLike, **seconds: float) -> tuple[dict[str, float], float]:
    """Seconds by stage with their total, and the peak memory in GiB, of all stages of a run.

    Args:
      workdir: the run's folder.
      **seconds: of stages that are not in WORKDIR/cost.json.
    """
    spent = _spent(workdir)
    wall = {stage: entry["seconds"] for stage, entry in spent.items()} | seconds
    wall["total"] = sum(wall.values())
    peak = max([_peak_rss_gib(), *(entry["peak_rss_gib"] for entry in spent.values())])
    return {stage: round(value, 1) for stage, value in wall.items()}, round(peak, 3)


def _peak_rss_gib() -> float:
    """Peak resident memory of this process; Linux counts in KiB, macOS in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
