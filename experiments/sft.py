"""Fine-tunes GPT on demonstrations. The result is the SFT baseline: WORKDIR/sft.

Needs WORKDIR/pretrain.
"""

import command_line

from instructjax.stages import sft

if __name__ == "__main__":
    command_line.run(sft.run)
