"""Turns a recipe's source of records into prepared data and a tokenizer, once for all stages.

WORKDIR/data holds what all processes share: the records that the run has written, the tokenizer, and what was checked.
The prepared sets are there, too, unless WORKDIR is in a bucket or `data.prepared` names another folder. Then each host
prepares its own sets from the same records, and the processes compare their fingerprints.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from instructjax import files, records, warning_log
from instructjax.data import checked, documents, mixtures, overlap, preparation, prepared, summary
from instructjax.data.layouts import Layout
from instructjax.errors import ConfigError, DataError, TokenizerError
from instructjax.recipe import check
from instructjax.records import Demonstration, Prompt, R, Ranking, Text
from instructjax.reporting import data_report
from instructjax.runs import interruption, lock, processes, progress, provenance
from instructjax.runs.folder import check_comparisons
from instructjax.stages import needs, scoring
from instructjax.text import tokenizer_files
from instructjax.text.sentencepiece import SentencePieceTokenizer
from instructjax.text.templates import CHAT, SEPARATOR, ChatTemplate
from instructjax.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from instructjax.stages.run import Run

_stoppable = functools.partial(interruption.stoppable, place="prepare")


def prepare(run: Run, stages: Sequence[str] = ()) -> Layout:
    """Prepares the records of a recipe and its tokenizer, unless that is done already.

    Args:
      run: the run.
      stages: names of stages whose needs are checked; see `needs.py`.

    Returns:
      The layout of prompts and responses, with the tokenizer.

    Raises:
      ConfigError: a value of the recipe is impossible, for whatever stage; see `recipe.check`. Or it is not the
        recipe that WORKDIR/data was made with.
      RecordError, DataError: a file is missing or a line of it is wrong, a split that a later stage needs is empty,
        or a record is longer than the recipe allows; or WORKDIR/data holds other files.
      TokenizerError: a tokenizer cannot be read or trained.
      RewardFunctionError: the reward function does not return a number for each of two responses.
    """
    check.recipe(run.config)

    def prepare() -> Layout:
        with warning_log.kept_in(run.workdir), _claimed(run):
            return _prepare(run, stages)

    with interruption.apart():
        layout = processes.first_then_others(prepare)
    _check_equal(run, tokenizer=layout.tokenizer.fingerprint)
    if run.config.ppo.reward_function and _has_train(run.prepared_folder, Prompt):
        scoring.try_out(run.config, "ppo", load(run, Prompt, "train"))
    return layout


@contextlib.contextmanager
def _claimed(run: Run) -> Iterator[None]:
    """Reserves the folder of prepared sets, if it is not WORKDIR/data, while this process changes it."""
    if run.prepared_folder == run.data_folder:
        yield
        return
    workdir = run.workdir if files.is_bucket(run.workdir) else run.workdir.resolve()
    with lock.claim(run.prepared_folder, str(workdir)):
        yield


def _check_equal(run: Run, **facts: str) -> None:
    """Raises InputError unless all processes have prepared the same records."""
    folder = run.prepared_folder
    sets = [name for name in prepared.SET_NAMES.values() if (folder / name).exists()]
    processes.check_equal({**facts, **{f"prepared {name}": prepared.fingerprint(folder, name) for name in sets}})


def _prepare(run: Run, stages: Sequence[str]) -> Layout:
    config, folder = run.config, run.data_folder
    mark = folder / "config.json"  # written last: without it, records and tokenizer are made again
    is_prepared = mark.exists()
    if is_prepared:
        provenance.check_config(config, mark, ("seed", "data", "tokenizer", *check.SOURCES))
        check_comparisons(run.workdir)
    given = tokenizer_files.load(config.tokenizer.path) if config.tokenizer.path else None
    if given and config.data.template == CHAT:
        ChatTemplate(given)  # raises an error before any work if it cannot be used
    with progress.Bar("prepare records", len(prepared.SET_NAMES) + 4, "part") as bar:
        if not is_prepared:
            _claim(folder)
            run.source.write(folder)
        bar.update()  # without a pace, because parts take different times
        found = {kind: run.source.files(kind, folder) for kind in prepared.SET_NAMES}
        shared = _shared_prompts(run, found)
        for kind, paths in found.items():
            if paths:
                _prepare_set(run, kind, paths, shared)
            elif run.prepared_folder != folder:  # of a run that has been removed from the bucket
                (run.prepared_folder / prepared.SET_NAMES[kind]).rmtree(missing_ok=True)
            bar.update()
        needs.check(run, stages, tokenized=False)  # before a tokenizer is trained
        layout = Layout(
            tokenizer=given or _tokenizer(run, trained=is_prepared),
            separator=config.data.separator,
            max_prompt=config.data.max_prompt,
            max_response=config.data.max_response,
            cut_prompts=config.data.cut_prompts,
            kind=config.data.template,
            every_answer=config.data.every_answer,
        )
        bar.update()
        _check_template(layout)
        _check_records(run, layout)
        check_needs(run, stages)
        bar.update()
        documents.tokenize(run.prepared_folder, layout.tokenizer, over=_stoppable)
        bar.update()
    if not is_prepared:
        files.write_json(mark, config.to_dict())
    return layout


def check_needs(run: Run, stages: Sequence[str]) -> None:
    """Checks that the prepared records have what stages need; see `needs.check`.

    Raises:
      ConfigError, DataError: they do not, or an evaluation has no two different prompts.
    """
    needs.check(run, stages)
    if "evaluate" in stages:
        _check_different_prompts(run)


def add_rankings(run: Run, rankings: Iterable[Ranking]) -> None:
    """Writes rankings that were collected in this run to WORKDIR/data/rankings.jsonl and prepares them."""
    path, layout = prepared.written_file(Ranking, run.data_folder), run.layout

    def add() -> None:
        with _claimed(run):
            _prepare_set(run, Ranking, [path], _shared_prompts(run, {Ranking: [path]}))
            _check_records(run, layout)
            needs.check(run, ())

    processes.first(lambda: records.write(path, rankings))
    with interruption.apart():
        processes.first_then_others(add)
    _check_equal(run)


def load(run: Run, kind: type[R], split: str) -> Sequence[R]:
    """Loads the prepared records of a kind and split, without what is too long of them."""
    return used(run, prepared.load(run.prepared_folder, prepared.SET_NAMES[kind], kind, split), kind, split)


def used(run: Run, found: Sequence[Any], kind: type[records.Record], split: str) -> Sequence[Any]:
    """Returns a view of what is used of the prepared records of a kind and split, or of their tokens."""
    return checked.use(found, checked.read(run.data_folder / "checked.json")[prepared.SET_NAMES[kind]], split)


def _shared_prompts(
    run: Run, found: Mapping[type[records.Record], Sequence[epath.PathLike]]
) -> preparation.SharedPrompts | None:
    data = run.config.data
    if data.shared_prompts == "keep":
        return None
    return preparation.shared_prompts(
        {kind: paths for kind, paths in found.items() if paths},
        run.prepared_folder,
        validation=data.validation,
        test=data.test,
        names=run.source.field_names,
    )


def _prepare_set(
    run: Run,
    kind: type[records.Record],
    found: Sequence[epath.PathLike],
    shared: preparation.SharedPrompts | None,
) -> None:
    data = run.config.data
    preparation.prepare(
        kind,
        found,
        run.prepared_folder,
        name=prepared.SET_NAMES[kind],
        validation=data.validation,
        test=data.test,
        names=run.source.field_names,
        merge_equal_answers=run.source.merge_equal_answers,
        strict=data.strict,
        shared=shared,
        over=_stoppable,
    )


def _claim(folder: epath.Path) -> None:
    """Rejects a folder with files that no run put there, such as the user's records, which would be overwritten."""
    mark = folder / ".begun"
    if mark.exists():
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"{folder}: expected no such folder, to prepare records in, found files that no run put there; "
            "choose another --workdir"
        )
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()


def _tokenizer(run: Run, trained: bool) -> Tokenizer:
    folder, section = run.prepared_folder, run.config.tokenizer
    path = run.data_folder / "tokenizer.model"
    if trained:
        return SentencePieceTokenizer.load(path)
    sample: list[str] = []
    if _has_train(folder, Text):
        documents = prepared.load(folder, prepared.SET_NAMES[Text], Text, "train")
        sample += [record.text for record in documents[: section.max_documents]]
    if _has_train(folder, Demonstration):
        demonstrated = prepared.load(folder, prepared.SET_NAMES[Demonstration], Demonstration, "train")
        sample += [text for record in demonstrated for text in (record.prompt, record.response)]
    if not sample:
        raise TokenizerError("tokenizer.path: expected a tokenizer, or text to train one on, found neither")
    tokenizer = SentencePieceTokenizer.train(sample, section.vocab_size, character_coverage=section.character_coverage)
    tokenizer.save(path)
    return tokenizer


def _check_different_prompts(run: Run) -> None:
    """Raises DataError unless the evaluation has two different prompts, without which there are no intervals."""
    test = load(run, Prompt, "test")[: run.config.evaluate.prompts]
    if len({record.prompt for record in test}) < 2:
        place = ", ".join(prepared.source_files(run.prepared_folder, prepared.SET_NAMES[Prompt]))
        raise DataError(
            f"{place}: expected at least 2 different prompts in the split test for evaluate, found 1; "
            'add records with "split": "test", or raise data.test or evaluate.prompts'
        )


def _has_train(folder: epath.Path, kind: type[records.Record]) -> bool:
    name = prepared.SET_NAMES[kind]
    return (folder / name).exists() and "train" in prepared.split_sizes(folder, name)


def _check_template(layout: Layout) -> None:
    """Raises ConfigError if the template leaves no room for a prompt, and warns of a separator without a line break."""
    if layout.kind == SEPARATOR and not layout.separator.endswith("\n"):
        warning_log.warn(f"data.separator: expected a line break at its end, found {layout.separator!r}; see Layout")
    of = "data.separator" if layout.kind == SEPARATOR else "the chat template"
    if (least := layout.count_prompt("")) >= layout.max_prompt:
        raise ConfigError(f"data.max_prompt: expected more than the {least} tokens of {of}, found {layout.max_prompt}")


def _check_records(run: Run, layout: Layout) -> None:
    """Checks which records fit, and that they are the mixture's, and writes WORKDIR/data/report.md about what came in.

    Raises:
      ConfigError: the recipe's mixture names a source that no records have, or not all that it must.
      DataError: see `checked.check`.
    """
    folder, config = run.prepared_folder, run.config
    path = run.data_folder / "checked.json"
    limits = {"max_answers": config.comparisons.max_answers, "strict": config.data.strict}
    checked.check(folder, path, layout, **limits, over=_stoppable)
    found = summarize(run)
    trained = {name: splits.get("train", {}).get("sources", {}) for name, splits in found.items()}
    mixtures.check(sorted({source for sources in trained.values() for source in sources}), config.mixture)
    shares = {
        name: mixtures.shares({source: counted["size"] for source, counted in sources.items()}, config.mixture)
        for name, sources in trained.items()
    }
    shared = overlap.count(folder, path, run.data_folder / "overlap.json")
    data_report.write(run.data_folder, found, run.recipe, shares, shared)


def summarize(run: Run) -> dict[str, Any]:
    """Returns what came in and what is used of it, by set and split; see `data/summary.py`."""
    return summary.summarize(run.prepared_folder, run.data_folder / "checked.json")
