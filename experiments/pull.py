"""Downloads a model from a model hub into a folder that recipes and import_weights.py read.

python experiments/pull.py --repo=OWNER/NAME --output=FOLDER
python experiments/reproduce.py --config.pretrain.import_from=FOLDER --config.tokenizer.path=FOLDER ...

The folder gets weights as safetensors or GGUF files, config.json, tokenizer, model card and license; pickle files are
left out. An interrupted download resumes. Files of an earlier download that another revision does not have are removed,
and other files stay. A private repository needs a token in HF_TOKEN. Needs the extra hub.
"""

import command_line
from absl import flags

from instructjax import files, hub
from instructjax.stages.run import Run

_REPO = flags.DEFINE_string("repo", None, "The repository, OWNER/NAME.", required=True)
_OUTPUT = flags.DEFINE_string(
    "output", None, "The folder to write: new, empty, or with the same repository.", required=True
)
_REVISION = flags.DEFINE_string("revision", None, "A branch, tag or commit; by default the newest.")


def main(_: Run) -> None:
    """Downloads the files, and prints their names. The recipe is not used."""
    output = files.parse(_OUTPUT.value, "--output", schemes=())
    print(f"{output}: {', '.join(hub.download(_REPO.value, output, _REVISION.value))}")


if __name__ == "__main__":
    command_line.read(main)
