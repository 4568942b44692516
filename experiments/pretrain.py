"""Trains GPT on pretraining text: WORKDIR/pretrain."""

import command_line

from instructjax.stages import pretrain

if __name__ == "__main__":
    command_line.run(pretrain.run)
