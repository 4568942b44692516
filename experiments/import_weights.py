"""Takes weights that others trained from a local folder: config.json, safetensors files and a tokenizer.

python experiments/import_weights.py --config=configs/gpt2.py:124m --source=FOLDER --workdir=runs/gpt2 \\
    --config.tokenizer.path=FOLDER --config.files.text=... --config.files.demonstrations=... \\
    --config.files.rankings=... --config.files.prompts=...

A GPT-2 becomes WORKDIR/pretrain; with --stage=reward, a sequence classifier with one label becomes
WORKDIR/reward. Rankings measure it: where labelers are simulated, they are collected first, and need WORKDIR/sft. The
other stages then start from there, with the same flags and --config.pretrain.import_from=FOLDER (or
--config.reward.import_from), as `reproduce.py` does for all of them.
"""

import command_line
from absl import flags

from instructjax.errors import InputError
from instructjax.stages import comparisons, pretrain, reward

STAGES = {"pretrain": (pretrain.run,), "reward": (comparisons.collect, reward.run)}
_SOURCE = flags.DEFINE_string("source", None, "The folder: config.json, safetensors, tokenizer.", required=True)
_STAGE = flags.DEFINE_enum("stage", "pretrain", list(STAGES), "Whose place the weights take.")


def main(run):
    """A stage with weights instead of training."""
    if not _SOURCE.value:
        raise InputError("--source: expected the folder of a model, found none")
    config = run.config
    with config.unlocked():
        config[_STAGE.value].import_from = _SOURCE.value
        config.tokenizer.path = config.tokenizer.path or _SOURCE.value
    for part in STAGES[_STAGE.value]:
        part(run)


if __name__ == "__main__":
    command_line.run(main)
