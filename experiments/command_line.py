"""What every script has in common: two flags, and errors of one line."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable

import ml_collections
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from instructjax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[1]

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    str(ROOT / "configs" / "sandbox.py"),
    "The recipe, as FILE.py or FILE.py:VARIANT; --config.KEY=VALUE overrides a key of it.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The folder of the run, also of one to be continued; runs/RECIPE if not given."
)


def run(stage: Callable[[ml_collections.ConfigDict, epath.Path], None]) -> None:
    """Parses the command line and calls `stage(config, workdir)`.

    An error that the user can mend is printed as one line, and the exit code is 2.
    """

    def main(arguments: list[str]) -> None:
        if len(arguments) > 1:
            raise app.UsageError(f"expected flags only, found {arguments[1]!r}")
        logging.set_verbosity(logging.ERROR)  # tfds and orbax tell of each file
        stage(_CONFIG.value, workdir())

    try:
        app.run(main, flags_parser=_parse)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def name() -> str:
    """The recipe as it was named: "configs/sandbox.py:smoke"."""
    path, colon, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(".py:")
    path = pathlib.Path(path + ".py" if colon else path).resolve()
    path = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    return f"{path}:{variant}" if colon else str(path)


def workdir() -> epath.Path:
    """The folder of the run."""
    if _WORKDIR.value is not None:
        return epath.Path(_WORKDIR.value)
    recipe = pathlib.Path(name().replace(".py:", "-").removesuffix(".py")).name
    return epath.Path("runs") / recipe


def _parse(arguments: list[str]) -> list[str]:
    """Absl's parser, with the errors of configs and their keys as errors of one line."""
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        raise InputError(str(error).replace("\n", " ")) from None
    except (AttributeError, KeyError, TypeError, ValueError, OSError, ImportError) as error:
        raise InputError(f"--config: {' '.join(str(error).split())}") from None
