"""Exports the weights of a stage as a folder in Hugging Face's format."""

from __future__ import annotations

from etils import epath

from instructjax.models import huggingface, pretrained
from instructjax.stages.run import Run
from instructjax.text.export import pretrained_files


def export(run: Run, stage: str, output: epath.PathLike) -> str:
    """Writes the policy or the reward model of a finished stage, with its tokenizer.

    Args:
      run: its folder is only read.
      stage: "reward" gives a sequence classifier with one label, any other a causal language model.
      output: the folder to write; it must not exist, or be empty.

    Returns:
      What was written, for the user.

    Raises:
      CheckpointError: the stage is not finished, no family has its model, or there are files in the folder.
    """
    is_reward_model = stage == "reward"
    trained, layout = run.open_reward_model() if is_reward_model else run.open_policy(stage)
    shape, tokenizer = trained.model.config, layout.tokenizer
    described = huggingface.describe(
        shape,
        eos_id=tokenizer.eos_ids,
        pad_id=tokenizer.pad_id,
        bos_id=tokenizer.bos[0] if tokenizer.bos else None,
        is_reward_model=is_reward_model,
    )
    if is_reward_model:
        described |= huggingface.score_offset(trained.params, shape)
    tensors = huggingface.tensors_of(trained.params, shape)
    files = pretrained_files(tokenizer, shape.max_length)
    pretrained.write(output, described, tensors, files)
    offset = described.get(huggingface.OFFSET)
    note = "" if offset is None else f"; its scores are lower by {huggingface.OFFSET} in config.json, {offset:.4g}"
    return f"{described['architectures'][0]}, {len(tensors)} tensors, {', '.join(files)}{note}"
