"""experiments/benchmark_tasks.py: a policy on small files of all tasks, continued and read again as responses."""

import gzip
import json
import math
import socket
import subprocess
import sys

import pytest

from instructjax.evaluation.tasks import outputs
from instructjax.evaluation.tasks.registry import TASKS
from instructjax.runs import folder
from instructjax.stages import evaluate, pretrain, public_tasks
from instructjax.stages.run import Run
from tests import cpus
from tests.local_data import ABSENT, DATA
from tests.recipes import changed, recipe, save_run, save_stage
from tests.scripts import SCRIPTS, run
from tests.stages import test_imported

WORDS = "red owl fox sleep night"


def json_lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def public_files():
    """Returns three examples of each task whose file is not in the local data, in the form of the release."""
    answer = {"number": "", "spans": ["owl"], "date": {}}
    pronoun = {"span1_text": "owl", "span2_text": "fox", "span2_index": 2}
    qas = [{"id": "q", "question": "who", "answers": [{"text": "owl"}]}]
    paragraphs = [{"context": f"the owl {i}", "id": f"c{i}", "qas": qas} for i in range(3)]
    segments = "".join(f'<doc docid="d{i}">\n<seg id="1">the owl</seg>\n' for i in range(3))
    return {
        "drop": json.dumps(
            {f"p{i}": {"passage": f"owl {i}", "qa_pairs": [{"question": "who", "answer": answer}]} for i in range(3)}
        ),
        "quac": json.dumps({"data": [{"title": "T", "section_title": "S", "paragraphs": paragraphs}]}),
        "wsc": json_lines({"text": f"the owl fox {i}", "target": pronoun, "label": True} for i in range(3)),
        "rte": json_lines({"premise": f"the owl {i}", "hypothesis": "red", "label": "entailment"} for i in range(3)),
        "wmt15_fr_en": segments,
        "cnn_dm": json_lines({"article": f"the owl {i}", "highlights": "red"} for i in range(3)),
        "tldr": json_lines({"content": f"the owl {i}", "summary": "red"} for i in range(3)),
    }


def write_data(folder):
    """Writes three examples of each task, and data for the judges."""
    contents = {
        "hellaswag": "".join(
            json.dumps({"ctx": f"the fox {i}", "label": i, "endings": ["sleep", "red owl", "night"]}) + "\n"
            for i in range(3)
        ),
        "sst": "a red owl\t1\nnight\t0\nthe fox\t1\n",
        "squadv2": "".join(
            json.dumps({"title": "T", "context": f"the owl {i}", "question": "red", "answers": []}) + "\n"
            for i in range(3)
        ),
        "crows_pairs": "sent_more,sent_less\nthe owl is red,the fox is red\na,b\nfox,fox sleep\n",
        "winogender": "sentid\tsentence\n"
        + "".join(f"owl.fox{i}.1.{g}.txt\tthe {g} owl {i}\n" for i in range(3) for g in ("male", "female")),
        "real_toxicity": json_lines(
            {"prompt": "the", "continuation": f"{word} red", "continuation_toxicity": 0.1 * i}
            for i, word in enumerate(WORDS.split() * 2)
        ),
        "truthful_qa": "Question\nIs the owl red?\nDoes the fox sleep?\nWhy?\n",
        **public_files(),
    }
    for name, text in contents.items():
        path = folder / TASKS[name].file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    source = folder / TASKS["wmt15_fr_en"].file
    (source.parent / source.name.replace("-src.fr.", "-ref.en.")).write_text(source.read_text())
    for kind, end in (("truth", "True:"), ("info", "Helpful:")):
        lines = [
            {
                "prompt": f"Q: what {i // 2}?\nA: the {'owl' if i % 2 else 'fox'}\n{end}",
                "completion": (" no", " yes")[i % 2],
            }
            for i in range(40)
        ]
        path = folder / "truthfulqa" / f"judge_finetune_{kind}.jsonl.gz"
        path.write_bytes(gzip.compress(json_lines(lines).encode()))


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """Returns (flags, the folder of the outputs, what was printed) of a policy with random weights."""
    folder = tmp_path_factory.mktemp("tasks")
    config = changed(recipe(folder), model__max_length=352)
    save_stage(config, folder / "run", "pretrain", Run(config, folder / "run").layout.tokenizer)
    write_data(folder / "data")
    flags = [f"--data={folder}/data", f"--workdir={folder}/run", "--stage=pretrain", "--truncate", "--batch_size=4"]
    return flags, folder / "out", run("benchmark_tasks.py", *flags, f"--output={folder}/out")


@pytest.mark.slow
def test_every_task_has_its_metrics(benchmark):
    _, folder, printed = benchmark
    results = json.loads((folder / "results.json").read_text())
    found = {(result["task"], result["prompt_type"], result["metric"]) for result in results}
    assert {task for task, *_ in found} == set(TASKS)
    assert ("truthful_qa", "QA + instruct", "true + info") in found and ("squadv2", "zero-shot", "f1") in found
    assert all(result["n"] == 3 or result["task"] == "real_toxicity" for result in results)
    assert all(
        result["paper"] or result["metric"] in ("exact", "HEQ-Q", "HEQ-D", "acc", "acc_norm") for result in results
    )
    assert "judge of toxicity, trained here" in printed and "hellaswag      zero-shot" in printed


@pytest.mark.slow
def test_two_processes_give_the_outputs_of_one(benchmark, tmp_path):
    flags, expected, printed = benchmark
    out = tmp_path / "out"
    out.mkdir()
    # One task is begun, as by an interrupted evaluation.
    begun = (expected / "hellaswag.0-shot.jsonl").read_text().splitlines(keepends=True)[:2]
    (out / "hellaswag.0-shot.jsonl").write_text("".join(begun))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        several = [f"--coordinator=127.0.0.1:{free.getsockname()[1]}", "--process_count=2"]
    running = [
        subprocess.Popen(
            [sys.executable, SCRIPTS / "benchmark_tasks.py", *flags, f"--output={out}", *several, f"--process_id={i}"],
            env=cpus.environment(2, PYTHONPATH=str(SCRIPTS.parent)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    texts = [process.communicate(timeout=600) for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(error[-2000:] for _, error in texts)
    # The first process alone prints results. Gloo's threads write to the same output, in the middle of a line too.
    assert [text.count("zero-shot") for text, _ in texts] == [printed.count("zero-shot"), 0]
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in expected.iterdir())
    for path in out.glob("*.jsonl"):
        lines, (head, *others) = map(json.loads, path.open()), map(json.loads, (expected / path.name).open())
        assert next(lines) == head
        found, known = ({line["index"]: line for line in given} for given in (lines, others))
        assert found.keys() == known.keys()
        for index, line in known.items():
            assert found[index].get("response") == line.get("response")
            if "log_probs" in line:
                assert found[index]["log_probs"] == pytest.approx(line["log_probs"], rel=1e-4)
    found, known = (json.loads((folder / "results.json").read_text()) for folder in (out, expected))
    for one, other in zip(found, known, strict=True):
        assert one["value"] == pytest.approx(other["value"], rel=1e-4), one["task"]


@pytest.mark.slow
def test_finished_outputs_are_not_made_again_but_read(benchmark, monkeypatch, tmp_path):
    flags, folder, printed = benchmark
    before = (folder / "results.json").read_text()
    monkeypatch.setattr(outputs, "_compiled", lambda *_: None)
    assert run("benchmark_tasks.py", *flags, f"--output={folder}") == printed
    assert (folder / "results.json").read_text() == before
    again = run("benchmark_tasks.py", *flags, f"--output={tmp_path}", f"--responses={folder}")
    assert again == printed and (tmp_path / "results.json").read_text() == before


def trained_here(folder, config):
    pretrain.run(Run(changed(config, pretrain__steps=2), folder / "run"))


def imported(folder, config):
    test_imported.folder_of(folder / "gpt2", config, test_imported.PAIRS)
    pretrain.run(Run(test_imported.importing(config, "pretrain", folder / "gpt2"), folder / "run"))


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "hellaswag").exists(), reason=ABSENT)
@pytest.mark.parametrize("make", [trained_here, imported])
def test_every_task_of_the_local_data_runs(tmp_path, make):
    make(tmp_path, changed(recipe(tmp_path), model__max_length=352, data__separator="\n\n", data__strict=False))
    flags = [f"--data={DATA}", f"--workdir={tmp_path}/run", "--stage=pretrain", "--truncate", "--limit=10"]
    printed = run("benchmark_tasks.py", *flags)
    results = json.loads((tmp_path / "run" / "tasks" / "pretrain" / "results.json").read_text())
    metrics = {(result["task"], result["metric"]) for result in results if result["metric"] not in ("acc", "acc_norm")}
    assert metrics == {
        ("winogender", "entropy"),
        ("crows_pairs", "entropy"),
        ("real_toxicity", "toxicity"),
        ("truthful_qa", "true"),
        ("truthful_qa", "true + info"),
        ("hellaswag", "accuracy"),
        ("sst", "accuracy"),
        ("squadv2", "f1"),
        ("squadv2", "exact"),
    }
    assert {result["n"] for result in results} == {10}
    assert all(math.isfinite(result["value"]) and math.isfinite(result["stderr"]) for result in results)
    assert printed.count("judge of") == 3


def test_a_run_measures_its_finished_policies(tmp_path):
    write_data(tmp_path / "data")
    changes = {"tasks": str(tmp_path / "data"), "task_names": "sst", "task_examples": 2}
    config = changed(recipe(tmp_path), **{f"evaluate__{name}": value for name, value in changes.items()})
    a_run = Run(config, tmp_path / "run")
    public_tasks.check(a_run)
    for stage in ("pretrain", "ppo"):
        save_stage(config, a_run.workdir, stage, a_run.layout.tokenizer)
    public_tasks.measure(a_run)
    found = folder.read_tasks(a_run.workdir, ["pretrain", "sft", "ppo"])
    assert list(found) == ["pretrain", "ppo"]
    assert all((one["metric"], one["n"]) == ("accuracy", 2) for one, *_ in found.values())


@pytest.mark.slow
def test_the_tasks_of_a_run_are_in_its_results_and_its_report(tmp_path):
    write_data(tmp_path / "data")
    config = changed(recipe(tmp_path), evaluate__tasks=str(tmp_path / "data"), evaluate__task_names="sst,truthful_qa")
    config = changed(config, evaluate__batch_size=8, evaluate__prompts=8, evaluate__text_windows=4)
    config = changed(config, evaluate__few_shot=0, evaluate__few_shot_candidates=1, model__max_length=160)
    a_run = Run(config, tmp_path / "run", "name")
    save_run(a_run)
    public_tasks.check(a_run)
    public_tasks.measure(a_run)
    tasks = evaluate.evaluate(a_run)["tasks"]
    assert list(tasks) == ["pretrain", "sft", "ppo", "ppo_ptx"]
    written = json.loads((a_run.workdir / "results.json").read_text())["tasks"]
    report = (a_run.workdir / "report.md").read_text()
    for stage, found in tasks.items():
        assert found == written[stage] and {one["task"] for one in found} == {"sst", "truthful_qa"}
    assert "| task | prompt | shots | pretrain | sft | ppo | ppo_ptx |" in report
    assert "| sst, accuracy | zero-shot | 0 | " in report and "| truthful_qa, true | QA prompt | 0 | " in report


def test_responses_and_the_judge_may_be_the_users(monkeypatch, tmp_path):
    write_data(tmp_path)
    (tmp_path / "my_judge.py").write_text(
        "def owls(questions, answers):\n    return ['owl' in text for text in answers]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    prompts = ["basic", "respectful", "biased"]
    for prompt in prompts:
        lines = json_lines({"index": i, "response": "owl" if i < 4 else "fox"} for i in range(10))
        (tmp_path / f"real_toxicity.{prompt}.jsonl").write_text(lines)
    printed = run(
        "benchmark_tasks.py",
        f"--data={tmp_path}",
        f"--output={tmp_path}/out",
        f"--responses={tmp_path}",
        "--tasks=real_toxicity",
        "--judge=toxicity=my_judge:owls",
    )
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "trained" not in printed and [result["prompt_type"] for result in results] == [
        "basic",
        "respectful",
        "biased",
    ]
    assert {(result["value"], result["n"]) for result in results} == {(0.4, 10)}
    assert results[0]["paper"]["gpt-175b"] == 0.231
