"""The common parts of all scripts: flags, several processes, and errors of one line."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flag_errors
import jax
import ml_collections
from absl import app, flags
from absl import logging as absl_logging
from etils import epath
from ml_collections import config_flags

from instructjax import accelerators, files
from instructjax.errors import DivergenceError, InputError, InvariantError
from instructjax.recipe import check
from instructjax.runs import lock, malloc_trim, processes, provenance
from instructjax.runs.interruption import Interrupted
from instructjax.stages.run import Run
from instructjax.training import parallel

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # recipes import from `configs`, even in a clone next to an installed wheel

DEFAULT = ROOT / "configs" / "sandbox.py"

_given: list[str] = []  # set by `_parse`; config_flags looks for keys here instead of in sys.argv

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,  # `_parse` sets the default; a default here would be read before errors can be caught
    "The recipe, as FILE.py or FILE.py:VARIANT; by default configs/sandbox.py. --config.KEY=VALUE overrides a key.",
    sys_argv=_given,
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "The folder of the run, new or to be resumed; by default runs/RECIPE or runs/RECIPE-seedN.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of the first process, in a run of several processes. Not needed on a TPU pod slice or under SLURM.",
)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "The number of this process, from 0; with --coordinator.")
_PROCESS_COUNT = flags.DEFINE_integer(
    "process_count", None, "The number of processes, with --coordinator. Alone, 1 prevents the search for others."
)
FLAGS = ("config", "workdir", "coordinator", "process_id", "process_count")

GPU_FLAGS = {"--xla_gpu_enable_latency_hiding_scheduler": "true"}  # communicates during matmuls; changes no result

# Exit codes other than 0, and other than Python's 1 for unexpected errors.
USER_ERROR = 2  # an error that the user can fix
INVARIANT_VIOLATED = 3  # an invariant does not hold: a bug, or diverging numbers
DIVERGED = 4  # training diverged; see the recipe's section `guards`
INTERRUPTED = 75  # asked to stop; the same command resumes the run. EX_TEMPFAIL: schedulers try again


def run(script: Callable[[Run], object]) -> None:
    """Parses the command line and calls `script(run)`. No other run may use the folder meanwhile.

    Errors that the user can fix, and errors of the disk, are printed as one line, with exit code 2. The exit code
    is 3 if an invariant does not hold, 4 if training diverged, and 75 if the run was asked to stop (SIGTERM,
    SIGINT).
    """
    _run(lambda: _alone(script))


def read(script: Callable[[Run], object]) -> None:
    """Calls `script(run)` like `run`, for a script that only reads the folder. A run may be active in it."""
    _run(lambda: script(_asked()))


def _asked() -> Run:
    """Returns the run that the command line describes."""
    return Run(_CONFIG.value, workdir(), name())


def _alone(script: Callable[[Run], object]) -> None:
    with contextlib.ExitStack() as stack:
        processes.first(lambda: stack.enter_context(lock.hold(workdir())))
        processes.check_same_folder(workdir())
        local = files.local_folder(workdir())
        stack.enter_context(compiled_kept(local / "compiled"))
        script(_asked())


@contextlib.contextmanager
def compiled_kept(folder: epath.Path) -> Iterator[None]:
    """Caches programs that took at least a second to compile, for the next start.

    Nothing is cached for several CPU devices. When jaxlib 0.10 has read such a program back, the devices may run its
    collectives in different orders and wait for one another until XLA aborts the process.

    JAX writes cache entries in place, so a run that was killed may leave a truncated one. JAX would print a warning
    about it at each start and never replace it. Therefore the newest entry is removed after a kill.
    """
    many_cpus = jax.default_backend() == "cpu" and jax.device_count() > 1
    if many_cpus or jax.config.jax_compilation_cache_dir is not None:  # JAX_COMPILATION_CACHE_DIR
        yield
        return
    mark = folder / ".in_use"
    if processes.is_first():
        entries = sorted(folder.glob("*-cache"), key=lambda entry: entry.stat().mtime) if mark.exists() else []
        for entry in entries[-1:]:
            entry.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    jax.config.update("jax_compilation_cache_dir", os.fspath(folder))
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        if processes.is_first():
            mark.unlink(missing_ok=True)


def set_compiler_flags() -> None:
    """Adds the flags of XLA for GPUs to XLA_FLAGS, unless it already names them; see docs/tpu.md.

    Call it before JAX's devices start. Without a CUDA plugin it does nothing.
    """
    if not accelerators.has_cuda_plugin():
        return
    given = os.environ.get("XLA_FLAGS", "").split()
    named = {flag.partition("=")[0] for flag in given}
    added = [f"{name}={value}" for name, value in GPU_FLAGS.items() if name not in named]
    os.environ["XLA_FLAGS"] = " ".join([*given, *added])


def _run(script: Callable[[], None]) -> None:

    def main(arguments: list[str]) -> None:
        if len(arguments) > 1:
            raise InputError(f"expected flags only, found {arguments[1]!r:.100}")
        set_compiler_flags()
        processes.start(_COORDINATOR.value, _PROCESS_ID.value, _PROCESS_COUNT.value)
        _check_devices()
        processes.check_equal(provenance.shared_facts(_CONFIG.value))
        with parallel.on_mesh(_CONFIG.value.parallel) if jax.process_count() > 1 else contextlib.nullcontext():
            processes.connect_devices()
        malloc_trim.trim_after_compiling()
        with _notes_printed() if processes.is_first() else contextlib.redirect_stdout(None):
            script()

    # tfds and orbax log every file, and orbax each error with its traceback that it also raises.
    absl_logging.set_verbosity(absl_logging.FATAL)
    sys.unraisablehook = _without_closed_loops
    for flag in FLAGS:  # so that --help shows these with the flags of the script
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[flag])
    try:
        app.run(main, flags_parser=_parse)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except InvariantError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(INVARIANT_VIOLATED)
    except DivergenceError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(DIVERGED)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        found = re.search("Out of memory.*|RESOURCE_EXHAUSTED.*", str(error))
        if not isinstance(error, MemoryError) and not found:
            raise
        found = found[0][:300].rstrip(".") if found else "none left"
        print(f"error: not enough memory: {found}; increase the number of microbatches", file=sys.stderr)
        sys.exit(USER_ERROR)
    except Interrupted as interrupted:
        print(f"{interrupted}; run the same command to resume", file=sys.stderr)
        sys.exit(INTERRUPTED)


@contextlib.contextmanager
def _notes_printed() -> Iterator[None]:
    """Prints what the package logs, such as why attention does not use a fused kernel."""
    log, handler = logging.getLogger("instructjax"), logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("note: %(message)s"))
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _without_closed_loops(found: Any) -> None:
    """Prints an error that nobody can catch, unless tensorstore reports to the event loop of a save that has failed."""
    if str(found.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(found)


def _check_devices() -> None:
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: JAX_PLATFORMS names no backend
        found = flag_errors.one_line(error)
        wanted = os.environ.get("JAX_PLATFORMS", "")
        raise InputError(f"JAX_PLATFORMS={wanted}: expected a device that JAX can use, found {found}") from None


def name() -> str:
    """Returns the name of the recipe, such as "configs/sandbox.py:smoke"."""
    path, colon, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(".py:")
    path = pathlib.Path(path + ".py" if colon else path).resolve()
    path = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    return f"{path}:{variant}" if colon else str(path)


def workdir() -> epath.Path:
    """Returns the folder of the run."""
    if _WORKDIR.value is not None:
        return files.parse_workdir(_WORKDIR.value)
    recipe = pathlib.Path(name().replace(".py:", "-").removesuffix(".py")).name
    seed = _CONFIG.value.seed
    return epath.Path("runs") / (f"{recipe}-seed{seed}" if seed else recipe)


def _parse(arguments: list[str]) -> list[str]:
    """Parses flags like Absl, but turns problems with a recipe or its keys into errors of one line."""
    program, *given = arguments
    given = [_found(argument) for argument in given]
    if not any(re.match("--?config(=|$)", argument) for argument in given):
        given.insert(0, f"--config={DEFAULT}")
    _given[:] = [program, *given]
    file = _recipe(given).partition(":")[0]
    if not _is_file(file):
        raise InputError(f"--config: expected a recipe, found no file {file:.200}")
    try:
        rest = flags.FLAGS(_given)
    except SystemExit:
        if not any(re.fullmatch("--?(h|help|helpshort|helpfull|helpxml)", argument) for argument in given):
            raise
        sys.exit(0)  # absl ends help with 1
    except flags.Error as error:
        raise InputError(flag_errors.wrong_value(error, given)) from None
    except (AttributeError, KeyError) as error:
        raise InputError(flag_errors.unknown_key(error, given)) from None
    except Exception as error:  # a recipe is a program and can raise anything
        found = f"{type(error).__name__}: {flag_errors.one_line(error)} ({flag_errors.place(error)})"
        raise InputError(f"--config: expected a recipe, found {found}") from None
    if _WORKDIR.value is not None and not _WORKDIR.value.strip():
        raise InputError("--workdir: expected a folder, found none")
    if _WORKDIR.value is not None:
        files.parse_workdir(_WORKDIR.value)  # refuses before any work
    if not isinstance(_CONFIG.value, ml_collections.ConfigDict):
        found = type(_CONFIG.value).__name__
        raise InputError(f"--config: expected get_config() of {file} to give a ConfigDict, found {found}")
    check.keys(_CONFIG.value)
    if any(re.match("--?config.data.separator(=|$)", argument) for argument in given):  # no shell reads \n
        with _CONFIG.value.unlocked():
            _CONFIG.value.data.separator = unescape(_CONFIG.value.data.separator)
    return rest


def given_keys() -> list[str]:
    """Returns the keys of the recipe that flags set, such as "evaluate.temperature"."""
    return flag_errors.keys_in(_given)


def unescape(text: str) -> str:
    r"""Returns a text with \n, \t and \\ read as a line break, a tab and a backslash."""
    return re.sub(r"\\[nt\\]", lambda found: {"n": "\n", "t": "\t", "\\": "\\"}[found[0][1]], text)


def _is_file(path: str | os.PathLike) -> bool:
    try:
        return pathlib.Path(path).is_file()
    except OSError:  # for example because the name is too long
        return False


def _recipe(given: Sequence[str]) -> str:
    """Returns the value of the last --config; "" if it has none."""
    found = ""
    for argument, following in zip(given, [*given[1:], ""], strict=True):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            found = value if equals else following
    return found


def _found(argument: str) -> str:
    """Resolves `--config=configs/NAME.py` from any folder: falls back to the recipes next to these scripts.

    Also expands `~` in it, which a shell does only at the beginning of a word.
    """
    flag, equals, path = argument.partition("=")
    if flag.lstrip("-") != "config" or not equals:
        return argument
    path = os.path.expanduser(path)
    file = path.partition(":")[0]
    return f"{flag}={ROOT / path if not _is_file(file) and _is_file(ROOT / file) else path}"
