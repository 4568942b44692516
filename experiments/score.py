"""Scores any file of answers with the reward model of a run, or with the sandbox's simulated labelers.

    python experiments/score.py --workdir=runs/e2e --answers=answers.jsonl --output=scored.jsonl

A line of the file is {"prompt": ..., "response": ...} or {"prompt": ..., "responses": [...]}. The output has the same
lines in the same order, with all of their fields, and "reward" or "rewards". If lines with responses have "scores", as
rankings have, it also prints how well the reward model orders them.

With --by=labelers, `evaluate.judgements` held-out labelers judge the responses to each prompt, which must be one of the
recipe's sandbox. The output has a line for each of them, with "scores" and "labeler", as win_rates.py reads it.
"""

import functools
import json
from collections.abc import Sequence

import command_line
import numpy as np
from absl import flags
from etils import epath

from instructjax import files, records
from instructjax.data.layouts import Layout, TokenizedRanking
from instructjax.errors import ConfigError, InputError, RecordError
from instructjax.evaluation import ranking_report, reward_models
from instructjax.evaluation.intervals import Estimate, clustered_mean
from instructjax.records import Prompt, Ranking
from instructjax.runs import interruption
from instructjax.sources.sandbox import Sandbox
from instructjax.stages.run import Run
from instructjax.training import parallel

_ANSWERS = flags.DEFINE_string("answers", None, "The file, .jsonl or .jsonl.gz.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "The file to write, .jsonl.", required=True)
_BY = flags.DEFINE_enum("by", "reward_model", ["reward_model", "labelers"], "Who scores.")


def main(run: Run) -> None:
    """Writes the file with scores."""
    output = files.parse(_OUTPUT.value, "--output")
    if output.suffix != ".jsonl":
        raise InputError(f"--output: expected a file that ends in .jsonl, found {output}")
    asked = read_answers(files.parse(_ANSWERS.value, "--answers"))
    (by_labelers if _BY.value == "labelers" else by_reward_model)(run, asked, output)


def by_labelers(run: Run, asked: Sequence[tuple[Prompt, list[str]]], output: epath.Path) -> None:
    """Writes the file with the scores of simulated labelers."""
    if not isinstance(run.source, Sandbox):
        raise ConfigError("--by=labelers: expected a recipe of the sandbox, found another")
    judged = run.source.judge_file(asked)
    lines = (
        json.loads(records.to_json(asked[number][0])) | {"labeler": labeler, "scores": scores.tolist()}
        for number, labeler, scores in judged
    )
    files.write_text(output, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    print(f"{output}: {len(judged)} judgments of the answers to {len(asked)} prompts")


def by_reward_model(run: Run, asked: Sequence[tuple[Prompt, list[str]]], output: epath.Path) -> None:
    """Writes the file with rewards, and prints their mean."""
    ranked = {
        i: records.parse(records.to_json(record), Ranking, record.where)
        for i, (record, _) in enumerate(asked)
        if {"responses", "scores"} <= record.extra.keys()
    }
    with parallel.on_mesh(run.config.parallel):
        described = run.reward_layout()
        rankings = [_tokenize(record, responses, described) for record, responses in asked]
        reward, layout = run.open_reward_model()
        scored = reward_models.rewards(
            reward.model,
            reward.params,
            rankings,
            pad_id=layout.tokenizer.pad_id,
            batch_size=run.config.reward.batch_size,
            over=functools.partial(interruption.stoppable, place="score"),
        )
    lines = [_line(record, values) for (record, _), values in zip(asked, scored, strict=True)]
    files.write_text(output, "".join(line + "\n" for line in lines))
    prompts = [record.prompt for (record, _), values in zip(asked, scored, strict=True) for _ in values]
    mean, interval = float(np.mean(np.concatenate(scored))), ""
    if len(set(prompts)) > 1:
        estimate = clustered_mean(np.concatenate(scored), prompts)
        interval = f" ± {(estimate.high - estimate.low) / 2:.4f}"
    print(f"{output}: {len(prompts)} answers to {len(set(prompts))} prompts, mean reward {mean:.4f}{interval}")
    if ranked:
        found = ranking_report.score_rankings(list(ranked.values()), [scored[i] for i in ranked])
        print(f"{len(ranked)} rankings: {', '.join(f'{name} {_described(value)}' for name, value in found.items())}")


def _described(value: Estimate | float | None) -> str:
    if isinstance(value, Estimate):
        return f"{value.mean:.3f} ± {(value.high - value.low) / 2:.3f} (n {value.n})"
    return "–" if value is None else f"{value:.3f}"


def read_answers(path: epath.Path) -> list[tuple[Prompt, list[str]]]:
    """Reads each line as its prompt, with all fields, and its answers.

    Raises:
      RecordError: a line has no answers, or they are not texts; see also `records.read`.
    """
    found = []
    for record in records.read(path, Prompt):
        given = [name for name in ("response", "responses") if name in record.extra]
        if len(given) != 1:
            fields = " and ".join(given) or "neither"
            raise RecordError(f"{record.where}: expected either response or responses, found {fields}")
        answers = record.extra[given[0]]
        responses = [answers] if given == ["response"] else answers
        if not isinstance(responses, list) or not responses or not all(isinstance(text, str) for text in responses):
            expected = "text" if given == ["response"] else "a list of texts"
            raise RecordError(f"{record.where}: {given[0]}: expected {expected}, found {json.dumps(answers):.60}")
        found.append((record, responses))
    return found


def _tokenize(record: Prompt, responses: Sequence[str], layout: Layout) -> TokenizedRanking:
    names = ["response"] if "response" in record.extra else [f"responses[{i}]" for i in range(len(responses))]
    return TokenizedRanking(
        layout.encode_prompt(record.prompt, record.where),
        [layout.encode_response(text, record.where, name) for text, name in zip(responses, names, strict=True)],
    )


def _line(record: Prompt, rewards: np.ndarray) -> str:
    added = {"reward": float(rewards[0])} if "response" in record.extra else {"rewards": rewards.tolist()}
    return json.dumps(json.loads(records.to_json(record)) | added, ensure_ascii=False)


if __name__ == "__main__":
    command_line.read(main)
