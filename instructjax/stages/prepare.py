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

import ml_collections
from etils import epath

from instructjax import records
from instructjax.batch import LMBatch, RankingBatch
from instructjax.data import builders, e2e, pipeline, texts
from instructjax.data.examples import Layout
from instructjax.data.tokenizer import Tokenizer
from instructjax.errors import ConfigError
from instructjax.records import Demonstration, Prompt, R, Ranking, Record, Text
from instructjax.sandbox import corpus, labelers
from instructjax.sandbox.labelers import Labeler
from instructjax.stages import workspace
from instructjax.training import loop

REWARD_PROMPTS = "reward_prompts.jsonl"  # of the sandbox, to collect comparisons with

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
      ConfigError: the recipe does not name one source, or is not the one that WORKDIR/data was made with.
      RecordError, DataError: a file is missing or a line of it is wrong, or a prompt or
        response is longer than the recipe allows.
      TokenizerError: a tokenizer cannot be read or trained.
    """
    declared = [source for source in workspace.SOURCES if source in config]
    if len(declared) != 1:
        raise ConfigError(
            f"expected one of the sections {', '.join(workspace.SOURCES)}, found {' and '.join(declared) or 'none'}"
        )
    folder = epath.Path(workdir) / "data"
    mark = folder / "config.json"  # written last: without it, records and tokenizer are made anew
    if mark.exists():
        workspace.check_config(config, mark, ("seed", "data", "tokenizer", *workspace.SOURCES))
    if declared == ["files"]:
        for kind, name in NAMES.items():
            if paths := config.files[name]:
                _prepare(config, workdir, kind, paths.split(","))
            elif kind is not Ranking:
                raise ConfigError(f"files.{name}: expected a file of {kind.__name__} records, found none")
    else:
        write = _write_sandbox if declared == ["sandbox"] else _write_e2e
        if not mark.exists():
            write(config, folder)
        for kind, name in NAMES.items():
            if (folder / f"{name}.jsonl").exists():
                _prepare(config, workdir, kind, [folder / f"{name}.jsonl"])
    layout = Layout(
        tokenizer=_tokenizer(config, workdir, trained=mark.exists()),
        separator=config.data.separator,
        max_prompt=config.data.max_prompt,
        max_response=config.data.max_response,
    )
    _check_lengths(config, workdir, layout)
    if not mark.exists():
        loop.write_json(mark, config.to_dict())
    return layout


def add_rankings(config: ml_collections.ConfigDict, workdir: epath.PathLike, rankings: Iterable[Ranking]) -> None:
    """Writes rankings that were collected in this run to WORKDIR/data/rankings.jsonl and prepares them."""
    path = epath.Path(workdir) / "data" / f"{NAMES[Ranking]}.jsonl"
    records.write(path, rankings)
    _prepare(config, workdir, Ranking, [path])


def has_rankings(workdir: epath.PathLike) -> bool:
    """Whether WORKDIR has prepared rankings."""
    return (epath.Path(workdir) / "data" / NAMES[Ranking]).exists()  # after `run`, whole if it exists


def load(
    config: ml_collections.ConfigDict, workdir: epath.PathLike, layout: Layout, kind: type[R], split: str
) -> Sequence[R]:
    """The prepared records of a kind and split, without those too long for the layout."""
    found = builders.load(epath.Path(workdir) / "data", NAMES[kind], kind, split)
    return pipeline.drop_long(found, layout)[0] if config.data.drop_long and kind is not Text else found


def validation_text(config: ml_collections.ConfigDict, workdir: epath.PathLike, layout: Layout) -> list[LMBatch]:
    """The first `evaluate.text_windows` windows of the validation text, in batches."""
    found = load(config, workdir, layout, Text, "validation")
    length = config.pretrain.length
    rows = pipeline.text_rows(found, layout.tokenizer, length)[: config.evaluate.text_windows]
    return list(pipeline.ordered_batches(rows, batch_size=min(len(rows), 64)))


def validation_demonstrations(
    config: ml_collections.ConfigDict, workdir: epath.PathLike, layout: Layout
) -> list[LMBatch]:
    """The validation demonstrations, in batches."""
    found = load(config, workdir, layout, Demonstration, "validation")
    rows = pipeline.demonstration_rows(found, layout)
    return list(pipeline.ordered_batches(rows, batch_size=min(len(rows), 64)))


def validation_rankings(
    config: ml_collections.ConfigDict, workdir: epath.PathLike, layout: Layout
) -> list[RankingBatch]:
    """The validation rankings, in batches."""
    found = load(config, workdir, layout, Ranking, "validation")
    rows = pipeline.ranking_rows(found, layout, config.comparisons.max_answers)
    return list(pipeline.ordered_batches(rows, batch_size=min(len(rows), 64)))


def _prepare(config: ml_collections.ConfigDict, workdir: epath.PathLike, kind: type, files: Sequence) -> None:
    builders.prepare(
        kind,
        files,
        epath.Path(workdir) / "data",
        name=NAMES[kind],
        validation=config.data.validation,
        test=config.data.test,
    )


def _tokenizer(config: ml_collections.ConfigDict, workdir: epath.PathLike, trained: bool) -> Tokenizer:
    path = epath.Path(workdir) / "data" / "tokenizer.model"
    if config.tokenizer.path:
        return Tokenizer.load(config.tokenizer.path)
    if trained:
        return Tokenizer.load(path)
    documents = builders.load(epath.Path(workdir) / "data", NAMES[Text], Text, "train")
    demonstrations = builders.load(epath.Path(workdir) / "data", NAMES[Demonstration], Demonstration, "train")
    sample = [record.text for record in documents[: config.tokenizer.max_documents]]
    sample += [text for record in demonstrations for text in (record.prompt, record.response)]
    tokenizer = Tokenizer.train(sample, config.tokenizer.vocab_size)
    tokenizer.save(path)
    return tokenizer


def _check_lengths(config: ml_collections.ConfigDict, workdir: epath.PathLike, layout: Layout) -> None:
    """Refuses records that are too long, unless they are to be dropped."""
    if config.data.drop_long:
        return
    for kind, name in NAMES.items():
        if kind is not Text and (epath.Path(workdir) / "data" / name).exists():
            for split in builders.splits(epath.Path(workdir) / "data", name):
                pipeline.check_lengths(load(config, workdir, layout, kind, split), layout)


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
