"""Collecting comparisons: the SFT policy answers, labelers rank (section 3.4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import ml_collections
import numpy as np
from etils import epath

from instructjax import records
from instructjax.data.layouts import Layout
from instructjax.records import Prompt, Ranking
from instructjax.rollout import samplers
from instructjax.runs import processes
from instructjax.sandbox import labelers
from instructjax.stages import prepare, workspace
from instructjax.stages.workspace import Trained

HELDOUT = "heldout_rankings.jsonl"


def run(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Has the simulated labelers rank answers of WORKDIR/sft, unless rankings are there already.

    One training labeler ranks the answers to each training prompt, as in section 5.3.
    On validation prompts, several labelers of both groups rank the same answers, to
    measure their agreement and the reward model's accuracy:

        WORKDIR/data/rankings.jsonl           training labelers, splits train and validation
        WORKDIR/data/heldout_rankings.jsonl   held-out labelers, split validation
    """
    layout = prepare.run(config, workdir)
    if not prepare.has_rankings(workdir):
        _collect(config, workdir, layout)


@workspace.timed("comparisons")
def _collect(config: ml_collections.ConfigDict, workdir: epath.PathLike, layout: Layout) -> None:
    shape = workspace.model_config(config, layout.tokenizer)
    # Where reward models have a size of their own, reward.init_from is no policy of this run's.
    start = workspace.checkpoints_of("" if config.reward.size else config.reward.init_from, workdir, "sft")
    policy = workspace.load_language_model(start, shape, layout.tokenizer)
    training, heldout = prepare.simulated_labelers(config)
    rng = np.random.default_rng([config.seed, 3])

    drawn = records.read(epath.Path(workdir) / "data" / prepare.REWARD_PROMPTS, Prompt)

    def prompts(split: str, count: int) -> list[Prompt]:
        return [record for record in drawn if record.split == split][:count]

    def ranked(items: Sequence[Prompt], group: Sequence[labelers.Labeler], raters: int, answered) -> Iterator[Ranking]:
        for record, (prompt, responses) in zip(items, answered, strict=True):
            for index in rng.choice(len(group), size=raters, replace=False):
                ranking = labelers.rank(prompt, responses, group[index], rng)
                if ranking is not None:  # None: all tied, nothing to learn
                    yield dataclasses.replace(ranking, user=record.user, split=record.split, source="sft")

    train = prompts("train", config.comparisons.prompts)
    collected = list(ranked(train, training, 1, sample_answers(config, layout, policy, train, config.seed)))
    validation = prompts("validation", config.sandbox.validation_prompts)
    answered = list(sample_answers(config, layout, policy, validation, config.seed + 1))
    collected += ranked(validation, training, config.sandbox.raters, answered)
    # The mark of a finished collection is the other file, which is written last.
    apart = ranked(validation, heldout, config.sandbox.raters, answered)
    processes.first(lambda: records.write(epath.Path(workdir) / "data" / HELDOUT, apart))
    prepare.add_rankings(config, workdir, layout, collected)


def sample_answers(
    config: ml_collections.ConfigDict, layout: Layout, policy: Trained, prompts: Sequence[Prompt], seed: int
) -> Iterator[tuple[str, list[str]]]:
    """Samples K answers to each prompt, K drawn evenly from the configured range.

    Args:
      config: a whole recipe; `comparisons` gives the range of K and the temperature.
      layout: of prompts and responses.
      policy: the model that answers.
      prompts: records.
      seed: of K and of the samples.

    Yields:
      (prompt, K answers), in the order of the prompts. Answers may be equal.
    """
    section = config.comparisons
    rng = np.random.default_rng(seed)
    counts = rng.integers(section.min_answers, section.max_answers, size=len(prompts), endpoint=True)
    sampler = samplers.make_sampler(
        policy.model, layout, temperature=section.temperature, batch_size=config.evaluate.batch_size
    )
    repeated = [record.prompt for record, count in zip(prompts, counts, strict=True) for _ in range(count)]
    texts = (text for _, batch in sampler(policy.params, repeated, jax.random.key(seed)) for text in batch)
    for record, count in zip(prompts, counts, strict=True):
        yield record.prompt, [layout.capped(next(texts)) for _ in range(count)]
