"""Curation"""

import sys

from tests.scripts import run
from tests.wrong_input.fault import fault


def curate(tmp_path, *flags, output="out.jsonl", lines='{"prompt": "a fox", "split": "train"}\n'):
    """Curates a file with these lines."""
    (tmp_path / "in.jsonl").write_text(lines)
    source = f"--source={tmp_path / 'in.jsonl'}"
    run("curate.py", "--kind=prompts", source, f"--output={tmp_path / output}", *flags)


def own(tmp_path, monkeypatch, body):
    """Curates with a function of a user's module."""
    (tmp_path / "wrong_pii.py").write_text(f"def find(text):\n    {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wrong_pii", raising=False)
    curate(tmp_path, "--pii=wrong_pii:find")


@fault(
    "an output of curate.py of another format", "--output: expected a file that ends in .jsonl or .jsonl.gz, found PATH"
)
def test_output_of_another_format(tmp_path):
    curate(tmp_path, output="out.csv")


@fault("an output of curate.py in a bucket", "--output: expected a local path, found gs://bucket/out.jsonl")
def test_output_in_a_bucket(tmp_path):
    curate(tmp_path, "--output=gs://bucket/out.jsonl")


@fault(
    "`--near_duplicates` without its package",
    "--near_duplicates: expected the package datasketch, found none; pip install 'instructjax[curation]'",
)
def test_without_datasketch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    curate(tmp_path, "--near_duplicates")


@fault("a `--pii` that is not a function's name", "--pii: expected MODULE:FUNCTION, found 'spacy'")
def test_pii_without_a_function(tmp_path):
    curate(tmp_path, "--pii=spacy")


@fault(
    "`--pii=presidio` without its package",
    "--pii: expected the package presidio-analyzer, found none; pip install 'instructjax[presidio]'",
)
def test_without_presidio(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    monkeypatch.setitem(sys.modules, "spacy", None)
    curate(tmp_path, "--pii=presidio")


@fault("a `--pii` function that does not return text", "--pii: expected PATH to return text, found True")
def test_pii_that_returns_no_text(tmp_path, monkeypatch):
    own(tmp_path, monkeypatch, "return True")


@fault(
    "a `--pii` function that fails", "--pii: expected PATH to return text, found ZeroDivisionError: division by zero"
)
def test_pii_that_fails(tmp_path, monkeypatch):
    own(tmp_path, monkeypatch, "return 1 / 0")


@fault("shares of splits over 1", "--validation, --test: expected shares with a sum of at most 1, found N")
def test_shares(tmp_path):
    curate(tmp_path, "--validation=0.75", "--test=0.5")


@fault("a prefix of less than no characters", "flag --prefix=-1: -1 is not a non-negative integer")
def test_prefix(tmp_path):
    curate(tmp_path, "--prefix=-1")


@fault("a line that is not a record, in curate.py", "PATH:N: prompt: expected in a Prompt, found only text")
def test_not_a_record(tmp_path):
    curate(tmp_path, lines='{"text": "a fox"}\n')
