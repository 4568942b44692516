"""Exports a trained policy or reward model to a folder that Hugging Face's AutoModel classes load.

python experiments/export_weights.py --workdir=runs/sandbox --stage=ppo_ptx --output=my-policy
python experiments/export_weights.py --workdir=runs/sandbox --stage=reward --output=my-reward-model

A policy is for AutoModelForCausalLM. Its input is the prompt and the separator (`data.separator` of the recipe), or the
prompt in the chat template. The reward model is for AutoModelForSequenceClassification, with one label. Its input is
the same, then the response and EOS, and its logit is the score. The folder includes the tokenizer, for AutoTokenizer.
"""

import command_line
from absl import flags

from instructjax import files
from instructjax.stages import exported
from instructjax.stages.run import Run

_STAGE = flags.DEFINE_string(
    "stage", "ppo_ptx", "The stage whose weights are exported: a stage of the paper, or a guest such as dpo."
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "The folder to write. It must not exist, or must be empty.", required=True
)


def main(run: Run) -> None:
    """Reads the stage's weights and writes the folder."""
    output = files.parse(_OUTPUT.value, "--output")
    print(f"{output}: {exported.export(run, _STAGE.value, output)}")


if __name__ == "__main__":
    command_line.read(main)
