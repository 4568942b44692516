"""Reads public data sets that tfds has prepared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from instructjax.errors import DataError


def find(data_dir: epath.Path, name: str) -> epath.Path | None:
    """Returns the folder of a set's latest version, DATA_DIR/NAME/VERSION; None if tfds has prepared none.

    Args:
      data_dir: the one that `tfds build` was given.
      name: such as "hellaswag", or "super_glue/rte" for a set with a config.
    """
    versions = [path.parent for path in (data_dir / name).glob("*/features.json")]
    return max(versions, key=lambda path: tfds.core.Version(path.name), default=None)


def read(directory: epath.Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place, example) for each example of a set, with JSON values: a label of a class is its name.

    Args:
      directory: the set's folder; see `find`.
      split: its name.

    Raises:
      DataError: the set has no such split, or its file format has no random access.
    """
    builder = tfds.builder_from_directory(directory)
    if split not in builder.info.splits:
        found = ", ".join(builder.info.splits) or "none"
        raise DataError(f"{directory}: expected a split {split}, found {found}")
    try:
        source = builder.as_data_source(split)
    except NotImplementedError:
        raise DataError(
            f"{directory}: expected a set in array_record, found {builder.info.file_format.value}; "
            "build it with --file_format=array_record"
        ) from None
    for number, example in enumerate(source, start=1):
        named = {name: _to_json(value, builder.info.features[name]) for name, value in example.items()}
        yield f"{directory}: {split}: example {number}", named


def _to_json(value: Any, feature: Any) -> Any:
    if isinstance(feature, tfds.features.ClassLabel):
        return feature.int2str(int(value))
    return jax.tree.map(_text, value.tolist() if isinstance(value, np.ndarray | np.generic) else value)


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
