"""InstructGPT from imported weights of GPT-2: SFT, reward model, PPO and PPO-ptx.

Reproduces: the paper's recipe (section 3.5, appendix C) on GPT-2 and its byte-pair vocabulary, instead
            of pretraining.
Cost:       not measured for the four sizes: they have only been built, and their weights are not included.
            tiny: minutes on two CPU cores; not measured on an otherwise idle machine.
Expected:   tiny shows only that a run from imported weights ends with a report: its weights are random.
Command:    python experiments/reproduce.py --config=configs/gpt2.py:124m --workdir=runs/gpt2 \\
                --config.pretrain.import_from=FOLDER --config.tokenizer.path=FOLDER \\
                --config.files.text=... --config.files.demonstrations=... \\
                --config.files.rankings=... --config.files.prompts=...

            FOLDER holds config.json, model.safetensors and tokenizer.json (or vocab.json and merges.txt).

Variants:   124m, 355m, 774m, 1p5b: the sizes of GPT-2. tiny: a GPT-2 of two layers on human records
            (--config.e2e.directory=DATA as in configs/e2e.py).

Values that are not set here are the paper's; docs/recipe.md explains them.
"""

from ml_collections import ConfigDict

from configs import e2e, instructgpt

# Radford et al. 2019, table 2: layers, width, heads.
SIZES = {"124m": (12, 768, 12), "355m": (24, 1024, 16), "774m": (36, 1280, 20), "1p5b": (48, 1600, 25)}


def get_config(variant: str = "124m") -> ConfigDict:
    """Returns the recipe for one of GPT-2's sizes, or its smoke test."""
    if variant not in (*SIZES, "tiny"):
        raise ValueError(f"configs/gpt2.py: expected a variant among {', '.join(SIZES)}, tiny, found {variant!r}")
    if variant == "tiny":
        config = e2e.get_config("smoke").unlock()
        # A byte-pair vocabulary that is trained on few texts gives longer sequences than e2e's own.
        config.data.max_prompt = 80
        config.data.max_response = 110
        config.ppo.ptx_length = 128
        return config.lock()
    config = instructgpt.get_config("1p3b").unlock()
    layers, width, heads = SIZES[variant]
    config.model.update(num_layers=layers, d_model=width, num_heads=heads, d_head=width // heads, d_ff=4 * width)
    config.model.max_length = 1024  # GPT-2's context
    config.model.local_window = None  # all of GPT-2's layers are dense
    config.reward.size = ""  # the reward model starts from the same weights
    config.data.max_prompt = 512  # half of the context each
    config.data.max_response = 512
    config.pretrain.length = 1024
    config.ppo.ptx_length = 1024
    return config.lock()
