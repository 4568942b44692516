"""Rankings that a run collects, and what is said of them when the policy that answered is trained further."""

import hashlib
import io
import json
import shutil
from unittest import mock

import pytest
from rich.console import Console

from instructjax import warning_log
from instructjax.records import Ranking
from instructjax.reporting import watch
from instructjax.runs import checkpoint
from instructjax.sources.files import Files
from instructjax.stages import comparisons
from instructjax.stages.run import Run
from tests.recipes import LINES, changed, recipe, save_stage

NEWS = "data/rankings.jsonl ranks answers of earlier weights of sft; "


def rank(source, directory, sample):
    """Ranks two invented answers to each prompt."""
    splits = ("train", "validation", "test")
    ranked = [
        Ranking(prompt=line, responses=[line[:4], line[:6]], scores=[1, 0], split=splits[i % 3])
        for i, line in enumerate(LINES)
    ]
    return ranked, ranked[:3]


@pytest.fixture
def collected(tmp_path):
    """Returns a run that has collected rankings of answers of its SFT."""
    run = Run(changed(recipe(tmp_path), files__rankings=""), tmp_path / "run")
    save_stage(run.config, run.workdir, "sft", run.layout.tokenizer)
    with mock.patch.object(Files, "collect_rankings", rank):
        comparisons.collect(run)
    return run


def test_collected_rankings_name_the_checkpoint_that_answered(collected):
    assert collected.has(Ranking)
    known = checkpoint.fingerprint(collected.checkpoints("sft"))
    noted = json.loads((collected.data_folder / "comparisons.json").read_text())
    assert noted["checkpoints"] == {"sft": known}
    assert noted["files"] == {
        name: hashlib.sha256((collected.data_folder / name).read_bytes()).hexdigest()[:16]
        for name in ("rankings.jsonl", "heldout_rankings.jsonl")
    }
    comparisons.collect(collected)
    assert warning_log.read(collected.workdir) == []


def test_rankings_of_earlier_weights_are_told(collected, capsys):
    shutil.rmtree(collected.workdir / "sft")
    save_stage(collected.config, collected.workdir, "sft", collected.layout.tokenizer, seed=1)
    comparisons.collect(collected)
    assert NEWS in capsys.readouterr().out
    shown = io.StringIO()
    Console(width=400, file=shown).print(watch.render([collected.workdir]))
    assert NEWS in shown.getvalue()
