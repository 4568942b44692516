"""Records and checks what a stage began with: it resumes only with the same recipe and records.

If the code of the package or of a reward function has changed, it prints a warning.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jaxlib
import ml_collections
from etils import epath

import instructjax
from instructjax import files, warning_log
from instructjax.data import prepared
from instructjax.errors import ConfigError, DataError
from instructjax.recipe import declared

# Keys that name places on a host. What is there decides: the fingerprints of prepared records are compared instead.
HOSTS_OWN = ("data.prepared", "files.public", *(f"files.{name}" for name in prepared.SET_NAMES.values()))

COMPILER_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION")


def check_config(
    config: ml_collections.ConfigDict,
    path: epath.Path,
    sections: Sequence[str],
    *,
    may_change: Collection[str] = (),
    advice: str = "choose another --workdir",
) -> None:
    """Raises an error if a recipe differs from the one that a folder began with.

    Args:
      config: a whole recipe.
      path: the folder's config.json.
      sections: names of the sections that must be the same.
      may_change: keys in them that need not be the same, such as "ppo.iterations".
      advice: what to do about a difference.

    Raises:
      ConfigError: names the file and each key that differs, with both values.
    """
    began, now = files.read_json(path), json.loads(json.dumps(config.to_dict()))
    declared.check_names({section: began.get(section) for section in sections}, str(path))
    differing = []
    for section in sections:
        old, new = _keys(section, began.get(section)), _keys(section, now.get(section))
        differing += [
            f"{key}: expected {old.get(key)!r}, as the stage began with, found {new.get(key)!r}"
            for key in old | new
            if old.get(key) != new.get(key) and key not in (*may_change, *HOSTS_OWN)
        ]
    if differing:
        raise ConfigError(f"{path}: {'; '.join(differing)}; {advice}")


def describe(data: epath.PathLike, sets: Iterable[str], functions: Mapping[str, str]) -> dict[str, Any]:
    """Returns the fingerprints of prepared sets and the version of the code, as JSON.

    Args:
      data: the folder of the prepared sets.
      sets: the names of the sets that a stage uses; sets that do not exist are left out.
      functions: the digests of the files of the user's functions, by the functions' names.
    """
    data = epath.Path(data)
    return {
        "records": {name: prepared.fingerprint(data, name) for name in sets if (data / name).exists()},
        "code": code_version(),
        "functions": dict(functions),
    }


def check(path: epath.Path, data: epath.PathLike, sets: Iterable[str], functions: Mapping[str, str]) -> None:
    """Raises an error if records have changed since a stage began, and prints a warning if the code has.

    Args:
      path: the file with the result of `describe` from when the stage began.
      data: see `describe`.
      sets: see `describe`.
      functions: see `describe`.

    Raises:
      DataError: names the set whose records have changed.
    """
    began, now = files.read_json(path), describe(data, sets, functions)
    for name, fingerprint in began["records"].items():
        if now["records"].get(name) != fingerprint:
            raise DataError(
                f"{path}: {name}: expected the records that the stage began with ({fingerprint}), "
                f"found {now['records'].get(name, 'none')}; choose another --workdir"
            )
    if began["code"] != now["code"]:
        warning_log.warn(f"{path}: begun with instructjax {began['code']}, this is {now['code']}: weights may differ")
    for name, found in functions.items():
        if (before := began.get("functions", {}).get(name, found)) != found:
            warning_log.warn(
                f"{path}: begun with another file of {name} ({before}), this is {found}: rewards may differ"
            )


def shared_facts(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns what must be the same in all processes of a run, as JSON: recipe, program, versions, compiler flags."""
    facts = {"program": pathlib.Path(sys.argv[0]).name, "instructjax": code_version()}
    facts |= {"jax": jax.__version__, "jaxlib": jaxlib.__version__}
    facts |= {name: os.environ.get(name, "") for name in COMPILER_FLAGS}
    for section, value in json.loads(json.dumps(config.to_dict())).items():
        facts |= {key: found for key, found in _keys(section, value).items() if key not in HOSTS_OWN}
    return facts


@functools.cache
def code_version() -> str:
    """Returns the version of the package with a hash of its source: "0.1.0 9f3c01aa"."""
    root = pathlib.Path(instructjax.__file__).parent
    source = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        source.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{instructjax.__version__} {source.hexdigest()[:8]}"


def _keys(section: str, value: Any) -> dict[str, Any]:
    """Returns {"sft.epochs": 16, ...} for a section, and {"seed": 0} for a key without a section."""
    return {f"{section}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {section: value}
