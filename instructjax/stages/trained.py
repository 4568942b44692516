"""Loads the models that stages have trained, from checkpoints that describe their content."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import jax
from etils import epath

from instructjax.data.layouts import Layout
from instructjax.errors import CheckpointError, ConfigError
from instructjax.models import lora
from instructjax.models.config import TransformerConfig
from instructjax.models.lora import LoraConfig
from instructjax.models.transformer import LanguageModel, ScalarModel, abstract_params, random_params
from instructjax.recipe import declared
from instructjax.runs import checkpoint
from instructjax.stages import adapter_base
from instructjax.stages.adapter_base import Base
from instructjax.text import tokenizer_files
from instructjax.text.templates import SEPARATOR
from instructjax.text.tokenizer import Tokenizer
from instructjax.training import parallel
from instructjax.training.state import Params

Model = TypeVar("Model", LanguageModel, ScalarModel)
_SIZES = ("vocab_size", "num_layers", "d_model", "d_ff", "max_length", "tied")


@dataclasses.dataclass(frozen=True)
class Trained(Generic[Model]):
    """A model that a stage has trained.

    Attributes:
      model: without dropout.
      params: its weights.
      tokenizer: the tokenizer that it was trained with.
    """

    model: Model
    params: Params
    tokenizer: Tokenizer


def initial_params(model: LanguageModel | ScalarModel, key: jax.Array) -> Params:
    """Returns random weights, placed on the mesh of the context."""
    return parallel.build(functools.partial(random_params, model), key)


def load_policy(
    directory: epath.PathLike,
    config: TransformerConfig,
    tokenizer: Tokenizer,
    *,
    step: int | None = None,
    adapters: LoraConfig | None = None,
) -> Trained[LanguageModel]:
    """Loads the policy of a checkpoint, which must have the given network and tokenizer.

    The stage that made a checkpoint writes into it where the policy is in the saved state.

    Args:
      directory: a folder of checkpoints.
      config: the network that the recipe describes.
      tokenizer: the run's tokenizer.
      step: the checkpoint to read; None for the last.
      adapters: None merges the adapters of a checkpoint into its kernels. Otherwise they are kept next to them, and
        must be these.

    Raises:
      CheckpointError: the folder has no checkpoint, or one of another network or of a stage without a policy; or the
        base of its adapters is not where it was, or another.
      TokenizerError: the checkpoint was trained with another tokenizer.
    """
    item = check_policy(directory, config, tokenizer, step=step)
    return _load(LanguageModel(config), directory, tokenizer, item, step, adapters)


def check_policy(
    directory: epath.PathLike, config: TransformerConfig, tokenizer: Tokenizer, *, step: int | None = None
) -> str:
    """Returns where the policy lies in the saved state, or raises the errors of `load_policy`, without its weights."""
    stage = read_meta(directory, step)["stage"]
    if stage["policy"] is None:
        raise CheckpointError(
            f"{directory}: expected the checkpoint of a policy, found one of the stage {stage['name']}, which has none"
        )
    _check(config, directory, tokenizer, step)
    return stage["policy"]


def load_reward_model(
    directory: epath.PathLike,
    config: TransformerConfig,
    tokenizer: Tokenizer,
    *,
    step: int | None = None,
    adapters: LoraConfig | None = None,
    shared: tuple[Base, Params] | None = None,
) -> Trained[ScalarModel]:
    """Loads a reward model; see `load_policy`. Only the last checkpoint of its stage has the offset.

    Args:
      directory: see `load_policy`, also for the next four.
      config: the reward model's network.
      tokenizer: the run's tokenizer.
      step: the checkpoint to read.
      adapters: what to do with adapters.
      shared: a base that is loaded already, for adapters on it: the reward model gets its arrays.

    Raises:
      CheckpointError: see `load_policy`; or the reward model has another base than the shared one.
    """
    read_meta(directory, step)
    _check(config, directory, tokenizer, step)
    return _load(ScalarModel(config), directory, tokenizer, "params", step, adapters, shared)


def open_policy(directory: epath.PathLike, *, step: int | None = None) -> tuple[Trained[LanguageModel], Layout]:
    """Loads a policy with the network and layout that its checkpoint describes."""
    config, layout = describe(directory, step)
    return load_policy(directory, config, layout.tokenizer, step=step), layout


def open_reward_model(directory: epath.PathLike) -> tuple[Trained[ScalarModel], Layout]:
    """Loads a reward model with the network and layout that its checkpoint describes."""
    config, layout = describe(directory)
    return load_reward_model(directory, config, layout.tokenizer), layout


def read_meta(directory: epath.PathLike, step: int | None) -> dict[str, Any]:
    """Reads a checkpoint's description of itself; see `checkpoint.read_meta`.

    Raises:
      CheckpointError: also if an older version wrote the checkpoint without naming its stage.
    """
    meta = checkpoint.read_meta(directory, step=step)
    declared.check_names(meta["model"], str(directory), "model.")
    if "stage" not in meta:
        raise CheckpointError(
            f"{directory}: expected a checkpoint of instructjax 0.3 or later, which names its stage, found an older "
            "one; train the stage again, or read it with the version that wrote it"
        )
    return meta


def _check(config: TransformerConfig, directory: epath.PathLike, tokenizer: Tokenizer, step: int | None) -> None:
    checkpoint.check_tokenizer(directory, tokenizer.fingerprint, step=step)
    meta = read_meta(directory, step)
    # A checkpoint of a version without some of the choices has their defaults. Its dtypes do not matter.
    network = _network(meta["model"] | {"dtype": "float32", "param_dtype": "float32"}, directory)
    found, expected = network.function(), config.function()
    for name in found | expected:
        # Arrays' shapes tell the sizes.
        if name not in _SIZES and found.get(name) != expected.get(name):
            raise CheckpointError(
                f"{directory}: model.{name}: expected {expected.get(name)}, found a model with {found.get(name)}"
            )


def _load(
    model: Model,
    directory: epath.PathLike,
    tokenizer: Tokenizer,
    item: str,
    step: int | None,
    adapters: LoraConfig | None,
    shared: tuple[Base, Params] | None = None,
) -> Trained[Model]:
    meta = read_meta(directory, step)
    shapes = abstract_params(model)
    base = adapter_base.read(meta, directory)
    if shared is not None:
        adapter_base.check_shared(base, shared[0], directory)
    if base is None:
        params = checkpoint.restore_params(directory, parallel.abstract(shapes), item=item, step=step)
        return Trained(model, params, tokenizer)
    saved = adapter_base.lora_config(meta["config"])
    assert saved is not None
    if adapters is not None:
        adapter_base.check_adapters(adapters, saved, str(directory))
    added = jax.eval_shape(lambda: lora.init(jax.random.key(0), saved, model.config))
    kept, learned = (parallel.abstract(part) for part in lora.split(lora.attach(shapes, added)))
    params = lora.attach(
        base.restore(kept) if shared is None else shared[1],
        checkpoint.restore_params(directory, learned, item=item, step=step),
    )
    if adapters is None:
        params = parallel.build(functools.partial(lora.merge, alpha=saved.alpha), params)
    return Trained(model, params, tokenizer)


def describe(directory: epath.PathLike, step: int | None = None) -> tuple[TransformerConfig, Layout]:
    """Reads the network and layout of a checkpoint, without its weights; see `load_policy`."""
    meta = read_meta(directory, step)
    data = meta["config"]["data"]
    tokenizer = tokenizer_files.from_bytes(checkpoint.tokenizer_bytes(meta))
    layout = Layout(tokenizer, data["separator"], data["max_prompt"], data["max_response"])
    layout = dataclasses.replace(layout, kind=data.get("template", SEPARATOR))  # older ones had a separator only
    return _network(meta["model"], directory), layout


def _network(fields: Mapping[str, Any], directory: epath.PathLike) -> TransformerConfig:
    """Returns the network of a checkpoint.

    Raises:
      CheckpointError: names the checkpoint and the key whose value this version does not know.
    """
    try:
        return TransformerConfig(**fields)
    except ConfigError as error:
        raise CheckpointError(f"{directory}: {error}") from None
