"""Writes a trained policy or the reward model as a folder that Hugging Face's AutoModel classes load.

python experiments/export_weights.py --workdir=runs/sandbox --stage=ppo_ptx --output=my-policy
python experiments/export_weights.py --workdir=runs/sandbox --stage=reward --output=my-reward-model

A policy is for AutoModelForCausalLM, and continues "prompt, separator"; the reward model is for
AutoModelForSequenceClassification, with one label, whose logit is the score of "prompt, separator, response,
EOS". The separator is the recipe's `data.separator`. The tokenizer, for AutoTokenizer, goes along.
"""

import command_line
from absl import flags

from instructjax.stages import exported

_STAGE = flags.DEFINE_string("stage", "ppo_ptx", "Whose weights: a stage of the paper, or a guest, such as dpo.")
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write; it must not exist, or be empty.", required=True)


def main(run):
    """Reads the stage's weights and writes the folder."""
    print(f"{_OUTPUT.value}: {exported.export(run, _STAGE.value, _OUTPUT.value)}")


if __name__ == "__main__":
    command_line.read(main)
