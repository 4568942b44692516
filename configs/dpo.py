"""DPO in the sandbox: a policy from the same rankings, without a reward model and without sampling.

Reproduces: nothing of InstructGPT; it shows how another algorithm moves into these rooms, see
            docs/own_algorithm.md.
Cost:       not measured at this size; run by the tests on tiny files only.
Expected:   not measured; the values below are first guesses.
Command:    python experiments/dpo.py --config=configs/dpo.py --workdir=runs/sandbox

            In the folder of a sandbox run, whose GPT, SFT and rankings it takes. Elsewhere
            run pretrain.py and sft.py with this recipe first.

Variants:   smoke: the sandbox's, too small to show anything.

Equations are those of Rafailov et al. 2023 (arXiv 2305.18290).
"""

from ml_collections import ConfigDict

from configs import sandbox


def get_config(variant: str = "") -> ConfigDict:
    """The sandbox with a section `dpo`, whose policy is judged beside the others."""
    config = sandbox.get_config(variant).unlock()

    dpo = config.dpo = ConfigDict()
    dpo.init_from = ""  # a checkpoint folder, start and reference; "" is WORKDIR/sft, whose answers were ranked
    dpo.beta = 0.1  # section 6; the weight of the KL divergence from the reference
    dpo.epochs = 1
    dpo.batch_size = 32  # prompts, with all pairs of their answers; the paper has 64 pairs
    dpo.learning_rate = 1e-4  # a tenth of SFT's here; the paper has 1e-6 for models of billions
    dpo.final_fraction = 0.1  # cosine to 10 %, as the other stages have
    dpo.weight_decay = 0.0
    dpo.microbatches = 1

    config.evaluate.guests = ("dpo",)
    return config.lock()
