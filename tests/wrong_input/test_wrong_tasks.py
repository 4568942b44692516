"""Public tasks"""

import gzip

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


@fault("a missing file of samples", "PATH: expected a file that can be read, found: No such file or directory")
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
