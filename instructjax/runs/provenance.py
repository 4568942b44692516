"""What a stage was begun with: recipe, records and code; and whether it can go on with those of today."""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import ml_collections
from etils import epath

import instructjax
from instructjax import files
from instructjax.data import prepared
from instructjax.errors import ConfigError, DataError

ALL = ("text", "demonstrations", "rankings", "prompts")
# The prepared sets that decide a stage's weights; of a stage that is no part of the paper, all.
USES = {
    "pretrain": ("text",),
    "sft": ("demonstrations",),
    "reward": ("rankings", "demonstrations"),
    "ppo_init": ("demonstrations", "text"),
    "ppo": ("prompts",),
    "ppo_ptx": ("prompts", "text"),
}


def check_config(config: ml_collections.ConfigDict, path: epath.Path, sections: Sequence[str]) -> None:
    """Refuses a recipe other than the one that a folder was begun with.

    Args:
      config: a whole recipe.
      path: the config.json of the folder.
      sections: names of the sections that must be the same.

    Raises:
      ConfigError: names the file and each key that differs, with both values.
    """
    began, now = files.read_json(path), json.loads(json.dumps(config.to_dict()))
    differing = []
    for section in sections:
        old, new = _keys(section, began.get(section)), _keys(section, now.get(section))
        differing += [
            f"{key}: expected {old.get(key)!r}, as the stage began with, found {new.get(key)!r}"
            for key in old | new
            if old.get(key) != new.get(key) and key not in MAY_CHANGE
        ]
    if differing:
        raise ConfigError(f"{path}: {'; '.join(differing)}; choose another --workdir")


def describe(workdir: epath.PathLike, stage: str) -> dict[str, Any]:
    """The fingerprints of the records that a stage uses, and the version of the code."""
    data = epath.Path(workdir) / "data"
    sets = {name: prepared.fingerprint(data, name) for name in USES.get(stage, ALL) if (data / name).exists()}
    return {"records": sets, "code": code_version()}


def check(path: epath.Path, workdir: epath.PathLike, stage: str) -> None:
    """Refuses to go on with other records, and warns of other code.

    Args:
      path: holds what `describe` gave when the stage was begun.
      workdir: the run's folder.
      stage: its name.

    Raises:
      DataError: names the set whose records are not those that the stage was begun with.
    """
    began, now = files.read_json(path), describe(workdir, stage)
    for name, fingerprint in began["records"].items():
        if now["records"].get(name) != fingerprint:
            raise DataError(
                f"{path}: {name}: expected the records that the stage began with ({fingerprint}), "
                f"found {now['records'].get(name, 'none')}; choose another --workdir"
            )
    if began["code"] != now["code"]:
        print(f"warning: {path}: begun with instructjax {began['code']}, this is {now['code']}: weights may differ")


# Keys of a stage's own section that a stage may go on with other values of: PPO's rates do not depend on its length.
MAY_CHANGE = frozenset({"ppo.iterations"})


@functools.cache
def code_version() -> str:
    """The version of the package, and a hash of its source."""
    root = pathlib.Path(instructjax.__file__).parent
    source = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        source.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{instructjax.__version__} {source.hexdigest()[:8]}"


def _keys(section: str, value: Any) -> dict[str, Any]:
    """{"sft.epochs": 16, ...} of a section, {"seed": 0} of a key without one."""
    return {f"{section}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {section: value}
