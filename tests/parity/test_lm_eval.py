"""Parity with lm-evaluation-harness, on a policy of a run and on the same weights in transformers."""

import gzip
import importlib.util
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import yaml

from instructjax.stages import pretrain, public_tasks
from instructjax.stages.run import Run
from tests.recipes import LINES, changed, recipe
from tests.scripts import SCRIPTS, run
from tests.stages.test_imported import PAIRS, folder_of, importing

pytestmark = pytest.mark.parity
pytest.importorskip("lm_eval", reason="needs the extra lm-eval")

MULTIPLE_CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{label}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
TASKS = {
    "ours_choice": MULTIPLE_CHOICE,
    "ours_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{short}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "ours_answer": {
        "output_type": "generate_until",
        "doc_to_target": "",
        "generation_kwargs": {"until": ["e"], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder with a model, a run that imports it, a task's file, and the harness's tasks on its prompts."""
    folder = tmp_path_factory.mktemp("harness")
    config = changed(recipe(folder), data__separator="\n\n", data__strict=False, model__max_length=128)
    folder_of(folder / "gpt2", config, PAIRS)
    pretrain.run(Run(importing(config, "pretrain", folder / "gpt2"), folder / "run"))
    rng = np.random.default_rng(0)
    questions = [
        {"ctx": line, "label": int(rng.integers(3)), "endings": [str(end) for end in rng.choice(LINES, 3)]}
        for line in LINES
    ]
    (folder / "hellaswag").mkdir()
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    (folder / "hellaswag" / "val.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (case,) = public_tasks.read_cases(folder, ["hellaswag"])
    docs = [
        {"prompt": prompt, "short": example.text, "choices": example.choices, "label": example.answer}
        for prompt, example in zip(case.prompts, case.examples, strict=True)
    ]
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / "tasks").mkdir()
    for name, task in TASKS.items():
        common = {"task": name, "dataset_path": "json", "validation_split": "validation", "target_delimiter": ""}
        common |= {"dataset_kwargs": {"data_files": {"validation": str(folder / "docs.jsonl")}}}
        (folder / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump({"doc_to_text": "{{prompt}}", **common, **task}))
    return folder


def evaluate(folder, model, arguments, program):
    """Returns ({task: its metrics}, {task: the responses to each document}) that the harness writes."""
    output = folder / model
    flags = {"model": model, "model_args": arguments, "tasks": ",".join(TASKS), "include_path": folder / "tasks"}
    flags |= {"output_path": output, "batch_size": 4, "device": "cpu"}
    given = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "JAX_PLATFORMS": "cpu"}
    finished = subprocess.run(
        [sys.executable, *program, *given, "--log_samples"], env={**os.environ, **environment}, capture_output=True
    )
    assert finished.returncode == 0, finished.stderr.decode()[-3000:]
    (results,) = output.rglob("results_*.json")
    responses = {}
    for name in TASKS:
        (samples,) = output.rglob(f"samples_{name}_*.jsonl")
        lines = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda line: line["doc_id"])
        responses[name] = [line["filtered_resps"] for line in lines]
    return json.loads(results.read_text())["results"], responses


@pytest.fixture(scope="module")
def ours(folder):
    return evaluate(folder, "instructjax", f"workdir={folder}/run,stage=pretrain", [str(SCRIPTS / "lm_harness.py")])


def numbers(responses):
    """Returns the log-likelihoods of all choices of all documents."""
    return np.array([[float(pair[0]) for pair in choices] for choices in responses])


def test_a_task_has_the_same_number_through_the_harness_and_through_ours(folder, ours):
    metrics, responses = ours
    flags = [f"--data={folder}", f"--workdir={folder}/run", "--stage=pretrain", f"--output={folder}/out"]
    run("benchmark_tasks.py", *flags, "--tasks=hellaswag")
    found = {one["metric"]: one["value"] for one in json.loads((folder / "out" / "results.json").read_text())}
    for name in ("acc", "acc_norm"):
        assert metrics["ours_choice"][f"{name},none"] == pytest.approx(found[name], abs=1e-3)
    lines = (folder / "out" / "hellaswag.0-shot.jsonl").read_text().splitlines()[1:]
    scored = sorted(map(json.loads, lines), key=lambda line: line["index"])
    np.testing.assert_allclose(
        numbers(responses["ours_choice"]), [line["log_probs"] for line in scored], rtol=1e-4, atol=1e-3
    )
    assert 0.1 < found["acc"] < 0.9


def test_the_harness_has_the_same_numbers_with_transformers(folder, ours):
    pytest.importorskip("transformers", reason="needs the extra parity")
    metrics, responses = ours
    theirs, other = evaluate(folder, "hf", f"pretrained={folder}/gpt2,dtype=float32", ["-m", "lm_eval"])
    for name in ("acc,none", "acc_norm,none"):
        assert metrics["ours_choice"][name] == pytest.approx(theirs["ours_choice"][name], abs=1e-3)
    np.testing.assert_allclose(numbers(responses["ours_choice"]), numbers(other["ours_choice"]), rtol=1e-4, atol=1e-3)
    perplexities = [found["ours_text"]["word_perplexity,none"] for found in (metrics, theirs)]
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-3)
    assert responses["ours_answer"] == other["ours_answer"]


class WithBos:
    """A tokenizer of letters that puts BOS before a text."""

    bos, eos_id = (1,), 2

    def encode(self, text):
        return [ord(letter) for letter in text]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("lm_harness", SCRIPTS / "lm_harness.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)  # the harness accepts a model's name only once
    return found


@pytest.fixture
def asked(script, monkeypatch):
    """Returns what the harness asks a policy with BOS: `loglikelihood` and `loglikelihood_rolling` of texts."""
    model = types.SimpleNamespace(config=types.SimpleNamespace(max_length=3))
    policy, pairs = script.Policy.__new__(script.Policy), []
    policy.policy = types.SimpleNamespace(tokenizer=WithBos(), model=model)

    def score(requests, **_):
        pairs.extend((list(context), list(continuation)) for _, context, continuation in requests)
        return [(0.0, False)] * len(requests)

    monkeypatch.setattr(policy, "_loglikelihood_tokens", score)

    def ask(method, *texts):
        getattr(policy, method)([types.SimpleNamespace(args=texts)])
        return pairs

    return ask


@pytest.mark.parametrize("context, expected", [("", [1]), ("A", [1, 65])])
def test_bos_begins_the_context_of_a_continuation(asked, context, expected):
    assert asked("loglikelihood", context, "B") == [(expected, [66])]


def test_bos_begins_a_whole_text_but_not_its_later_windows(asked):
    assert asked("loglikelihood_rolling", "ABC") == [([1], [65, 66]), ([65, 66], [67])]
