"""Your own records, on one accelerator or, slowly, on a CPU.

Reproduces: nothing; a starting point, see docs/own_data.md.
Cost:       about 25M parameters; depends on the data.
Expected:   depends on your data. The values are first guesses. A test runs `tiny`; the other has not been run to
            the end.
Command:    python experiments/reproduce.py --config=configs/own.py --workdir=runs/own \\
                --config.files.text=... --config.files.demonstrations=... \\
                --config.files.rankings=... --config.files.prompts=...

Variants:   tiny: all stages in a few steps, to test the files.

Values that are not set here are the paper's; docs/recipe.md explains them.
"""

from ml_collections import ConfigDict

from configs import instructgpt


def get_config(variant: str = "") -> ConfigDict:
    """Returns the recipe for files of records, or its rehearsal."""
    if variant not in ("", "tiny"):
        raise ValueError(f"configs/own.py: expected no variant or 'tiny', found {variant!r}")
    config = instructgpt.get_config().unlock()

    config.data.update(max_prompt=256, max_response=256)
    config.tokenizer.vocab_size = 8192
    config.model.update(num_layers=8, d_model=512, num_heads=8, d_head=64, d_ff=2048, max_length=512, local_window=None)
    config.model.remat = "dense"  # it fits
    config.parallel.fsdp = 1  # so do the weights

    # Learning rates for ten million parameters, not a billion.
    config.pretrain.update(steps=5000, batch_size=32, length=512, learning_rate=6e-4, warmup_steps=200)
    config.sft.update(epochs=8, batch_size=32, learning_rate=1e-4, dropout=0.1)
    config.reward.update(size="", batch_size=16, learning_rate=5e-5)
    config.ppo_init.update(epochs=4, batch_size=32, learning_rate=1e-4, dropout=0.0)
    config.ppo.update(
        iterations=200,
        batch_size=128,
        minibatch_size=32,
        learning_rate=3e-5,
        value_learning_rate=1e-4,
        # The paper's 0.02 is for a reward model of 6B parameters; a small one is over-optimized sooner.
        kl_coefficient=0.1,
        ema_decay=0.95,
        ptx_coefficient=1.0,  # less than the sandbox's; the paper's 27.8 is for its own batches
        ptx_examples_per_episode=1,
        ptx_microbatches=1,
        ptx_length=512,
    )
    config.ppo.validation_prompts = config.evaluate.few_shot_prompts = 64
    config.evaluate.update(prompts=500, batch_size=64, text_windows=128)

    if variant == "tiny":
        config.tokenizer.vocab_size = 512
        config.model.update(num_layers=2, d_model=64, num_heads=4, d_head=16, d_ff=256, dtype="float32")
        config.model.cache_by_layer = True
        config.model.init_std = 0.1  # about 1 / sqrt(d_model)
        config.log.update(every=5, save_every=5, evaluate_every=5)
        config.pretrain.update(steps=10, batch_size=8, length=128, warmup_steps=5)
        with config.ignore_type():  # a fraction of an epoch
            for stage in ("sft", "reward", "ppo_init"):
                config[stage].update(epochs=0.1, batch_size=8)
        config.sft.update(candidates=1, selection_prompts=8)
        config.ppo.update(iterations=2, batch_size=16, minibatch_size=8, ptx_length=128)
        config.ppo_log.update(save_every=2, evaluate_every=2)
        config.ppo.validation_prompts = config.evaluate.few_shot_prompts = 16
        config.evaluate.update(prompts=16, batch_size=16, few_shot_candidates=1, text_windows=8)
    return config.lock()
