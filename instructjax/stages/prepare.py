"""From a recipe's source of records to prepared data and a tokenizer, once for all stages.

    files     JSON lines that the user names
    sandbox   a simulated world and simulated people
    e2e       human references and ratings of the E2E NLG challenge, and public texts

Exactly one of these sections is declared in a recipe. Whichever it is, the records end up
under WORKDIR/data in the same form, and no later stage knows where they came from.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import ml_collections
from etils import epath

from instructjax import files, records
from instructjax.batch import LMBatch, RankingBatch
from instructjax.data import demonstrations, layouts, pipeline, prepared
from instructjax.data.layouts import Layout
from instructjax.data.rankings import ranking_rows, tokenize_rankings
from instructjax.errors import ConfigError, DataError
from instructjax.recipe import check
from instructjax.records import Demonstration, Prompt, R, Ranking, Record, Text
from instructjax.runs import processes, provenance
from instructjax.sandbox import corpus, labelers
from instructjax.sandbox.labelers import Labeler
from instructjax.sources import e2e, texts
from instructjax.text import tokenizer_files
from instructjax.text.sentencepiece import SentencePieceTokenizer
from instructjax.text.tokenizer import Tokenizer

REWARD_PROMPTS = "reward_prompts.jsonl"  # of the sandbox, to collect comparisons with

SPLITS: dict[type[Record], tuple[str, ...]] = {  # that training and evaluation need
    Text: ("train", "validation"),
    Demonstration: ("train", "validation"),
    Prompt: ("train", "validation", "test"),
    Ranking: ("train", "validation"),
}
HUMAN_SPLITS = SPLITS | {kind: ("train", "validation", "test") for kind in (Demonstration, Ranking)}  # judged by people
NAMES: dict[type[Record], str] = {
    Text: "text",
    Demonstration: "demonstrations",
    Prompt: "prompts",
    Ranking: "rankings",
}


def run(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> Layout:
    """Prepares the records of a recipe and its tokenizer, as far as that is not done yet.

    Returns:
      The layout of prompts and responses, with the tokenizer.

    Raises:
      ConfigError: a value of the recipe is impossible, for whatever stage; see `check`. Or it is not the
        recipe that WORKDIR/data was made with.
      RecordError, DataError: a file is missing or a line of it is wrong, a split that a later
        stage needs is empty, or a record is longer than the recipe allows; or WORKDIR/data holds other files.
      TokenizerError: a tokenizer cannot be read or trained.
    """
    check.recipe(config)
    return processes.first_then_others(lambda: _run(config, workdir))


def _run(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> Layout:
    folder = epath.Path(workdir) / "data"
    mark = folder / "config.json"  # written last: without it, records and tokenizer are made anew
    if mark.exists():
        provenance.check_config(config, mark, ("seed", "data", "tokenizer", *check.SOURCES))
    given = tokenizer_files.load(config.tokenizer.path) if config.tokenizer.path else None
    if not mark.exists():
        _claim(folder)
    if "files" in config:
        for kind, name in NAMES.items():
            _prepare(config, workdir, kind, config.files[name].split(","))
    else:
        write = _write_sandbox if "sandbox" in config else _write_e2e
        if not mark.exists():
            write(config, folder)
        for kind, name in NAMES.items():
            if (folder / f"{name}.jsonl").exists():
                _prepare(config, workdir, kind, [folder / f"{name}.jsonl"])
    _check_splits(config, folder)
    layout = Layout(
        tokenizer=given or _tokenizer(config, workdir, trained=mark.exists()),
        separator=config.data.separator,
        max_prompt=config.data.max_prompt,
        max_response=config.data.max_response,
    )
    _check_records(config, workdir, layout)
    if not mark.exists():
        files.write_json(mark, config.to_dict())
    return layout


def add_rankings(
    config: ml_collections.ConfigDict, workdir: epath.PathLike, layout: Layout, rankings: Iterable[Ranking]
) -> None:
    """Writes rankings that were collected in this run to WORKDIR/data/rankings.jsonl and prepares them."""
    path = epath.Path(workdir) / "data" / f"{NAMES[Ranking]}.jsonl"

    def add() -> None:
        records.write(path, rankings)
        _prepare(config, workdir, Ranking, [path])
        _check_splits(config, path.parent)
        _check_records(config, workdir, layout)

    processes.first(add)


def has_rankings(workdir: epath.PathLike) -> bool:
    """Whether WORKDIR has prepared rankings."""
    return (epath.Path(workdir) / "data" / NAMES[Ranking]).exists()  # after `run`, whole if it exists


def load(config: ml_collections.ConfigDict, workdir: epath.PathLike, kind: type[R], split: str) -> Sequence[R]:
    """The prepared records of a kind and split, without those that `run` found to be too long."""
    found = prepared.load(epath.Path(workdir) / "data", NAMES[kind], kind, split)
    if kind is Text or not config.data.drop_long:
        return found
    return pipeline.without(found, _checked(workdir)[NAMES[kind]]["left_out"].get(split, []))


def validation_text(config: ml_collections.ConfigDict, workdir: epath.PathLike, layout: Layout) -> list[LMBatch]:
    """The first `evaluate.text_windows` windows of the validation text, in batches."""
    found = load(config, workdir, Text, "validation")
    length = config.pretrain.length
    rows = pipeline.text_rows(found, layout.tokenizer, length)[: config.evaluate.text_windows]
    return list(pipeline.ordered_batches(rows, batch_size=min(len(rows), config.evaluate.batch_size)))


def validation_demonstrations(
    config: ml_collections.ConfigDict, workdir: epath.PathLike, layout: Layout
) -> list[LMBatch]:
    """The validation demonstrations, in batches."""
    found = load(config, workdir, Demonstration, "validation")
    rows = demonstrations.rows(found, layout)
    return list(pipeline.ordered_batches(rows, batch_size=min(len(rows), config.evaluate.batch_size)))


def validation_rankings(
    config: ml_collections.ConfigDict, workdir: epath.PathLike, layout: Layout
) -> list[RankingBatch]:
    """The validation rankings, in batches."""
    found = load(config, workdir, Ranking, "validation")
    rows = ranking_rows(tokenize_rankings(found, layout), layout.tokenizer.pad_id)
    return list(pipeline.ordered_batches(rows, batch_size=min(len(rows), config.reward.batch_size)))


def _prepare(config: ml_collections.ConfigDict, workdir: epath.PathLike, kind: type, files: Sequence) -> None:
    prepared.prepare(
        kind,
        files,
        epath.Path(workdir) / "data",
        name=NAMES[kind],
        validation=config.data.validation,
        test=config.data.test,
    )


def _claim(folder: epath.Path) -> None:
    """Refuses a folder with files that no run put there, such as records of the user, which would be overwritten."""
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


def _tokenizer(config: ml_collections.ConfigDict, workdir: epath.PathLike, trained: bool) -> Tokenizer:
    path = epath.Path(workdir) / "data" / "tokenizer.model"
    if trained:
        return SentencePieceTokenizer.load(path)
    documents = prepared.load(epath.Path(workdir) / "data", NAMES[Text], Text, "train")
    demonstrated = prepared.load(epath.Path(workdir) / "data", NAMES[Demonstration], Demonstration, "train")
    sample = [record.text for record in documents[: config.tokenizer.max_documents]]
    sample += [text for record in demonstrated for text in (record.prompt, record.response)]
    tokenizer = SentencePieceTokenizer.train(sample, config.tokenizer.vocab_size)
    tokenizer.save(path)
    return tokenizer


def _check_splits(config: ml_collections.ConfigDict, folder: epath.Path) -> None:
    """Refuses sets without a split that a stage is going to need."""
    for kind, needed in (HUMAN_SPLITS if "e2e" in config else SPLITS).items():
        name = NAMES[kind]
        if (folder / name).exists():
            found = prepared.splits(folder, name)
            for split in needed:
                if split not in found:
                    sizes = ", ".join(f"{other} ({size})" for other, size in found.items())
                    raise DataError(
                        f"{folder}/{name}: expected records in the splits {', '.join(needed)}, found only {sizes}"
                    )


def _check_records(config: ml_collections.ConfigDict, workdir: epath.PathLike, layout: Layout) -> None:
    """Tokenises every prompt and answer once, to refuse those that are too long or to note what to leave out.

    WORKDIR/data/checked.json remembers for each set what was checked, and the indices of
    the records to leave out, by split.
    """
    folder = epath.Path(workdir) / "data"
    for kind, name in NAMES.items():
        if kind is Text or not (folder / name).exists():
            continue
        what = {
            "records": prepared.fingerprint(folder, name),
            "tokenizer": layout.tokenizer.fingerprint,
            "separator": layout.separator,
            "lengths": [layout.max_prompt, layout.max_response],
            "drop_long": config.data.drop_long,
        } | ({"max_answers": config.comparisons.max_answers} if kind is Ranking else {})
        known = _checked(workdir)
        if known.get(name, {}).get("what") == what:
            continue
        left_out: dict[str, list[int]] = {}
        for split in prepared.splits(folder, name):
            found = prepared.load(folder, name, kind, split)
            if kind is Ranking:
                for record in found:
                    layouts.check_answers(record, config.comparisons.max_answers)
            if not config.data.drop_long:
                pipeline.check_lengths(found, layout)
            elif long := pipeline.too_long(found, layout):
                left_out[split] = long
                print(f"{name}, {split}: {len(long)} of {len(found)} records are too long and left out")
        files.write_json(folder / "checked.json", known | {name: {"what": what, "left_out": left_out}})


def _checked(workdir: epath.PathLike) -> dict[str, Any]:
    path = epath.Path(workdir) / "data" / "checked.json"
    return files.read_json(path) if path.exists() else {}


def _write_sandbox(config: ml_collections.ConfigDict, folder: epath.Path) -> None:
    section = config.sandbox
    training, _ = simulated_labelers(config)
    written = corpus.write_records(
        config.seed,
        texts=section.documents,
        demonstrations=section.demonstrations,
        reward_prompts=section.reward_prompts,
        ppo_prompts=section.prompts,
        users=section.users,
        validation=config.data.validation,
        test=config.data.test,
        labelers=training,
    )
    records.write(folder / "text.jsonl", written["text"])
    records.write(folder / "demonstrations.jsonl", written["demonstrations"])
    records.write(folder / REWARD_PROMPTS, written["reward_prompts"])
    records.write(folder / "prompts.jsonl", written["ppo_prompts"])


def simulated_labelers(config: ml_collections.ConfigDict) -> tuple[list[Labeler], list[Labeler]]:
    """The sandbox's training labelers and held-out labelers."""
    section = config.sandbox
    return (
        labelers.training_labelers(config.seed, section.labelers, section.noise, section.tie),
        labelers.heldout_labelers(config.seed, section.heldout_labelers, section.noise, section.tie),
    )


def _write_e2e(config: ml_collections.ConfigDict, folder: epath.Path) -> None:
    section = config.e2e
    if not section.directory:
        raise ConfigError("e2e.directory: expected the folder of all data sets, found none; see the README")
    root = epath.Path(section.directory)
    human = e2e.load(root / "e2e_human_rankings", section.aspects, config.data.validation, config.data.test)
    load_text = functools.partial(texts.load, root, validation=config.data.validation)
    documents = [record for name in section.texts for record in load_text(name)]
    records.write(folder / "text.jsonl", documents)
    records.write(folder / "demonstrations.jsonl", human.demonstrations)
    records.write(folder / "rankings.jsonl", human.rankings)
    records.write(folder / "prompts.jsonl", human.prompts)
