"""Collects comparisons: policies answer, labelers rank (section 3.4)."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from etils import epath

from instructjax import files, records, warning_log
from instructjax.data import prepared
from instructjax.errors import DataError
from instructjax.records import Prompt, Ranking
from instructjax.rollout import sampling
from instructjax.runs import checkpoint, cost, folder, processes, progress
from instructjax.sources.sandbox import HELDOUT_RANKINGS
from instructjax.stages import answers, needs, prepare, trained
from instructjax.stages.answers import Policy, Sampling
from instructjax.stages.run import Run
from instructjax.training import parallel


def collect(run: Run) -> None:
    """Has labelers rank answers of the policies in `comparisons.stages`, unless there are rankings already.

        WORKDIR/data/rankings.jsonl           training labelers, splits train and validation
        WORKDIR/data/heldout_rankings.jsonl   held-out labelers, split validation
        WORKDIR/data/comparisons.json         the fingerprints of the checkpoints that answered, and of these files

    Warns if the existing rankings rank answers of earlier weights.

    Raises:
      CheckpointError: a stage in `comparisons.stages` is not finished.
      DataError: the source has no labelers, or too few prompts; or see `add`.
    """
    if run.has(Ranking):
        if warning := folder.outdated_comparisons(run.workdir):
            warning_log.warn(warning)
        return
    with cost.timed(run.workdir, "comparisons"), parallel.on_mesh(run.config.parallel):
        # If reward models have a size of their own, reward.init_from is not a policy of this run's.
        elsewhere = {"sft": "" if run.config.reward.size else run.config.reward.init_from}
        starts = {stage: run.checkpoints(stage, elsewhere.get(stage, "")) for stage in run.config.comparisons.stages}
        policies = [functools.partial(_load, run, start) for start in starts.values()]
        rankings, heldout = run.source.collect_rankings(
            run.data_folder, functools.partial(sample_answers, run, policies)
        )
        own = [stage for stage, start in starts.items() if start == run.directory(stage) / "checkpoints"]
        add(run, rankings, heldout, {stage: checkpoint.fingerprint(starts[stage]) for stage in own})


def _load(run: Run, start: epath.Path) -> Policy:
    return trained.load_policy(start, run.policy_config, run.layout.tokenizer), run.layout


def add(
    run: Run,
    rankings: Sequence[Ranking],
    heldout: Sequence[Ranking],
    answered: Mapping[str, str] = types.MappingProxyType({}),
) -> int:
    """Adds rankings to a run that has none, for its reward model. Those in which all answers tie are left out.

    The rankings of the run in `comparisons.earlier` are added, too, so those of all earlier rounds.

    Args:
      run: the run.
      rankings: of training labelers.
      heldout: of held-out labelers.
      answered: the fingerprints of the checkpoints of this run whose answers were ranked, by stage.

    Returns:
      The number of these rankings that are used.

    Raises:
      DataError: the run has rankings already, no ranking prefers an answer, or a split has none. Nothing is written.
      RecordError: the earlier run has no rankings.
    """
    used, used_heldout = ([one for one in given if len(set(one.scores)) > 1] for given in (rankings, heldout))
    if not used:
        raise DataError(f"rankings: expected some that prefer an answer, found none among {len(rankings)}")
    if run.has(Ranking):
        raise DataError(f"{run.prepared_folder}: expected a run without rankings, found some")
    earlier, earlier_heldout = _earlier(run)
    data = run.config.data
    found = {records.split_of(one, data.validation, data.test) for one in (*earlier, *used)}
    for split in needs.NEEDS["reward"][Ranking]:
        if split not in found:
            raise DataError(
                f"rankings: expected some in the split {split}, found only {', '.join(sorted(found))}; "
                f"label answers to prompts of this split, too"
            )
    # The mark of a finished collection is the set of rankings, which is written last.
    learned, asked = [*earlier, *used], [*earlier_heldout, *used_heldout]
    written = {prepared.written_file(Ranking, run.data_folder).name: learned}
    if asked:
        written[HELDOUT_RANKINGS] = asked
        processes.first(lambda: records.write(run.data_folder / HELDOUT_RANKINGS, asked))
    digests = {name: folder.digest(records.to_lines(given)) for name, given in written.items()}
    noted = {"checkpoints": dict(answered), "files": digests}
    processes.first(lambda: files.write_json(run.data_folder / "comparisons.json", noted))
    prepare.add_rankings(run, learned)
    return len(used)


def _earlier(run: Run) -> tuple[Sequence[Ranking], Sequence[Ranking]]:
    """Returns the rankings that the run in `comparisons.earlier` used, its own and earlier ones."""
    if not run.config.comparisons.earlier:
        return [], []
    data = run.workdir / run.config.comparisons.earlier / "data"
    rankings, heldout = data / "rankings.jsonl", data / HELDOUT_RANKINGS
    return records.read(rankings, Ranking), records.read(heldout, Ranking) if files.exists(heldout) else []


def sample_answers(
    run: Run, policies: Sequence[Callable[[], Policy]], prompts: Sequence[Prompt], seed: int
) -> Iterator[tuple[str, list[str]]]:
    """Samples K answers to each prompt, K drawn evenly from the configured range.

    The policies answer in turn: each gives K / len(policies) of the answers, and the first ones perhaps one more.

    Args:
      run: its section `comparisons` gives the range of K and the temperature.
      policies: functions that load the models that answer. One model after the other is in memory.
      prompts: records.
      seed: of K and of the samples.

    Yields:
      (prompt, K answers), in the order of the prompts. Answers may be equal.
    """
    section, layout = run.config.comparisons, run.layout
    rng = np.random.default_rng(seed)
    counts = rng.integers(section.min_answers, section.max_answers, size=len(prompts), endpoint=True)
    shares = [[len(range(number, count, len(policies))) for count in counts] for number in range(len(policies))]
    keys = [functools.partial(_row_keys, seed, number) for number in range(len(policies))]
    drawn = Sampling(temperature=section.temperature, batch_size=run.config.evaluate.batch_size)
    with progress.Bar("comparisons: answer", int(counts.sum()), "answer") as bar:
        answered = list(answers.answer_in_turn(policies, prompts, shares, keys, drawn, bar))
    for record, *given in zip(prompts, *answered, strict=True):
        yield record.prompt, [layout.truncate(text) for texts in given for text in texts]


def _row_keys(seed: int, number: int, prompts: Sequence[str]) -> jax.Array:
    """Returns a key per answer of a policy. Those of the first policy do not depend on whether there are others."""
    key = jax.random.key(seed)
    return sampling.row_keys(jax.random.fold_in(key, number) if number else key, len(prompts))
