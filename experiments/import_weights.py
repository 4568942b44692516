"""Takes a GPT-2 that others trained for WORKDIR/pretrain: config.json and safetensors from a local folder.

python experiments/import_weights.py --config=configs/gpt2.py:124m --source=FOLDER --workdir=runs/gpt2 \\
    --config.files.text=... --config.files.demonstrations=... --config.files.rankings=... --config.files.prompts=...

SFT, reward model and PPO then start from it, with the folder's tokenizer. The same happens in
`reproduce.py` with --config.pretrain.import_from=FOLDER --config.tokenizer.path=FOLDER.
"""

import command_line
from absl import flags

from instructjax.stages import pretrain

_SOURCE = flags.DEFINE_string("source", None, "The folder: config.json, safetensors, tokenizer.", required=True)


def main(config, workdir):
    """The stage pretrain, with weights instead of training."""
    with config.unlocked():
        config.pretrain.import_from = config.tokenizer.path = _SOURCE.value
    pretrain.run(config, workdir)
    print(f"{workdir}/pretrain: imported from {_SOURCE.value}")


if __name__ == "__main__":
    command_line.run(main)
