"""The sandbox as a source: simulated labelers write and rank, and the true quality of every answer is known."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from instructjax import records
from instructjax.data import prepared
from instructjax.errors import DataError
from instructjax.evaluation import agreement, simulated
from instructjax.records import Prompt, Ranking, Record
from instructjax.runs import progress
from instructjax.sandbox import corpus, labelers
from instructjax.sandbox.labelers import Labeler
from instructjax.sandbox.quality import quality
from instructjax.sources.source import SPLITS, Answers, Judgement, Sample

REWARD_PROMPTS = "reward_prompts.jsonl"  # prompts whose answers are ranked
HELDOUT_RANKINGS = "heldout_rankings.jsonl"


class Sandbox:
    """A small world with simulated labelers."""

    splits = SPLITS
    field_names: Mapping[str, str] = {}
    merge_equal_answers = False

    def __init__(self, config: ml_collections.ConfigDict):
        """Takes a whole recipe and reads `sandbox`, `comparisons`, `data`, `evaluate` and `seed`."""
        self._config = config
        section = config.sandbox
        self._training = labelers.training_labelers(config.seed, section.labelers, section.noise, section.tie)
        self._heldout = labelers.heldout_labelers(config.seed, section.heldout_labelers, section.noise, section.tie)

    def write(self, folder: epath.Path) -> None:
        """Writes pretraining text, demonstrations, prompts whose answers are ranked, and prompts for PPO."""
        section = self._config.sandbox
        written = corpus.write_records(
            self._config.seed,
            texts=section.documents,
            demonstrations=section.demonstrations,
            reward_prompts=section.reward_prompts,
            ppo_prompts=section.prompts,
            users=section.users,
            validation=self._config.data.validation,
            test=self._config.data.test,
            labelers=self._training,
        )
        records.write(folder / "text.jsonl", written["text"])
        records.write(folder / "demonstrations.jsonl", written["demonstrations"])
        records.write(folder / REWARD_PROMPTS, written["reward_prompts"])
        records.write(folder / "prompts.jsonl", written["ppo_prompts"])

    def files(self, kind: type[Record], folder: epath.Path) -> list[epath.Path]:
        """Returns FOLDER/SET.jsonl if it exists. Rankings are collected later."""
        return prepared.written_files(kind, folder)

    def collect_rankings(self, folder: epath.Path, sample: Sample) -> tuple[list[Ranking], list[Ranking]]:
        """Has one training labeler rank the answers to each training prompt, as in section 5.3.

        On validation prompts, several labelers of both groups rank the same answers. These
        rankings measure the labelers' agreement and the reward model's accuracy.

        Raises:
          DataError: fewer training prompts are left after those that `comparisons.skip` leaves out.
        """
        section, asked, seed = self._config.sandbox, self._config.comparisons, self._config.seed
        rng = np.random.default_rng([seed, 3, asked.skip])  # each round has noise of its own
        drawn = records.read(folder / REWARD_PROMPTS, Prompt)

        def prompts(split: str, skip: int, count: int) -> list[Prompt]:
            return [record for record in drawn if record.split == split][skip : skip + count]

        train = prompts("train", asked.skip, asked.prompts)
        if asked.skip and len(train) < asked.prompts:
            raise DataError(
                f"sandbox.reward_prompts: expected comparisons.prompts = {asked.prompts} training prompts after the "
                f"first {asked.skip} (comparisons.skip), found {len(train)}"
            )
        rankings = list(self._ranked(train, sample(train, seed), self._training, 1, rng))
        validation = prompts("validation", 0, section.validation_prompts)
        answered = list(sample(validation, seed + 1))
        with progress.Bar("comparisons: rank held-out answers", 2 * len(validation), "prompt") as bar:
            counted = functools.partial(bar.over, answered, size=lambda _: 1)
            rankings += self._ranked(validation, counted(), self._training, section.raters, rng)
            return rankings, list(self._ranked(validation, counted(), self._heldout, section.raters, rng))

    def _ranked(
        self,
        prompts: Sequence[Prompt],
        answered: Iterable[tuple[str, list[str]]],
        group: Sequence[Labeler],
        raters: int,
        rng: np.random.Generator,
    ) -> Iterator[Ranking]:
        """Has `raters` labelers of a group rank the answers to each prompt."""
        source = "+".join(stage.rpartition("/")[2] for stage in self._config.comparisons.stages)
        for record, (prompt, responses) in zip(prompts, answered, strict=True):
            for index in rng.choice(len(group), size=raters, replace=False):
                ranking = labelers.rank(prompt, responses, group[index], rng)
                if ranking is not None:  # None if all answers tie
                    yield dataclasses.replace(ranking, user=record.user, split=record.split, source=source)

    def measure(self, prompts: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
        """Returns the mean true quality of the answers."""
        return {"true_quality": float(np.mean([quality(p, a) for p, a in zip(prompts, texts, strict=True)]))}

    def judge_file(self, asked: Sequence[tuple[Prompt, list[str]]]) -> list[tuple[int, str, np.ndarray]]:
        """Has held-out labelers judge answers from anywhere, `evaluate.judgements` of them each prompt's answers.

        Args:
          asked: records with the answers to each prompt.

        Returns:
          (number of the record, name of the labeler, score of each answer) for each judgment. Equal scores tie.

        Raises:
          RecordError: a prompt is not one of the sandbox's.
        """
        rng = np.random.default_rng([self._config.seed, 5])
        return [
            (number, self._heldout[index].name, labelers.levels(record.prompt, texts, self._heldout[index], rng))
            for number, (record, texts) in enumerate(asked)
            for index in rng.choice(len(self._heldout), size=self._config.evaluate.judgements, replace=False)
        ]

    def judge(self, answers: Answers) -> Judgement:
        """Has labelers of both groups judge, and adds the true quality and the reward model's accuracy."""
        rng = np.random.default_rng([self._config.seed, 4])
        groups = {"training": self._training, "heldout": self._heldout}
        judgements = self._config.evaluate.judgements
        models: dict[str, dict[str, Any]] = {}
        with progress.Bar("evaluate: judging", len(answers.texts) + 1, "model") as bar:
            for model, texts in answers.texts.items():
                models[model] = {
                    "true_quality": simulated.true_quality(answers.prompts, texts).to_dict(),
                    "win_rate_vs_sft": {
                        name: simulated.labeler_win_rate(
                            answers.prompts, texts, answers.baseline, group, judgements, rng
                        ).to_dict()
                        for name, group in groups.items()
                    },
                }
                models[model] |= simulated.ratings(answers.prompts, texts, self._heldout, rng)
                bar.add(1)
            reward_model = _reward_model(answers)
            bar.add(1)
        return Judgement(models, {"reward_model": reward_model})


def _reward_model(answers: Answers) -> dict[str, Any]:
    """Measures the reward model's accuracy on each group of labelers, and the labelers' agreement."""
    rankings = {
        "training": list(answers.load(Ranking, "validation")),
        "heldout": records.read(answers.folder / HELDOUT_RANKINGS, Ranking),
    }
    rewards = {name: answers.rewards(group) for name, group in rankings.items()}
    accuracy = {name: agreement.reward_accuracy(group, rewards[name]) for name, group in rankings.items()}
    agreed = {name: agreement.pairwise_agreement(group) for name, group in rankings.items()}
    return {
        "accuracy": {f"{name}_labelers": estimate.mean for name, estimate in accuracy.items()},
        "labeler_agreement": {name: estimate.mean for name, estimate in agreed.items()},
        "pairs": accuracy["training"].n,
        "calibration": {name: agreement.calibration(group, rewards[name]) for name, group in rankings.items()},
        "intervals": {
            "accuracy": {name: estimate.to_dict() for name, estimate in accuracy.items()},
            "labeler_agreement": {name: estimate.to_dict() for name, estimate in agreed.items()},
        },
    }
