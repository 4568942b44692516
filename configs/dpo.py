"""DPO in the sandbox: trains a policy on the same rankings, without a reward model and without sampling.

Reproduces: nothing in InstructGPT; it shows how to add another algorithm, see
            docs/own_algorithm.md.
Cost:       not measured at this size; the tests run it on tiny files only.
Expected:   not measured; the values below are first guesses.
Command:    python experiments/dpo.py --config=configs/dpo.py --workdir=runs/sandbox

            Run it in the folder of a sandbox run, whose GPT, SFT and rankings it uses. In
            another folder, run pretrain.py and sft.py with this recipe first.

Variants:   smoke: the sandbox's, too small to show results.

Equations are those of Rafailov et al. 2023 (arXiv 2305.18290).
"""

from ml_collections import ConfigDict

from configs import sandbox
from instructjax.recipe import declared, stage_keys


def get_config(variant: str = "") -> ConfigDict:
    """Returns the sandbox with a section `dpo`. Its policy is judged with the others."""
    config = sandbox.get_config(variant).unlock()

    config.dpo = declared.defaults(stage_keys.DPO)
    config.evaluate.guests = ("dpo",)
    return config.lock()
