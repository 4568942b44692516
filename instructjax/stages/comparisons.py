"""Collects comparisons: the SFT policy answers, labelers rank (section 3.4)."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from instructjax import files, records, warning_log
from instructjax.data import prepared
from instructjax.errors import DataError
from instructjax.records import Prompt, Ranking
from instructjax.rollout import samplers
from instructjax.runs import checkpoint, cost, folder, processes, progress
from instructjax.sources.sandbox import HELDOUT_RANKINGS
from instructjax.stages import needs, prepare, trained
from instructjax.stages.run import Run
from instructjax.stages.trained import Trained
from instructjax.training import parallel


def collect(run: Run) -> None:
    """Has labelers rank answers of WORKDIR/sft, unless there are rankings already.

        WORKDIR/data/rankings.jsonl           training labelers, splits train and validation
        WORKDIR/data/heldout_rankings.jsonl   held-out labelers, split validation
        WORKDIR/data/comparisons.json         the fingerprints of the SFT checkpoint and of these files

    Warns if the existing rankings rank answers of earlier weights.

    Raises:
      DataError: the source has no labelers.
    """
    if run.has(Ranking):
        if warning := folder.outdated_comparisons(run.workdir):
            warning_log.warn(warning)
        return
    with cost.timed(run.workdir, "comparisons"), parallel.on_mesh(run.config.parallel):
        # If reward models have a size of their own, reward.init_from is not a policy of this run's.
        start = run.checkpoints("sft", "" if run.config.reward.size else run.config.reward.init_from)
        policy = trained.load_policy(start, run.policy_config, run.layout.tokenizer)
        rankings, heldout = run.source.collect_rankings(run.data_folder, functools.partial(sample_answers, run, policy))
        own = start == run.checkpoints("sft")
        add(run, rankings, heldout, {"sft": checkpoint.fingerprint(start)} if own else {})


def add(
    run: Run,
    rankings: Sequence[Ranking],
    heldout: Sequence[Ranking],
    answered: Mapping[str, str] = types.MappingProxyType({}),
) -> int:
    """Adds rankings to a run that has none, for its reward model. Those in which all answers tie are left out.

    Args:
      run: the run.
      rankings: of training labelers.
      heldout: of held-out labelers.
      answered: the fingerprint of the checkpoint whose answers were ranked, by its stage, if it is one of this run.

    Returns:
      The number of rankings that are used.

    Raises:
      DataError: the run has rankings already, no ranking prefers an answer, or a split has none. Nothing is written.
    """
    used, used_heldout = ([one for one in given if len(set(one.scores)) > 1] for given in (rankings, heldout))
    if not used:
        raise DataError(f"rankings: expected some that prefer an answer, found none among {len(rankings)}")
    if run.has(Ranking):
        raise DataError(f"{run.prepared_folder}: expected a run without rankings, found some")
    data = run.config.data
    found = {records.split_of(one, data.validation, data.test) for one in used}
    for split in needs.NEEDS["reward"][Ranking]:
        if split not in found:
            raise DataError(
                f"rankings: expected some in the split {split}, found only {', '.join(sorted(found))}; "
                f"label answers to prompts of this split, too"
            )
    # The mark of a finished collection is the set of rankings, which is written last.
    written = {prepared.written_file(Ranking, run.data_folder).name: used, HELDOUT_RANKINGS: used_heldout}
    digests = {name: folder.digest(records.to_lines(given)) for name, given in written.items()}
    noted = {"checkpoints": dict(answered), "files": digests}
    processes.first(lambda: files.write_json(run.data_folder / "comparisons.json", noted))
    processes.first(lambda: records.write(run.data_folder / HELDOUT_RANKINGS, used_heldout))
    prepare.add_rankings(run, used)
    return len(used)


def sample_answers(run: Run, policy: Trained, prompts: Sequence[Prompt], seed: int) -> Iterator[tuple[str, list[str]]]:
    """Samples K answers to each prompt, K drawn evenly from the configured range.

    Args:
      run: its section `comparisons` gives the range of K and the temperature.
      policy: the model that answers.
      prompts: records.
      seed: of K and of the samples.

    Yields:
      (prompt, K answers), in the order of the prompts. Answers may be equal.
    """
    section, layout = run.config.comparisons, run.layout
    rng = np.random.default_rng(seed)
    counts = rng.integers(section.min_answers, section.max_answers, size=len(prompts), endpoint=True)
    sampler = samplers.make_sampler(
        policy.model, layout, temperature=section.temperature, batch_size=run.config.evaluate.batch_size
    )
    repeated = [record.prompt for record, count in zip(prompts, counts, strict=True) for _ in range(count)]
    with progress.Bar("comparisons: answer and rank", len(repeated), "answer") as bar:
        sampled = bar.over(batch for _, batch in sampler(policy.params, repeated, jax.random.key(seed)))
        texts = (text for batch in sampled for text in batch)
        for record, count in zip(prompts, counts, strict=True):
            yield record.prompt, [layout.truncate(next(texts)) for _ in range(count)]
