"""Exports a trained policy or reward model: a folder for Hugging Face's AutoModel classes, or a file for llama.cpp.

python experiments/export_weights.py --workdir=runs/sandbox --stage=ppo_ptx --output=my-policy
python experiments/export_weights.py --workdir=runs/sandbox --stage=reward --output=my-reward-model
python experiments/export_weights.py --workdir=runs/sandbox --stage=ppo_ptx --output=my-policy.gguf

A policy is for AutoModelForCausalLM. Its input is the prompt and the separator (`data.separator` of the recipe), or the
prompt in the chat template. The reward model is for AutoModelForSequenceClassification, with one label. Its input is
the same, then the response and EOS, and its logit is the score. The folder includes the tokenizer, for AutoTokenizer.
A GGUF file contains the weights, tokenizer and chat template of a policy; see docs/serving.md.
"""

import command_line
from absl import flags
from etils import epath

from instructjax import files
from instructjax.errors import InputError
from instructjax.models import gguf, pretrained
from instructjax.stages import exported
from instructjax.stages.run import Run

_STAGE = flags.DEFINE_string(
    "stage", "ppo_ptx", "The stage whose weights are exported: a stage of the paper, or a guest such as dpo."
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "The folder to write, which must be empty or not exist, or a new file FILE.gguf.", required=True
)
_DTYPE = flags.DEFINE_enum("dtype", None, list(gguf.DTYPES), "The type of the matrices in FILE.gguf; f32 by default.")


def main(run: Run) -> None:
    """Reads the stage's weights and writes the folder or the file."""
    if epath.Path(_OUTPUT.value).suffix == pretrained.GGUF:
        output = files.parse(_OUTPUT.value, "--output", schemes=())
        done = exported.export_gguf(run, _STAGE.value, output, _DTYPE.value or "f32")
    elif _DTYPE.value:
        raise InputError(f"--dtype: expected an --output that ends in {pretrained.GGUF}, found {_OUTPUT.value}")
    else:
        output = files.parse(_OUTPUT.value, "--output")
        done = exported.export(run, _STAGE.value, output)
    print(f"{output}: {done}")


if __name__ == "__main__":
    command_line.read(main)
