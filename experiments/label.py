"""Starts the labeling desk: a web page on which people write, rate and rank answers. See docs/labeling.md.

    python experiments/label.py --workdir=runs/sandbox --tasks=tasks.jsonl --kind=comparison --labelers=ann,ben
    python experiments/label.py --workdir=runs/sandbox --export=labels
    python experiments/label.py --workdir=runs/sandbox --add_to_run

The first command adds tasks and labelers, prints their links, and serves the desk until it is interrupted. The second
writes the labels to files. The third adds the rankings to the run, for reward.py.
"""

import importlib
import ipaddress
import json
import socket
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import command_line
import jax
from absl import flags
from etils import epath

from instructjax import files, records
from instructjax.errors import InputError
from instructjax.evaluation import comparison
from instructjax.records import Prompt, Ranking
from instructjax.stages import answers, comparisons
from instructjax.stages.answers import Sampling
from instructjax.stages.run import Run
from instructjax.training import parallel

try:
    import uvicorn

    for needed in ("jinja2", "python_multipart"):  # Starlette does without them until a page or form needs them
        importlib.import_module(needed)
    from instructjax.labeling import app, database, export, queue, security, tasks, web
except ImportError as error:
    MISSING: str | None = str(error.name).partition(".")[0]
else:
    MISSING = None

KINDS = ("demonstration", "rating", "ranking", "comparison")
GROUPS = ("training", "heldout", "screening")
_TASKS = flags.DEFINE_string("tasks", "", "Files of tasks to add, .jsonl or .jsonl.gz, separated by commas.")
_STAGES = flags.DEFINE_string(
    "stages", "", "Stages whose policies answer prompts of the run in turn, as tasks to add; see collect.py for more."
)
_ANSWERS = flags.DEFINE_integer("answers", 4, "The number of answers to each prompt.", lower_bound=1, upper_bound=9)
_COUNT = flags.DEFINE_integer("count", 100, "The number of prompts to answer.", lower_bound=1)
_KIND = flags.DEFINE_enum("kind", "comparison", KINDS, "What labelers do with the tasks.")
_GROUP = flags.DEFINE_enum("group", "training", GROUPS, "The group of the tasks and --labelers.")
_COPIES = flags.DEFINE_integer("copies", 1, "The number of labelers per task.", lower_bound=1)
_LABELERS = flags.DEFINE_string("labelers", "", "Names of labelers to add, separated by commas.")
_EXPORT = flags.DEFINE_string("export", None, "A folder to write the labels to, instead of serving the desk.")
_ADD = flags.DEFINE_boolean("add_to_run", False, "Add the rankings to the run, instead of serving the desk.")
_DATABASE = flags.DEFINE_string(
    "database", None, "The SQLAlchemy URL of the database; by default SQLite in WORKDIR/labeling."
)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "The address to listen on; by default only this machine can connect.")
_PORT = flags.DEFINE_integer("port", 8765, "The port to listen on.", lower_bound=1, upper_bound=65535)
_URL = flags.DEFINE_string(
    "url", None, "The address that labelers open, if another server stands in front of this one."
)
_INSTRUCTIONS = flags.DEFINE_string("instructions", None, "A text file with instructions for labelers.")
_RATE = flags.DEFINE_float("rate", 20.0, "The requests per second of one client that are answered.", lower_bound=1)


def main(run: Run) -> None:
    """Adds what is to be added, and serves the desk, exports the labels, or adds the rankings to the run."""
    if MISSING is not None:
        raise InputError(f"expected the package {MISSING}, found none; pip install 'instructjax[labeling]'")
    url, hosts = _address()
    instructions = ""
    if _INSTRUCTIONS.value:
        instructions = files.read_text(files.parse(_INSTRUCTIONS.value, "--instructions"), "a text file")
    names, is_screening = files.split_list(_LABELERS.value), _GROUP.value == "screening"
    if names and is_screening:
        raise InputError("--labelers: expected --group=training or heldout, found screening")
    found = _new_tasks(run, is_screening)
    folder = files.local_folder(run.workdir) / "labeling"
    folder.mkdir(parents=True, exist_ok=True)
    engine = database.connect(_DATABASE.value or f"sqlite:///{folder / 'labels.sqlite'}")
    with engine.begin() as db:
        count = queue.add_tasks(db, found, _GROUP.value, None if is_screening else _COPIES.value)
        labelers = [_add_labeler(db, name) for name in names]
        labels = {name: list(export.read_records(db, name)) for name in export.FILES}
    if found:
        print(f"{count} new tasks of {len(found)}")
    if _EXPORT.value is not None:
        _write(labels, files.parse(_EXPORT.value, "--export"))
    if _ADD.value:
        _add_to_run(run, labels["rankings.jsonl"], labels["heldout_rankings.jsonl"])
    if _EXPORT.value is not None or _ADD.value:
        return
    secret = security.read_secret(folder / "secret")
    print(f"overview: {url}/join/{security.sign(secret, 'admin')}", flush=True)
    for labeler in labelers:
        print(f"{labeler.name}: {url}/join/{security.sign(secret, [labeler.id, labeler.key])}", flush=True)
    settings = web.Settings(
        secret=secret,
        url=url,
        hosts=hosts,
        instructions=instructions,
        rate=_RATE.value,
        burst=int(3 * _RATE.value),
    )
    _serve(app.make_app(engine, settings, comparison.ranking_agreement))


def _new_tasks(run: Run, is_screening: bool) -> list[Any]:
    """Returns the tasks of files, and those whose answers are sampled now."""
    paths = [files.parse(path, "--tasks") for path in files.split_list(_TASKS.value)]
    found = [task for path in paths for task in tasks.read(path, _KIND.value, is_screening)]
    if stages := files.split_list(_STAGES.value):
        sampling = Sampling(temperature=run.config.comparisons.temperature, batch_size=run.config.evaluate.batch_size)
        with parallel.on_mesh(run.config.parallel):
            prompts = list(run.records(Prompt, "train")[: _COUNT.value])
            key = jax.random.key(run.config.seed)
            sampled = answers.collect(run, stages, prompts, _ANSWERS.value, key, sampling)
        lines = ((f"sample {number}", json.dumps(one)) for number, one in enumerate(sampled, start=1))
        found += tasks.parse(lines, _KIND.value, is_screening)
    return found


def _add_labeler(db: Any, name: str) -> Any:
    """Adds a labeler, or returns the one of this name and group."""
    labeler = queue.add_labeler(db, name, _GROUP.value)
    if labeler.group != _GROUP.value:
        raise InputError(f"--labelers: expected labelers of the group {_GROUP.value}, found {name} in {labeler.group}")
    if not labeler.active:
        raise InputError(f"--labelers: {name} was dismissed; choose New link on the overview to invite {name} again")
    return labeler


def _address() -> tuple[str, tuple[str, ...]]:
    """Returns the address that labelers open, without a slash at the end, and the host names of requests."""
    host = _HOST.value
    local = {"localhost", "127.0.0.1", host}
    if _URL.value is None:
        if _is_unspecified(host):
            raise InputError(f"--url: expected the address that labelers open, with --host={host}, found none")
        return f"http://{host}:{_PORT.value}", tuple(local)
    try:
        parts = urllib.parse.urlsplit(_URL.value)
    except ValueError:  # brackets that are not closed
        parts = urllib.parse.urlsplit("")
    more = (parts.path.strip("/"), parts.query, parts.fragment, parts.username)
    if parts.scheme not in ("http", "https") or not parts.hostname or any(more):
        raise InputError(f"--url: expected an address such as https://label.example.org, found {_URL.value:.100}")
    return _URL.value.rstrip("/"), (*local, parts.hostname)


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _write(labels: Mapping[str, Sequence[Any]], folder: epath.Path) -> None:
    if not any(labels.values()):
        print("no labels to export")
    for name, found in labels.items():
        if found:
            print(f"{folder / name}: {records.write(folder / name, found)} records")


def _add_to_run(run: Run, rankings: Sequence[Ranking], heldout: Sequence[Ranking]) -> None:
    count = comparisons.add(run, rankings, heldout)
    tied = f", {len(rankings) - count} left out in which all answers tie" if count < len(rankings) else ""
    print(f"{run.data_folder}: {count} rankings{tied}")


def _serve(application: Any) -> None:
    """Serves until SIGINT or SIGTERM. Requests are not logged, because links carry tokens."""
    with socket.create_server((_HOST.value, _PORT.value), backlog=512) as listening:
        config = uvicorn.Config(application, log_level="warning", access_log=False, server_header=False)
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    command_line.read(main)
