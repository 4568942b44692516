"""What all builders of programs share: a program before it is compiled, with shapes instead of arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from instructjax.batch import LMBatch
from instructjax.models import lora, sizes
from instructjax.models.config import TransformerConfig
from instructjax.models.flops import Work
from instructjax.models.lora import LoraConfig
from instructjax.models.transformer import abstract_params
from instructjax.stages import ppo_weights
from instructjax.stages.run import policy_config

Tree = Any  # of jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True)
class Program:
    """A program, before it is compiled.

    Attributes:
      name: a key of `programs.PROGRAMS`.
      function: a pure function, `function(state, batch, key, *constants)`.
      state: the state that the stage keeps between steps. The program returns it, updated, if
        `donated`.
      batch: the rows of a step.
      constants: weights that the stage only reads.
      donated: whether the result reuses the memory of the state.
      phases: lower bounds on the cost of each phase, in the order in which they run.
      rows: what must divide over "data" and "fsdp". For each expression of config keys, the
        number of rows and the number of parts in which they are computed.
      cache: bytes of keys and values in memory at a time, over all devices.
      trips: how often its while-loops run if no response ends early; see
        `traced_flops.count_matmul_flops`.
    """

    name: str
    function: Callable[..., Any]
    state: Tree
    batch: Tree
    constants: tuple[Tree, ...]
    donated: bool
    phases: dict[str, Work]
    rows: dict[str, tuple[int, int]]
    cache: float = 0.0
    trips: tuple[float, ...] = ()

    @property
    def work(self) -> Work:
        """The sum of all phases."""
        return sum(self.phases.values(), Work(0.0, 0.0, 0.0))


def model_configs(config: ml_collections.ConfigDict) -> tuple[TransformerConfig, TransformerConfig]:
    """Returns the shape of the policy, and that of reward model and value network."""
    shape = policy_config(config, config.tokenizer.vocab_size)
    return shape, sizes.resized(shape, config.reward.size if ppo_weights.uses_reward_model(config.ppo) else "")


def devices(config: ml_collections.ConfigDict) -> int:
    """Returns the number of devices over which the rows are divided."""
    return max(config.parallel.data, 1) * config.parallel.fsdp


def learned(model: Any, adapters: LoraConfig | None) -> tuple[tuple[Tree, ...], Tree]:
    """Returns a model's base, or () if all its weights learn, and what learns."""
    whole = abstract_params(model)
    if adapters is None:
        return (), whole
    added = jax.eval_shape(lambda: lora.init(jax.random.key(0), adapters, model.config))
    base, learned = lora.split(lora.attach(whole, added))
    return (base,), learned


def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """Returns the shape of an array."""
    return jax.ShapeDtypeStruct(shape, dtype)


def lm_batch(rows: int, length: int) -> LMBatch:
    """Returns the shapes of rows of text, [B, T]."""
    tokens = array((rows, length), jnp.int32)
    return LMBatch(tokens, tokens, tokens, array((rows, length), jnp.float32))
