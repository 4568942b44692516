"""Shares a trained policy or reward model on a model hub, with a model card that is written from the run.

python experiments/push.py --workdir=runs/sandbox --stage=ppo_ptx --output=my-policy
python experiments/push.py --workdir=runs/sandbox --stage=ppo_ptx --repo=OWNER/NAME

Use the flags with which the run was made: the card repeats them. --output writes the folder that would be uploaded,
and --repo uploads it; README.md is the card. Uploading needs the extra hub and a token, in HF_TOKEN or saved by
`hf auth login`. See docs/serving.md.
"""

import tempfile

import command_line
from absl import flags
from etils import epath

from instructjax import files, hub
from instructjax.errors import InputError
from instructjax.reporting import model_card
from instructjax.stages import shared
from instructjax.stages.run import Run

_STAGE = flags.DEFINE_string("stage", "ppo_ptx", "The stage whose policy, or reward model, is shared.")
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write, which must be empty or not exist.")
_REPO = flags.DEFINE_string(
    "repo", None, "The repository to upload to, OWNER/NAME; it is created if it does not exist."
)
_PUBLIC = flags.DEFINE_boolean("public", False, "Let everybody read the repository, if it is new.")
_LICENSE = flags.DEFINE_string(
    "license", None, 'Such as "apache-2.0"; by default that of the base model, if there is one.'
)


def main(run: Run) -> None:
    """Writes the folder, uploads it, or both."""
    if not (_OUTPUT.value or _REPO.value):
        raise InputError("--repo: expected a repository, OWNER/NAME, or a folder in --output, found neither")
    output = files.parse(_OUTPUT.value, "--output", schemes=()) if _OUTPUT.value else None
    name = _REPO.value or output.name
    card = shared.describe(run, _STAGE.value, name, _LICENSE.value, command_line.given_keys())
    if _REPO.value:
        hub.create(_REPO.value, is_public=_PUBLIC.value)
    with tempfile.TemporaryDirectory() as temporary:
        folder = output or epath.Path(temporary) / "model"
        print(f"{output or name}: {shared.write(run, card, folder)}, README.md")
        if _REPO.value:
            message = f"Add {_STAGE.value} of {model_card.shorten(run.recipe)}, seed {run.config.seed}"
            print(hub.upload(folder, _REPO.value, message))


if __name__ == "__main__":
    command_line.read(main)
