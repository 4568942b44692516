"""Measures HellaSwag's questions with a model of size A: ours, and lm-evaluation-harness with transformers, in turn.

    pip install -e '.[lm-eval,parity,tasks]'
    python experiments/benchmarks/choices.py --data=DATA

The model has random weights and a context of 512 tokens. Its tokenizer is trained on all questions. Both sides read the
same folder of weights, get the same prompts with their choices, and tokenize them. A first turn of each, which
compiles, is not counted. Tokens are those of each prompt with each of its choices, as the harness computes them; ours
computes a prompt once. Rates are given per second on the clock and per second of CPU time, which depends less on other
programs; `taskset -c 0` in front of the command gives both sides one core. --model keeps the folder of weights, for
import_weights.py.
"""

import pathlib
import statistics
import sys
import tempfile
import time

import jax
import numpy as np
import tokenizers
import torch
from absl import flags
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from instructjax import files
from instructjax.evaluation.tasks import outputs
from instructjax.models import huggingface, pretrained
from instructjax.models.config import TransformerConfig
from instructjax.models.transformer import LanguageModel
from instructjax.stages import imported, public_tasks, trained
from instructjax.text import export, tokenizer_files
from instructjax.text.special_tokens import END_OF_TEXT

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # as for the scripts of experiments/

import command_line

from benchmarks import workloads

_DATA = flags.DEFINE_string("data", None, "The folder of the tasks' files; see docs/tasks.md.", required=True)
_EXAMPLES = flags.DEFINE_integer("examples", 200, "The first questions are measured.", lower_bound=2)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each side.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Rows per forward pass, of both sides.", lower_bound=1)
_MODEL = flags.DEFINE_string("model", None, "A folder to write the model to; by default a temporary one.")
LENGTH = 512


def write_model(folder, texts):
    """Writes a folder with a GPT-2 of size A and a tokenizer trained on texts. Returns (model, tokenizer)."""
    size = workloads.SHAPES["A"] | {"max_length": LENGTH}
    pairs = tokenizers.ByteLevelBPETokenizer()
    # The package adds a padding token.
    pairs.train_from_iterator(
        texts, vocab_size=size["vocab_size"] - 1, special_tokens=[END_OF_TEXT], show_progress=False
    )
    tokenizer = tokenizer_files.from_bytes(pairs.to_str().encode())
    config = TransformerConfig(**size | {"vocab_size": tokenizer.vocab_size}, local_window=None, remat="dense")
    model = LanguageModel(config)
    params = trained.initial_params(model, jax.random.key(0))
    described = huggingface.describe(config, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id)
    pretrained.write(
        folder, described, huggingface.tensors_of(params, config), export.pretrained_files(tokenizer, LENGTH)
    )
    return model, tokenizer


def count_tokens(rankings):
    """Returns the number of tokens of each prompt with each of its choices."""
    return sum(len(r.prompt) * len(r.responses) + sum(map(len, r.responses)) for r in rankings)


def seconds(work):
    """Returns ((wall-clock, CPU) seconds, the log-probabilities of all choices) of a call."""
    clock, processor = time.perf_counter(), time.process_time()
    found = work()
    return (time.perf_counter() - clock, time.process_time() - processor), np.array(found)


def main(_):
    """Measures both sides in turn."""
    data = files.parse(_DATA.value, "--data")
    (every,) = public_tasks.read_cases(data, ["hellaswag"])
    (case,) = public_tasks.read_cases(data, ["hellaswag"], limit=_EXAMPLES.value)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(_MODEL.value or f"{temporary}/model")
        model, tokenizer = write_model(
            folder, [text for example in every.examples for text in (example.text, *example.choices)]
        )
        params = imported.read(str(folder), model, tokenizer)
        peer = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=_BATCH_SIZE.value)

    def tokenize(case):
        return outputs.tokenize_choices(tokenizer, case.prompts, case.examples, max_length=LENGTH, truncate=False)

    def ours():
        batches = outputs.score_choices(
            model, params, tokenize(case), pad_id=tokenizer.pad_id, batch_size=_BATCH_SIZE.value
        )
        found = dict(pair for batch in batches for pair in batch)
        return [x for i in range(len(found)) for x in found[i].log_probs]

    def theirs():
        requests = [
            Instance("loglikelihood", {}, (prompt, choice), i)
            for i, (prompt, example) in enumerate(zip(case.prompts, case.examples, strict=True))
            for choice in example.choices
        ]
        return [found for found, _ in peer.loglikelihood(requests, disable_tqdm=True)]

    sides = {"ours": ours, "lm_eval with transformers": theirs}
    first = {name: seconds(work) for name, work in sides.items()}
    rounds = [{name: seconds(work)[0] for name, work in sides.items()} for _ in range(_ROUNDS.value)]
    difference = np.abs(np.subtract(*(found for _, found in first.values()))).max()
    tokens, all_tokens = count_tokens(tokenize(case)), count_tokens(tokenize(every))
    print(f"{len(case.prompts)} questions, {tokens} tokens; torch {torch.__version__}, jax {jax.__version__}")
    print(f"all {len(every.prompts)} questions: {all_tokens} tokens")
    one, other = sides
    for number, unit in enumerate(("wall-clock", "CPU")):
        for name in sides:
            middle = statistics.median(turn[name][number] for turn in rounds)
            print(
                f"{name}, {unit}: {tokens / middle:.0f} tokens/s, {len(case.prompts) / middle:.1f} questions/s, "
                f"{middle:.2f} s (median of {_ROUNDS.value}; first turn {first[name][0][number]:.2f} s)"
            )
        ratios = sorted(turn[other][number] / turn[one][number] for turn in rounds)
        print(f"{unit}, ratio by turn: {ratios[0]:.2f} to {ratios[-1]:.2f}, median {statistics.median(ratios):.2f}")
    print(f"largest difference of a log-probability: {difference:.1e}")


if __name__ == "__main__":
    command_line.read(main)
