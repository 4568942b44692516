"""Rankings that a run collects, and what is said of them when the policy that answered is trained further."""

import gc
import hashlib
import io
import json
import shutil
import types
import weakref
from unittest import mock

import jax
import pytest
from rich.console import Console

from instructjax import records, warning_log
from instructjax.errors import CheckpointError, RecordError
from instructjax.records import Prompt, Ranking
from instructjax.reporting import watch
from instructjax.rollout import samplers
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


def test_policies_answer_in_turn(collected, monkeypatch):
    loaded, keys = [], []

    def make_sampler(model, layout, **sampling):
        def sampler(params, prompts, key):
            keys.append(key[0])
            yield None, [f"{params} to {prompt}" for prompt in prompts]

        return sampler

    def policy(name):
        def load():
            loaded.append(name)
            return types.SimpleNamespace(model=None, params=name), collected.layout

        return load

    monkeypatch.setattr(samplers, "make_sampler", make_sampler)
    prompts = [Prompt(prompt=f"p{i}") for i in range(8)]
    answered = dict(comparisons.sample_answers(collected, [policy("new"), policy("old")], prompts, seed=0))
    assert loaded == ["new", "old"]  # one after the other
    assert keys[0] == jax.random.fold_in(jax.random.key(0), 0)  # by rows: a recipe's comparisons stay the same
    assert keys[0] != keys[1]  # equal policies would give equal answers
    assert list(answered) == [record.prompt for record in prompts]
    counts = {len(texts) for texts in answered.values()}
    assert min(counts) >= 4 and max(counts) <= 9 and len(counts) > 1
    cut = collected.layout.truncate
    for prompt, texts in answered.items():
        new = (len(texts) + 1) // 2
        assert texts == [cut(f"new to {prompt}")] * new + [cut(f"old to {prompt}")] * (len(texts) - new)
    alone = comparisons.sample_answers(collected, [policy("new")], prompts, seed=0)
    assert [len(texts) for _, texts in alone] == [len(texts) for texts in answered.values()]


def test_one_policy_is_in_memory_at_a_time(collected, monkeypatch):
    def make_sampler(model, layout, **sampling):
        return lambda params, prompts, key: iter([(None, list(prompts))])

    loaded = []

    def load():
        gc.collect()
        assert all(one() is None for one in loaded)
        policy = mock.Mock(model=None, params=None)
        loaded.append(weakref.ref(policy))
        return policy, collected.layout

    monkeypatch.setattr(samplers, "make_sampler", make_sampler)
    list(comparisons.sample_answers(collected, [load, load, load], [Prompt(prompt="p")], seed=0))
    assert len(loaded) == 3


def test_another_run_answers_and_its_rankings_are_used(collected, capsys):
    changes = {"comparisons__stages": ("../run/ppo", "../run/sft"), "comparisons__earlier": "../run"}
    config = changed(collected.config, **changes)
    later = Run(config, collected.workdir.parent / "later")
    with pytest.raises(CheckpointError, match="run/ppo: expected the finished stage ../run/ppo, found none"):
        comparisons.collect(later)
    save_stage(config, collected.workdir, "ppo", later.layout.tokenizer, seed=1)
    new = Ranking(prompt="new", responses=["a", "b"], scores=[1, 0], split="train")
    with mock.patch.object(Files, "collect_rankings", lambda *_: ([new], [])):
        comparisons.collect(later)
    for name, added in (("rankings.jsonl", ["new"]), ("heldout_rankings.jsonl", [])):
        earlier, found = (records.read(run.data_folder / name, Ranking) for run in (collected, later))
        assert [one.prompt for one in found] == [*(one.prompt for one in earlier), *added]
    known = {f"../run/{stage}": checkpoint.fingerprint(collected.checkpoints(stage)) for stage in ("ppo", "sft")}
    assert json.loads((later.data_folder / "comparisons.json").read_text())["checkpoints"] == known
    shutil.rmtree(collected.workdir / "ppo")
    save_stage(config, collected.workdir, "ppo", later.layout.tokenizer, seed=2)
    comparisons.collect(later)
    assert "rankings.jsonl ranks answers of earlier weights of ../run/ppo; " in capsys.readouterr().out


def test_an_earlier_run_without_rankings_is_refused(collected):
    run = Run(changed(collected.config, comparisons__earlier="../none"), collected.workdir.parent / "later")
    new = Ranking(prompt="new", responses=["a", "b"], scores=[1, 0], split="train")
    with pytest.raises(RecordError, match="none/data/rankings.jsonl: expected"):
        comparisons.add(run, [new], [])
    assert not run.has(Ranking)
