"""A stage that takes the weights that others trained, in the format of Hugging Face, instead of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
from etils import epath

from instructjax import files
from instructjax.data.layouts import Layout
from instructjax.errors import CheckpointError, TokenizerError
from instructjax.models import huggingface, pretrained
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.recipe import check
from instructjax.runs import checkpoint, metrics_file, processes
from instructjax.stages import prepare, workspace
from instructjax.text import tokenizer_files
from instructjax.text.tokenizer import Tokenizer

Model = LanguageModel | ScalarModel


def run(
    stage: str,
    config: ml_collections.ConfigDict,
    workdir: epath.PathLike,
    kind: type[Model],
    measure: Callable[[Model, Any, Layout], Mapping[str, float]],
) -> None:
    """Leaves WORKDIR/STAGE as if it had ended with the weights in the folder `STAGE.import_from`.

    The weights are read, and known to fit, before the records are prepared.

    Args:
      stage: "pretrain" or "reward".
      config: a whole recipe.
      workdir: the run's folder.
      kind: of the model, LanguageModel or ScalarModel.
      measure: `measure(model, params, layout)` gives its metrics on held-out data.

    Raises:
      CheckpointError: there is no such model in the folder, or not the recipe's.
      TokenizerError: `tokenizer.path` is not the tokenizer of these weights.
    """
    check.recipe(config)
    tokenizer = tokenizer_files.load(config.tokenizer.path)
    shape = (workspace.reward_config if stage == "reward" else workspace.model_config)(config, tokenizer)
    model, source = kind(shape), config[stage].import_from
    finished = workspace.is_finished(workdir, stage)
    params = None if finished else read(source, model, tokenizer)
    layout = prepare.run(config, workdir)
    directory = workspace.begin(config, workdir, stage)
    if finished:
        return
    values = measure(model, params, layout)
    workspace.judge(config)(f"{stage}, imported from {source}", values)
    print(f"{stage}: imported from {source}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def note() -> None:
        with metrics_file.MetricsWriter(directory) as writer:
            writer.write(0, values)

    processes.first(note)
    with checkpoint.Checkpoints(directory / "checkpoints") as checkpoints:
        checkpoints.save(0, {"params": params}, meta=workspace.describe(config, model.config, tokenizer))
    processes.first(lambda: files.write_json(directory / "summary.json", {"steps": 0, "imported": str(source)}))


def read(source: str, model: Model, tokenizer: Tokenizer) -> Any:
    """The parameters of the model in a folder, once they are known to fit.

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
    ends = described.get("eos_token_id", tokenizer.eos_id)
    if tokenizer.eos_id not in (ends if isinstance(ends, list) else [ends]):
        raise TokenizerError(
            f"tokenizer.path: expected the tokenizer of {source}, in which eos_token_id is {ends}, "
            f"found one in which it is {tokenizer.eos_id}"
        )
    params = huggingface.params_of(pretrained.read_tensors(source), model.config, source)
    if ("head" in params) != isinstance(model, ScalarModel):
        kinds = ("a reward model, with score.weight", "a language model, without score.weight")
        expected, other = kinds if isinstance(model, ScalarModel) else kinds[::-1]
        raise CheckpointError(f"{source}: expected {expected}, found {other}")
    return params
