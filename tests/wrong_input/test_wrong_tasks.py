"""Public tasks"""

import gzip
import sys

from instructjax.evaluation.tasks.registry import TASKS
from instructjax.stages import public_tasks
from instructjax.stages.run import Run
from tests import recipes
from tests.scripts import run
from tests.wrong_input.fault import fault


def score(tmp_path, content, name="drop_samples.csv"):
    """Scores a file of samples with this content."""
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    run("score_samples.py", str(tmp_path / name))


@fault("no file of samples", "expected a file of samples, or several, found none")
def test_no_samples():
    run("score_samples.py")


@fault(
    "a file that is not one of the released ones",
    "PATH: expected DATASET_samples.csv or .csv.gz with DATASET one of TEXT, found samples.csv",
)
def test_other_samples(tmp_path):
    score(tmp_path, "", "samples.csv")


@fault("an unknown flag of score_samples.py", "unrecognized arguments: --jsonl=PATH")
def test_unknown_flag_of_samples(tmp_path):
    run("score_samples.py", "drop_samples.csv", f"--jsonl={tmp_path}")


@fault("a missing file of samples", "PATH: expected a file of samples, found no such file")
def test_missing_samples(tmp_path):
    run("score_samples.py", str(tmp_path / "drop_samples.csv"))


@fault(
    "samples without a column",
    "PATH: expected the columns model_type, prompt_type, ref_text, sample, found none named ref_text",
)
def test_samples_without_a_column(tmp_path):
    score(tmp_path, "model_type,prompt_type,sample\ngpt-xl,zeroshot,a\n")


@fault("samples with a row that is cut", "PATH: record 1: expected 4 fields, found fewer or more")
def test_cut_row_of_samples(tmp_path):
    score(tmp_path, "model_type,prompt_type,ref_text,sample\ngpt-xl,zeroshot,a\n")


@fault("no samples in a file", "PATH: expected at least one sample, found none")
def test_empty_samples(tmp_path):
    score(tmp_path, "model_type,prompt_type,ref_text,sample\n")


@fault("a single sample of a model", "PATH: gpt-xl, zeroshot: expected at least 2 samples, found 1")
def test_one_sample(tmp_path):
    score(tmp_path, "model_type,prompt_type,ref_text,sample\ngpt-xl,zeroshot,a,a\n")


@fault("an unknown type of prompt", "PATH: record 1: prompt_type: expected one of TEXT, found 'tenshot'")
def test_prompt_type_of_samples(tmp_path):
    score(tmp_path, "model_type,prompt_type,ref_text,sample\ngpt-xl,tenshot,a,a\n")


@fault("a toxicity that is not a number", "PATH: record 1: toxicity: expected a finite number, found 'high'")
def test_toxicity_of_samples(tmp_path):
    score(tmp_path, "model_type,prompt_type,toxicity\ngpt-xl,basic prompt,high\n", name="real_toxicity_samples.csv")


@fault("a folder for the scores of samples that is not there", "PATH: No such file or directory")
def test_scores_to_nowhere(tmp_path):
    (tmp_path / "tldr_samples.csv").write_text("model_type,ref_text,sample\n" + "gpt-xl,a,a\n" * 2)
    run("score_samples.py", str(tmp_path / "tldr_samples.csv"), f"--json={tmp_path}/nowhere/cells.json")


@fault("truncated gzip samples", "PATH: expected gzip data, found a damaged file (TEXT)")
def test_truncated_samples(tmp_path):
    score(tmp_path, gzip.compress(b"model_type," * 100)[:-9], name="drop_samples.csv.gz")


@fault("samples that are not UTF-8", "PATH: expected UTF-8, found invalid start byte")
def test_samples_of_bytes(tmp_path):
    score(tmp_path, b"model_type,\xff\n")


def rewards(tmp_path, line, output="scored.jsonl", workdir="run"):
    """Scores a file with this line."""
    (tmp_path / "answers.jsonl").write_text(line + "\n")
    flags = f"--answers={tmp_path}/answers.jsonl", f"--output={tmp_path}/{output}"
    run("score.py", f"--workdir={tmp_path}/{workdir}", *flags)


@fault("answers to score without an answer", "PATH:1: expected either response or responses, found neither")
def test_line_without_answers(tmp_path):
    rewards(tmp_path, '{"prompt": "a"}')


@fault("answers to score that are no texts", "PATH:1: responses: expected a list of texts, found [1]")
def test_answers_of_numbers(tmp_path):
    rewards(tmp_path, '{"prompt": "a", "responses": [1]}')


@fault("another ending of a file of rewards", "--output: expected a file that ends in .jsonl, found PATH")
def test_output_of_rewards(tmp_path):
    rewards(tmp_path, "", output="scored.csv")


@fault("answers to score without a reward model", "PATH: expected the finished stage reward, found none")
def test_no_reward_model(tmp_path):
    rewards(tmp_path, '{"prompt": "a", "response": "b"}')


@fault(
    "an answer to score that is too long",
    "PATH:1: response: expected at most 12 tokens (data.max_response), found N",
)
def test_long_answer_to_score(tmp_path):
    config = recipes.recipe(tmp_path)
    recipes.save_stage(config, tmp_path / "run", "reward", Run(config, tmp_path / "run").layout.tokenizer)
    rewards(tmp_path, '{"prompt": "the fox", "response": "' + "the fox and the owl " * 9 + '"}')


def benchmark(tmp_path, *flags, tasks="sst", **data):
    """Runs tasks on files with this content, and a policy with random weights."""
    for name, content in data.items():
        path = tmp_path / "data" / TASKS[name].file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    where = f"--data={tmp_path}/data", f"--workdir={tmp_path}/run", f"--output={tmp_path}/out"
    run("benchmark_tasks.py", *where, f"--tasks={tasks}", "--stage=pretrain", *flags)


@fault("an unknown task", "--tasks: expected some of TEXT, found 'mmlu'")
def test_unknown_task(tmp_path):
    benchmark(tmp_path, tasks="sst,mmlu")


@fault("a missing file of a task", "PATH: expected a file of examples, found no such file")
def test_missing_task_file(tmp_path):
    benchmark(tmp_path)


@fault("a task file without a column", "PATH: expected the columns sent_more, sent_less, found none named sent_less")
def test_task_without_a_column(tmp_path):
    benchmark(tmp_path, tasks="crows_pairs", crows_pairs="sent_more\na\n")


@fault("a folder without the file of any task", "--data: expected the file of a task; TEXT, found none in PATH")
def test_no_task_file(tmp_path):
    benchmark(tmp_path, tasks="")


@fault("an example without a field", "PATH:N: endings: expected, found only ctx, label")
def test_example_without_a_field(tmp_path):
    benchmark(tmp_path, tasks="hellaswag", hellaswag='{"ctx": "a", "label": 0}\n')


@fault("an example whose field is of another type", 'PATH:N: label: expected an integer, found "0"')
def test_type_of_a_field(tmp_path):
    benchmark(tmp_path, tasks="hellaswag", hellaswag='{"ctx": "a", "label": "0", "endings": ["b", "c"]}\n')


@fault("a right ending that is not there", "PATH:N: endings: expected texts, one of them number 2, found ['b', 'c']")
def test_label_of_an_example(tmp_path):
    benchmark(tmp_path, tasks="hellaswag", hellaswag='{"ctx": "a", "label": 2, "endings": ["b", "c"]}\n')


@fault("a sentence without a label", "PATH:N: expected a sentence, a tab, and 0 or 1, found 'red owl'")
def test_sentence_without_label(tmp_path):
    benchmark(tmp_path, sst="red owl\n")


@fault("a file that is not a JSON object", "PATH: expected a JSON object, found list")
def test_list_instead_of_an_object(tmp_path):
    benchmark(tmp_path, tasks="drop", drop="[]")


@fault("a question of DROP without an answer", "PATH: nfl: question 1: answer: expected a number, TEXT, found none")
def test_question_without_an_answer(tmp_path):
    answer = '{"number": "", "spans": [], "date": {}}'
    pairs = f'[{{"question": "b", "answer": {answer}}}]'
    benchmark(tmp_path, tasks="drop", drop=f'{{"nfl": {{"passage": "a", "qa_pairs": {pairs}}}}}')


@fault("a question of QuAC without an answer", "PATH: q1: answers: expected at least one, found none")
def test_question_without_references(tmp_path):
    paragraph = '{"context": "a", "id": "c", "qas": [{"id": "q1", "question": "b", "answers": []}]}'
    section = f'{{"title": "t", "section_title": "s", "paragraphs": [{paragraph}]}}'
    benchmark(tmp_path, tasks="quac", quac=f'{{"data": [{section}]}}')


@fault("an entailment that is neither", "PATH:1: label: expected entailment or not_entailment, found 'neutral'")
def test_label_of_an_entailment(tmp_path):
    benchmark(tmp_path, tasks="rte", rte='{"premise": "a", "hypothesis": "b", "label": "neutral"}\n')


@fault(
    "a place that is not the pronoun's",
    "PATH:1: target: span2_index: expected the number of the word 'he', found 1, the number of 'fox'",
)
def test_place_of_a_pronoun(tmp_path):
    target = '{"span1_text": "fox", "span2_text": "he", "span2_index": 1}'
    benchmark(tmp_path, tasks="wsc", wsc=f'{{"text": "the fox he", "target": {target}, "label": true}}\n')


@fault("sentences without translations", "PATH: expected a file of examples, found no such file")
def test_sentences_without_translations(tmp_path):
    benchmark(tmp_path, tasks="wmt15_fr_en", wmt15_fr_en='<seg id="1">a</seg>\n')


@fault("solved examples for a task without them", "--shots: expected 0 for crows_pairs, TEXT, found 2")
def test_shots_of_a_task_without_them(tmp_path):
    benchmark(tmp_path, "--shots=2", tasks="crows_pairs", crows_pairs="sent_more,sent_less\na,b\n")


@fault("more solved examples than there are", "--shots: expected fewer than the 2 examples of sst, found 9")
def test_too_many_shots(tmp_path):
    benchmark(tmp_path, "--shots=9", sst="red\t1\nowl\t0\n")


@fault(
    "one example of a task",
    "PATH: expected at least 2 examples that share no text, for a standard error, found 1; TEXT",
)
def test_one_example(tmp_path):
    question = '{"title": "T", "context": "the owl", "question": "red", "answers": []}\n'
    benchmark(tmp_path, tasks="squadv2", squadv2=2 * question)


@fault("a judge without a function", "--judge: expected true|info|toxicity=MODULE:FUNCTION, found 'toxicity=mine'")
def test_judge_without_a_function(tmp_path):
    benchmark(tmp_path, "--judge=toxicity=mine", sst="red\t1\nowl\t0\n")


@fault("a judge that is not there", "--judge: expected nowhere:judge to be found, found: No module named 'nowhere'")
def test_judge_that_is_not_there(tmp_path):
    benchmark(tmp_path, "--judge=true=nowhere:judge", sst="red\t1\nowl\t0\n")


@fault(
    "responses without a folder for results", "--output: expected a folder for the results of --responses, found none"
)
def test_responses_without_output(tmp_path):
    benchmark(tmp_path, "--output=", f"--responses={tmp_path}", sst="red\t1\nowl\t0\n")


@fault("responses that are not complete", "PATH: expected an output for each of 2 examples, found 0; TEXT index 0")
def test_missing_responses(tmp_path):
    (tmp_path / "sst.0-shot.jsonl").write_text("{}\n")
    benchmark(tmp_path, f"--responses={tmp_path}", sst="red\t1\nowl\t0\n")


@fault(
    "a prompt of a task that does not fit the model",
    "PATH:1: prompt: expected at most N of the model's 32 tokens (model.max_length), found N; TEXT",
)
def test_prompt_of_a_task_that_does_not_fit(tmp_path):
    config = recipes.recipe(tmp_path)
    recipes.save_stage(config, tmp_path / "run", "pretrain", Run(config, tmp_path / "run").layout.tokenizer)
    benchmark(tmp_path, sst="red\t1\nowl\t0\n")


@fault("an unknown task in a recipe", "evaluate.task_names: expected some of TEXT, found 'mmlu'")
def test_unknown_task_of_a_recipe(tmp_path):
    config = recipes.changed(recipes.recipe(tmp_path), evaluate__tasks=str(tmp_path), evaluate__task_names="sst,mmlu")
    public_tasks.check(Run(config, tmp_path / "run"))


@fault(
    "a recipe's folder of tasks without a file", "evaluate.tasks: expected the file of a task; TEXT, found none in PATH"
)
def test_no_task_file_of_a_recipe(tmp_path):
    config = recipes.changed(recipes.recipe(tmp_path), evaluate__tasks=str(tmp_path))
    public_tasks.check(Run(config, tmp_path / "run"))


@fault("lm-evaluation-harness without its package", "expected the package lm_eval, found none; pip install TEXT")
def test_harness_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    run("lm_harness.py", "--model", "instructjax")


def compare(tmp_path, line, baseline="sft"):
    """Compares models by a file with this line."""
    (tmp_path / "judged.jsonl").write_text(line + "\n")
    run("win_rates.py", f"--judged={tmp_path}/judged.jsonl", f"--baseline={baseline}")


@fault("judged answers without models", "PATH:1: models: expected a list of texts, found None")
def test_judged_without_models(tmp_path):
    compare(tmp_path, '{"prompt": "a", "responses": ["b", "c"], "scores": [1, 0]}')


@fault("judged answers of one model", "PATH:1: models: expected at least 2 different names, found ['sft', 'sft']")
def test_judged_of_one_model(tmp_path):
    compare(tmp_path, '{"prompt": "a", "models": ["sft", "sft"], "responses": ["b", "c"], "scores": [1, 0]}')


@fault("a judged answer without a score", "PATH:1: scores: expected 2 numbers, found [1]")
def test_judged_without_a_score(tmp_path):
    compare(tmp_path, '{"prompt": "a", "models": ["sft", "ppo"], "responses": ["b", "c"], "scores": [1]}')


@fault("an unknown baseline", "--baseline: expected a model with which others are compared, of ppo, sft, found gpt")
def test_unknown_baseline(tmp_path):
    compare(tmp_path, '{"prompt": "a", "models": ["sft", "ppo"], "responses": ["b", "c"], "scores": [1, 0]}', "gpt")
