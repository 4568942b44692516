"""Imports pretrained weights in Hugging Face's format instead of training a stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from instructjax import files
from instructjax.errors import CheckpointError, TokenizerError
from instructjax.models import huggingface, pretrained, sizes
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.recipe import check
from instructjax.runs import alarms, checkpoint, metrics_file, processes
from instructjax.stages.run import policy_config
from instructjax.stages.stage import Stage
from instructjax.text import tokenizer_files
from instructjax.text.tokenizer import Tokenizer
from instructjax.training import parallel
from instructjax.training.state import Params

Model = TypeVar("Model", LanguageModel, ScalarModel)


def run(
    stage: Stage,
    kind: type[Model],
    measure: Callable[[Model, Params], Mapping[str, float]],
) -> None:
    """Leaves WORKDIR/STAGE as if it had ended with the weights in the folder `STAGE.import_from`.

    The weights are read, and known to fit, before the records are prepared.

    Args:
      stage: pretrain or reward.
      kind: of the model, LanguageModel or ScalarModel.
      measure: `measure(model, params)` gives its metrics on held-out data.

    Raises:
      CheckpointError: there is no such model in the folder, or not the recipe's.
      TokenizerError: `tokenizer.path` is not the tokenizer of these weights.
    """
    run, config = stage.run, stage.config
    source = str(files.parse(stage.section.import_from, f"{stage.name}.import_from", files.MODEL_SCHEMES))
    check.recipe(config)
    tokenizer = tokenizer_files.load(config.tokenizer.path)
    network = policy_config(config, tokenizer.vocab_size)
    model = kind(sizes.resized(network, config.reward.size) if kind is ScalarModel else network)
    finished = run.is_finished(stage.name)
    params = None if finished else processes.each(lambda: read(source, model, tokenizer))
    _ = run.layout  # prepares the records
    if finished:
        return
    stage.begin()
    values = measure(model, params)
    alarms.check_metrics(config)(f"{stage.name}, imported from {source}", dict(values))
    print(
        f"{stage.name}: imported from {source}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    )

    def note() -> None:
        with metrics_file.MetricsWriter(stage.directory) as writer:
            writer.write(0, values)

    processes.first(note)
    with checkpoint.Checkpoints(stage.directory / "checkpoints") as checkpoints:
        checkpoints.save(0, {"params": params}, meta=stage.meta(model.config, tokenizer))
    summary = {"steps": 0, "imported": str(source)}
    processes.first(lambda: files.write_json(stage.directory / "summary.json", summary))


def read(source: str, model: LanguageModel | ScalarModel, tokenizer: Tokenizer) -> Params:
    """Returns the parameters of the model in a folder, once they are known to fit, on the mesh of the context.

    They are placed like those that `trained` restores from a checkpoint.

    Args:
      source: the folder.
      model: the recipe's, a LanguageModel or a ScalarModel.
      tokenizer: that of the weights.

    Raises:
      CheckpointError, TokenizerError: see `run`.
    """
    described = pretrained.read_config(source)
    found = huggingface.config_of(described, f"{source}/config.json")
    huggingface.check_fit(found, model.config, source)
    _check_end(described, tokenizer, source)
    tensors = pretrained.read_tensors(source)
    params = huggingface.params_of(tensors, model.config, source, parallel.abstract)
    params = huggingface.with_score_offset(params, described, f"{source}/config.json")
    if ("head" in params) != isinstance(model, ScalarModel):
        kinds = ("a reward model, with score.weight", "a language model, without score.weight")
        expected, other = kinds if isinstance(model, ScalarModel) else kinds[::-1]
        raise CheckpointError(f"{source}: expected {expected}, found {other}")
    return params


def _check_end(described: Mapping[str, Any], tokenizer: Tokenizer, source: str) -> None:
    """Raises TokenizerError if config.json names no EOS of the tokenizer; it may name several, or none."""
    value = described.get("eos_token_id")
    numbers = [end for end in (value if isinstance(value, list) else [value]) if isinstance(end, int)]
    if not numbers or set(numbers) & set(tokenizer.eos_ids):
        return
    ours = ", ".join(map(str, tokenizer.eos_ids))
    raise TokenizerError(
        f"tokenizer.path: expected the tokenizer of {source}, in which eos_token_id is {value!r:.60}, "
        f"found one in which it is {ours}"
    )
