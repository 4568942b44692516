"""Exports the weights of a stage: a folder in Hugging Face's format, or a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etils import epath

from instructjax.data.layouts import Layout
from instructjax.errors import CheckpointError
from instructjax.models import gguf, huggingface, pretrained
from instructjax.stages.run import Run
from instructjax.stages.trained import Trained
from instructjax.text import gguf as gguf_tokenizers
from instructjax.text.export import pretrained_files


def export(run: Run, stage: str, output: epath.PathLike, others: Mapping[str, bytes] | None = None) -> str:
    """Writes the policy or the reward model of a finished stage, with its tokenizer, as a folder.

    Args:
      run: its folder is only read.
      stage: "reward" gives a sequence classifier with one label, any other a causal language model.
      output: the folder to write; it must not exist, or be empty.
      others: files that the folder gets too, by name, such as a model card.

    Returns:
      What was written, for the user.

    Raises:
      CheckpointError: the stage is not finished, no family has its model, or there are files in the folder.
    """
    is_reward_model = stage == "reward"
    trained, layout = run.open_reward_model() if is_reward_model else run.open_policy(stage)
    described = _describe(trained, is_reward_model)
    if is_reward_model:
        described |= huggingface.score_offset(trained.params, trained.model.config)
    tensors = huggingface.tensors_of(trained.params, trained.model.config)
    files = pretrained_files(layout.tokenizer, trained.model.config.max_length)
    pretrained.write(output, described, tensors, files | dict(others or {}))
    offset = described.get(huggingface.OFFSET)
    note = "" if offset is None else f"; its scores are lower by {huggingface.OFFSET} in config.json, {offset:.4g}"
    return f"{described['architectures'][0]}, {len(tensors)} tensors, {', '.join(files)}{note}"


def export_gguf(run: Run, stage: str, output: epath.PathLike, dtype: str = "f32") -> str:
    """Writes the policy of a stage, with its tokenizer and chat template, as a GGUF file for llama.cpp.

    Args:
      run: its folder is only read.
      stage: any but "reward".
      output: the file to write, which must not exist.
      dtype: of the matrices; see `gguf.DTYPES`.

    Returns:
      What was written, for the user.

    Raises:
      CheckpointError, TokenizerError: the stage has no checkpoint, or GGUF does not support its model or tokenizer.
    """
    if stage == "reward":
        raise CheckpointError("--stage: expected a policy for GGUF, found reward; export it to a folder")
    trained, layout = run.open_policy(stage)
    write_gguf(trained, layout, output, dtype)
    return f"{trained.model.config.num_layers} layers, {dtype}, {epath.Path(output).stat().length:,} bytes"


def write_gguf(trained: Trained, layout: Layout, output: epath.PathLike, dtype: str = "f32") -> None:
    """Writes a policy as a GGUF file; see `export_gguf`."""
    config, described = trained.model.config, _describe(trained)
    tensors = huggingface.tensors_of(trained.params, config)
    names = ["output.weight"] if "lm_head.weight" in tensors else []
    kept = gguf.config_of(gguf.metadata_of(described), names) | {"vocab_size": config.vocab_size}
    huggingface.check_fit(huggingface.config_of(kept), config, f"{output}")
    tokenizer = gguf_tokenizers.metadata_of(layout.tokenizer, layout.eos_ids, layout.template.source)
    gguf.write(output, described, tensors, tokenizer, dtype)


def _describe(trained: Trained, is_reward_model: bool = False) -> dict[str, Any]:
    """Returns the config.json of a model."""
    tokenizer = trained.tokenizer
    return huggingface.describe(
        trained.model.config,
        eos_id=tokenizer.eos_ids,
        pad_id=tokenizer.pad_id,
        bos_id=tokenizer.bos[0] if tokenizer.bos else None,
        is_reward_model=is_reward_model,
    )
