"""Writes a trained policy or the reward model as a folder that Hugging Face's AutoModel classes load.

python experiments/export_weights.py --workdir=runs/sandbox --stage=ppo_ptx --output=my-policy
python experiments/export_weights.py --workdir=runs/sandbox --stage=reward --output=my-reward-model

A policy is for AutoModelForCausalLM; the reward model is for AutoModelForSequenceClassification,
with one label, whose logit is the score of "prompt, separator, response, EOS". The tokenizer goes along.
"""

import command_line
from absl import flags
from etils import epath

from instructjax.data import vocabulary
from instructjax.models import huggingface, pretrained
from instructjax.stages import workspace

_STAGE = flags.DEFINE_enum("stage", "ppo_ptx", workspace.STAGES, "Whose weights.")
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write; it must not exist, or be empty.", required=True)


def main(config, workdir):
    """Reads the stage's weights and writes the folder."""
    del config  # the checkpoint has its own
    is_reward_model = _STAGE.value == "reward"
    trained, layout = (workspace.open_reward_model if is_reward_model else workspace.open_policy)(
        workdir, *([] if is_reward_model else [_STAGE.value])
    )
    shape, tokenizer = trained.model.config, layout.tokenizer
    described = huggingface.describe(
        shape, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id, is_reward_model=is_reward_model
    )
    tensors = huggingface.tensors_of(trained.params, shape)
    files = vocabulary.pretrained_files(tokenizer, shape.max_length)
    pretrained.write(epath.Path(_OUTPUT.value), described, tensors, files)
    print(f"{_OUTPUT.value}: {described['architectures'][0]}, {len(tensors)} tensors, {', '.join(files)}")


if __name__ == "__main__":
    command_line.read(main)
