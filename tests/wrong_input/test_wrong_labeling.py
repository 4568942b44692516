"""Labeling"""

import socket
import sys

from tests.scripts import run
from tests.wrong_input.fault import fault


def label(tmp_path, *flags, lines='{"prompt": "a fox", "responses": ["a", "b"]}\n'):
    """Starts the labeling desk with a file of these lines as tasks."""
    (tmp_path / "tasks.jsonl").write_text(lines)
    run("label.py", f"--workdir={tmp_path / 'run'}", f"--tasks={tmp_path / 'tasks.jsonl'}", *flags)


@fault(
    "`label.py` without its packages", "expected the package uvicorn, found none; pip install 'instructjax[labeling]'"
)
def test_without_uvicorn(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    label(tmp_path)


@fault("a database in memory", "--database: expected a database in a file, found one in memory")
def test_database_in_memory(tmp_path):
    label(tmp_path, "--database=sqlite://")


@fault("a ranking task with one answer", "PATH:N: responses: expected 2 to 9 answers for a ranking, found 1")
def test_too_few_answers(tmp_path):
    label(tmp_path, "--kind=ranking", lines='{"prompt": "a", "responses": ["a"]}\n')


@fault(
    "a screening task without its right answer",
    "PATH:N: scores: expected the right answer of a screening ranking, found none",
)
def test_no_right_answer(tmp_path):
    label(tmp_path, "--kind=ranking", "--group=screening")


@fault("tasks in another format", "PATH: expected a file that ends in .jsonl or .jsonl.gz")
def test_tasks_in_another_format(tmp_path):
    label(tmp_path, f"--tasks={tmp_path / 'tasks.csv'}")


@fault("labelers of the group screening", "--labelers: expected --group=training or heldout, found screening")
def test_labelers_of_screening(tmp_path):
    label(tmp_path, "--labelers=ann", "--group=screening", "--kind=demonstration")


@fault(
    "a labeler of another group",
    "--labelers: expected labelers of the group heldout, found ann in training",
)
def test_labeler_of_another_group(tmp_path):
    label(tmp_path, "--labelers=ann", f"--export={tmp_path / 'labels'}")
    label(tmp_path, "--labelers=ann", "--group=heldout")


@fault(
    "a labeling desk for other machines without its address",
    "--url: expected the address that labelers open, with --host=0.0.0.0, found none",
)
def test_no_address(tmp_path):
    label(tmp_path, "--host=0.0.0.0")


@fault(
    "an address without a host", "--url: expected an address such as https://label.example.org, found label.example.org"
)
def test_address(tmp_path):
    label(tmp_path, "--url=label.example.org")


@fault(
    "a database that SQLAlchemy cannot open",
    "--database: expected the URL of a database, found Could not parse SQLAlchemy URL from given URL string",
)
def test_database(tmp_path):
    label(tmp_path, "--database=labels.sqlite")


@fault("a port that is in use", "TEXT already in use TEXT")
def test_port(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        label(tmp_path, f"--port={taken.getsockname()[1]}")


@fault("`--add_to_run` without labels", "rankings: expected some that prefer an answer, found none among 0")
def test_no_labels(tmp_path):
    label(tmp_path, "--add_to_run")


@fault("more stages than answers in `collect.py`", "--stages: expected 1 to 1 stages (--answers), found 2")
def test_more_stages_than_answers(tmp_path):
    run("collect.py", f"--output={tmp_path / 'out.jsonl'}", "--stages=sft,ppo", "--answers=1")


@fault("an output of `collect.py` of another format", "--output: expected a file that ends in .jsonl, found PATH")
def test_output(tmp_path):
    run("collect.py", f"--output={tmp_path / 'out.csv'}")
