"""Imports pretrained weights from a folder with config.json, safetensors files and a tokenizer, or from a GGUF file.

python experiments/import_weights.py --config=configs/gpt2.py:124m --source=FOLDER --workdir=runs/gpt2 \\
    --config.tokenizer.path=FOLDER --config.files.text=... --config.files.demonstrations=... \\
    --config.files.rankings=... --config.files.prompts=...

A language model becomes WORKDIR/pretrain. With --stage=reward, a sequence classifier with one label becomes
WORKDIR/reward, and its accuracy is measured on rankings. If the labelers are simulated, the rankings are collected
first, which needs WORKDIR/sft.

Run the other stages with the same flags and --config.pretrain.import_from=FOLDER, or
--config.reward.import_from=FOLDER. `reproduce.py` with these flags runs all of them.
"""

import command_line
from absl import flags

from instructjax.errors import InputError
from instructjax.stages import comparisons, pretrain, reward
from instructjax.stages.run import Run

STAGES = {"pretrain": (pretrain.run,), "reward": (comparisons.collect, reward.run)}
_SOURCE = flags.DEFINE_string(
    "source", None, "The folder with config.json, safetensors files and a tokenizer, or a GGUF file.", required=True
)
_STAGE = flags.DEFINE_enum("stage", "pretrain", list(STAGES), "The stage that gets the weights.")


def main(run: Run) -> None:
    """Runs a stage that imports weights instead of training them."""
    if not _SOURCE.value:
        raise InputError("--source: expected the folder of a model, found none")
    config = run.config
    with config.unlocked():
        config[_STAGE.value].import_from = _SOURCE.value
        config.tokenizer.path = config.tokenizer.path or _SOURCE.value
    for step in STAGES[_STAGE.value]:
        step(run)


if __name__ == "__main__":
    command_line.run(main)
