"""What a family of models in the format of Hugging Face is: a table of names, and a mapping of config.json."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from instructjax.errors import CheckpointError
from instructjax.models.config import TransformerConfig
from instructjax.typing import AnyArray

Described: TypeAlias = Mapping[str, Any]  # a config.json


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one of their tensors holds weights of ours, in one layer.

    Attributes:
      split: their tensor to our weights.
      join: our weights to their tensor; the inverse of `split`.
    """

    split: Callable[[AnyArray, TransformerConfig], Sequence[AnyArray]]
    join: Callable[[Sequence[AnyArray], TransformerConfig], AnyArray]


SAME = Layout(lambda tensor, _: (tensor,), lambda weights, _: weights[0])
TRANSPOSED = Layout(lambda tensor, _: (tensor.T,), lambda weights, _: weights[0].T)  # torch's Linear is [out, in]
ONE_ROW = Layout(lambda tensor, _: (tensor[0],), lambda weights, _: weights[0][None])
SIDE_BY_SIDE = Layout(  # queries, keys and values
    lambda tensor, _: [tensor[..., i * tensor.shape[-1] // 3 : (i + 1) * tensor.shape[-1] // 3] for i in range(3)],
    lambda weights, _: np.concatenate(weights, axis=-1),
)

# For each of their tensors, without the family's prefix: its layout and our weights. {} is the number of the layer.
Table: TypeAlias = Mapping[str, tuple[Layout, tuple[str, ...]]]


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
      model_type: its name in config.json.
      language_model: the class in transformers.
      classifier: the class in transformers that a reward model becomes.
      prefix: of the tensors below the head.
      table: the tensors of all models of the family; a model has those whose weights it has.
      supported: the values that keys of config.json may have, the first of which is assumed if the key is missing.
      fields: converts a config.json, completed and checked, to fields of a TransformerConfig.
      described: converts a config to keys of config.json; a choice that the family does not have is left out.
    """

    model_type: str
    language_model: str
    classifier: str
    prefix: str
    table: Table
    supported: Mapping[str, tuple[Any, ...]]
    fields: Callable[[Described, str], dict[str, Any]]
    described: Callable[[TransformerConfig], dict[str, Any]]

    def config(self, described: Described, where: str) -> TransformerConfig:
        """Converts a config.json to the config of a model that computes in float32.

        Raises:
          CheckpointError: a key is missing, or its value is not supported.
        """
        for key, allowed in self.supported.items():
            if (found := described.get(key, allowed[0])) not in allowed:
                expected = " or ".join(map(str, allowed))
                raise CheckpointError(f"{where}: {key}: expected {expected}, found {reprlib.repr(found)}")
        return TransformerConfig(**self.fields(described, where))


def dense(theirs: str, ours: str) -> Table:
    """Returns the entries of a torch Linear, with or without bias."""
    return {
        f"{theirs}.weight": (TRANSPOSED, (f"{ours}/kernel",)),
        f"{theirs}.bias": (SAME, (f"{ours}/bias",)),
    }


def norm(theirs: str, ours: str) -> Table:
    """Returns the entries of a norm, with or without bias."""
    return {f"{theirs}.weight": (SAME, (f"{ours}/scale",)), f"{theirs}.bias": (SAME, (f"{ours}/bias",))}


def size(described: Described, key: str, where: str, default: int | None = None) -> int:
    """Reads a size.

    Args:
      described: a config.json.
      key: of the size.
      where: the file, for errors.
      default: is returned if the key is missing or null; None if it must be there.

    Raises:
      CheckpointError: it is not a positive integer.
    """
    found = described.get(key)
    if found is None and default is not None:
        return default
    if not isinstance(found, int) or isinstance(found, bool) or not 1 <= found < 2**31:
        raise CheckpointError(f"{where}: {key}: expected a positive integer, found {reprlib.repr(found)}")
    return found


def number(described: Described, key: str, where: str, default: float | None = None) -> float:
    """Reads a positive number; see `size`.

    Raises:
      CheckpointError: it is not a positive number.
    """
    found = described.get(key, default)
    if not isinstance(found, int | float) or isinstance(found, bool) or not 0 < found < 1e30:
        raise CheckpointError(f"{where}: {key}: expected a positive number, found {reprlib.repr(found)}")
    return float(found)


def head_width(described: Described, width: str, heads: str, where: str) -> int:
    """Computes the width of a head from the keys of the width of the residual stream and of the number of heads.

    Raises:
      CheckpointError: the heads do not divide the width.
    """
    if size(described, width, where) % size(described, heads, where):
        raise CheckpointError(
            f"{where}: {width}: expected a multiple of {heads} ({described[heads]}), found {described[width]}"
        )
    return described[width] // described[heads]
