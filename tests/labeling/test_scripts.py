"""Tests of experiments/label.py and collect.py, and of a round: a policy answers, people rank, the run has rankings."""

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from configs import sandbox
from instructjax import records
from instructjax.errors import DataError
from instructjax.labeling.tasks import Task
from instructjax.records import Ranking
from instructjax.sandbox import labelers
from instructjax.sandbox.answers import write_answer
from instructjax.sandbox.tasks import write_prompt
from instructjax.stages import comparisons
from instructjax.stages.run import Run
from tests import recipes
from tests.labeling import desks
from tests.labeling.desks import rank
from tests.scripts import SCRIPTS, Left, run


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def prepared(tmp_path):
    """Returns the folder and recipe of a run on files, without rankings, with two random policies."""
    config = recipes.changed(recipes.recipe(tmp_path), files__rankings="")
    workdir = tmp_path / "run"
    layout = recipes.prepare(config, workdir)
    for seed, stage in enumerate(("sft", "ppo")):
        recipes.save_stage(config, workdir, stage, layout.tokenizer, seed)
    return config, workdir


def test_answers_of_two_policies_become_tasks(prepared, tmp_path):
    _, workdir = prepared
    prompts = write(tmp_path / "asked.jsonl", [{"prompt": "the fox", "user": "u"}, {"prompt": "red owl"}])
    output = tmp_path / "tasks.jsonl"
    flags = [f"--workdir={workdir}", f"--prompts={prompts}", "--stages=sft,ppo", "--answers=3", f"--output={output}"]
    assert "2 prompts with 3 answers each, by sft, ppo" in run("collect.py", *flags)
    first, second = map(json.loads, output.read_text().splitlines())
    assert first["models"] == second["models"] == ["sft", "sft", "ppo"]
    assert (first["prompt"], first["user"], second["prompt"]) == ("the fox", "u", "red owl")
    assert [len(one["responses"]) for one in (first, second)] == [3, 3]
    assert len(set(first["responses"])) > 1


def start(tmp_path, *flags):
    """Starts label.py, and returns the process, its port and {name: path of the link}."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-u",
        str(SCRIPTS / "label.py"),
        f"--workdir={tmp_path / 'run'}",
        f"--port={port}",
        *flags,
    ]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    links = {}
    while not {"overview", "ben"} <= set(links):
        name, _, link = process.stdout.readline().strip().partition(": ")
        links[name] = re.sub("^http://[^/]*", "", link)
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return process, port, links
        except OSError:
            assert process.poll() is None
            time.sleep(0.05)


def test_the_desk_serves_until_it_is_interrupted_and_exports(tmp_path):
    tasks = write(tmp_path / "tasks.jsonl", [{"prompt": f"p{i}", "responses": ["a", "b"]} for i in range(2)])
    (tmp_path / "instructions.txt").write_text("Helpful first.")
    flags = [f"--tasks={tasks}", "--kind=ranking", "--labelers=ann,ben", f"--instructions={tmp_path}/instructions.txt"]
    process, port, links = start(tmp_path, *flags)
    try:
        ben = desks.Client("127.0.0.1", port)
        page = ben.get(links["ben"])
        assert "Helpful first." in page.text
        ben.post(page.path, **rank(page, {"a": 1, "b": 2}))
        ben.close()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    printed = run("label.py", f"--workdir={tmp_path / 'run'}", f"--export={tmp_path / 'labels'}")
    assert printed == f"{tmp_path}/labels/rankings.jsonl: 1 records\n"
    (record,) = records.read(tmp_path / "labels" / "rankings.jsonl", Ranking)
    assert (record.labeler, record.responses, record.scores) == ("ben", ("a", "b"), (1, 2))


@pytest.mark.parametrize("package", ["jinja2", "python_multipart"])
def test_packages_that_are_imported_late_are_missed_at_the_start(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(Left, match=f"expected the package {package}, found none; pip install"):
        run("label.py", f"--workdir={tmp_path}")


def test_an_export_without_labels_says_so(tmp_path):
    assert run("label.py", f"--workdir={tmp_path}", f"--export={tmp_path}") == "no labels to export\n"


def label(desk, name, scores):
    """Has a labeler rank all tasks by {prompt: {answer: score}}."""
    client = desk.client(name)
    page = client.get("/")
    while page.path != "/done":
        page = client.post(page.path, **rank(page, scores[page.prompt]))


def test_rankings_are_added_to_a_run_once(prepared, tmp_path):
    config, workdir = prepared
    run = Run(config, workdir)
    prompts = [f"fox {i}" for i in range(5)]
    splits = ["train"] * 4 + ["validation"]
    tasks = [
        Task(kind="ranking", prompt=prompt, answers=("the", "owl"), fields={"split": split})
        for prompt, split in zip(prompts, splits, strict=True)
    ]
    with desks.serve(f"sqlite:///{tmp_path / 'labels.sqlite'}") as desk:
        desk.add(tasks)
        # All answers to the first prompt tie, from which nothing can be learned.
        label(desk, "ann", {prompt: {"the": 1, "owl": 1 + (i > 0)} for i, prompt in enumerate(prompts)})
        rankings = [records.parse(line, Ranking) for line in desk.export().splitlines()]
    with pytest.raises(DataError, match="expected some in the split validation, found only train"):
        comparisons.add(run, rankings[:4], [])
    assert comparisons.add(run, rankings, []) == 4  # nothing was written before
    found = Run(config, workdir).records(Ranking, "train")
    assert sorted(record.prompt for record in found) == prompts[1:4]
    assert all(dict(zip(record.responses, record.scores, strict=True)) == {"the": 1, "owl": 2} for record in found)
    with pytest.raises(DataError, match="expected a run without rankings"):
        comparisons.add(Run(config, workdir), rankings, [])


def test_rankings_that_prefer_nothing_are_refused(prepared):
    config, workdir = prepared
    tied = Ranking(prompt="a fox", responses=("a", "b"), scores=(1.0, 1.0))
    with pytest.raises(DataError, match="found none among 1"):
        comparisons.add(Run(config, workdir), [tied], [])


def rank_directly(tasks, rng):
    """Returns {prompt: ranking by a simulated labeler}, without prompts whose answers all tie."""
    people = labelers.training_labelers(count=5)
    ranked = [
        (task, labelers.rank(task["prompt"], task["responses"], people[rng.integers(len(people))], rng))
        for task in tasks
    ]
    return {
        task["prompt"]: dataclasses.replace(ranking, split=task["split"], user=task.get("user"))
        for task, ranking in ranked
        if ranking is not None
    }


def rank_on_the_pages(desk, tasks, direct):
    """Has a labeler give the same ratings and rankings on the pages of the desk, and skip what ties."""
    desk.add(
        Task(
            kind="comparison",
            prompt=task["prompt"],
            answers=tuple(task["responses"]),
            fields={name: task[name] for name in ("split", "user") if name in task},
        )
        for task in tasks
    )
    client = desk.client("ann")
    page = client.get("/")
    while page.path != "/done":
        ranking = direct.get(page.prompt)
        if ranking is None:
            page = client.post(page.path, csrf=page.csrf, action="skip")
            continue
        given = dict(zip(ranking.responses, zip(ranking.scores, ranking.metadata, strict=True), strict=True))
        if "overall_quality" in page.text:
            (answer,) = page.answers
            form = {name: value for name, value in given[answer][1].items() if value}
            page = client.post(page.path, csrf=page.csrf, **form)
        else:
            page = client.post(page.path, **rank(page, {text: score for text, (score, _) in given.items()}))


def test_labels_over_http_are_the_labels_that_were_given(desk):
    rng = np.random.default_rng(0)
    prompts = dict.fromkeys(write_prompt(rng) for _ in range(30))
    tasks = [
        {
            "prompt": prompt,
            "split": "train",
            "responses": list(dict.fromkeys(write_answer(prompt, rng) for _ in range(4))),
        }
        for prompt in prompts
    ]
    tasks = [task for task in tasks if len(task["responses"]) > 1]
    direct = rank_directly(tasks, rng)
    rank_on_the_pages(desk, tasks, direct)
    exported = [records.parse(line, Ranking) for line in desk.export().splitlines()]
    assert len(exported) == len(direct) > 10
    for record in exported:
        expected = direct[record.prompt]
        assert (record.responses, record.metadata, record.split) == (expected.responses, expected.metadata, "train")
        assert np.array_equal(*(np.sign(np.subtract.outer(x.scores, x.scores)) for x in (record, expected)))


@pytest.mark.slow
def test_a_round_over_http_trains_the_reward_model_that_direct_labels_train(tmp_path):
    """The policy answers, simulated labelers rank on the pages, and the export trains the reward model."""
    flags = ["--config=configs/sandbox.py:smoke", f"--workdir={tmp_path / 'run'}"]
    for script in ("pretrain.py", "sft.py"):
        run(script, *flags)
    sampled = run("label.py", *flags, "--stages=sft", "--count=3", f"--export={tmp_path}")
    assert sampled == "3 new tasks of 3\nno labels to export\n"
    shutil.rmtree(tmp_path / "run" / "labeling")
    tasks = []
    for split, count in (("train", 120), ("validation", 30)):
        output = tmp_path / f"{split}.jsonl"
        run("collect.py", *flags, f"--output={output}", f"--split={split}", f"--count={count}", "--answers=4")
        tasks += [json.loads(line) for line in output.read_text().splitlines()]
    tasks = list({task["prompt"]: task for task in tasks}.values())  # users of a small world ask the same
    direct = rank_directly(tasks, np.random.default_rng(0))
    shutil.copytree(tmp_path / "run", tmp_path / "direct")
    comparisons.add(Run(sandbox.get_config("smoke"), tmp_path / "direct"), list(direct.values()), [])
    (tmp_path / "run" / "labeling").mkdir()
    with desks.serve(f"sqlite:///{tmp_path / 'run' / 'labeling' / 'labels.sqlite'}") as desk:
        rank_on_the_pages(desk, tasks, direct)
    assert f"{len(direct)} rankings" in run("label.py", *flags, "--add_to_run")
    measured = []
    for folder in ("run", "direct"):
        run("reward.py", flags[0], f"--workdir={tmp_path / folder}")
        lines = [json.loads(line) for line in (tmp_path / folder / "reward" / "metrics.jsonl").read_text().splitlines()]
        last = [line for line in lines if "validation_accuracy" in line][-1]
        measured.append([last["validation_accuracy"], last["validation_loss"]])
    print(f"validation accuracy and loss: labels over HTTP {measured[0]}, direct labels {measured[1]}")
    assert measured[0] == pytest.approx(measured[1], abs=1e-6)
