"""All of InstructGPT in a small simulated world, on a laptop and without downloads.

Reproduces: the shape of the paper's main results (Figures 1 and 3, section 4.1, and the
            alignment tax of section 4.2) where the truth is known: prompts, demonstrations
            and rankings come from simulated people. It is a test of the recipe, not
            evidence about people.
Cost:       see the README for measured times; about 0.5M parameters, two CPU cores.
Expected:   gpt < gpt_prompted < sft < ppo_ptx in win rate against sft; ppo_ptx recovers most of the
            loss on pretraining text that ppo gives away.
Command:    python experiments/reproduce.py

Variants:   smoke: the same in about two minutes, for tests; too small to show the results.
            rounds: a fifth of the comparisons and half of PPO, for several rounds of them; see docs/rounds.md.

Values that are not set here are the paper's; docs/recipe.md explains them.
"""

from ml_collections import ConfigDict

from configs import instructgpt
from instructjax.recipe import declared, run_keys


def get_config(variant: str = "") -> ConfigDict:
    """Returns the default sandbox, or a variant."""
    if variant not in ("", "smoke", "rounds"):
        raise ValueError(f"configs/sandbox.py: expected no variant, 'smoke' or 'rounds', found {variant!r}")
    config = instructgpt.get_config().unlock()
    del config.files

    sandbox = config.sandbox = declared.defaults(run_keys.SANDBOX)

    config.data.separator = "\n"
    config.data.max_prompt = 24
    config.data.max_response = 26
    config.data.strict = True
    config.data.shared_prompts = "keep"  # in a small world, users ask the same
    config.data.validation = 0.08
    config.data.test = 0.12
    config.tokenizer.vocab_size = 896  # 256 bytes, the 240 words of the world, and what BPE needs to build them

    # Two layers of many narrow heads learn to copy a name from the prompt within 300 steps; four layers of
    # three heads did not in 600.
    config.model.update(num_layers=2, d_model=128, num_heads=8, d_head=16, d_ff=512, max_length=128, local_window=None)
    config.model.init_std = 0.08  # about 1 / sqrt(d_model), as 0.02 is for the widths of GPT-3
    # CPUs are slow at bfloat16. On one with matrix units for it, matmul_dtype = "bfloat16" is faster still.
    config.model.dtype = "float32"
    config.model.cache_by_layer = True  # two layers compile fast, and decoding copies no cache
    config.model.remat = "dense"  # it fits
    config.model.logits_chunk = 512  # the logits fit into a core's cache

    config.parallel.fsdp = 1  # the weights fit into any device
    config.log.update(every=20, save_every=200, evaluate_every=100)
    config.pretrain.update(steps=1200, batch_size=24, length=128, learning_rate=3e-3, warmup_steps=50)
    config.sft.update(epochs=16, batch_size=64, learning_rate=1e-3, dropout=0.1)
    config.comparisons.update(prompts=5_000)
    # The paper overfits after one epoch. With few rankings and a small model the second still helps.
    config.reward.update(size="", epochs=2, batch_size=32, learning_rate=6e-4)
    config.ppo_init.update(epochs=8, batch_size=64, learning_rate=1e-3, dropout=0.0)
    config.ppo.update(
        iterations=50,
        batch_size=256,
        minibatch_size=64,
        learning_rate=2e-4,
        value_learning_rate=4e-4,
        # The paper's 0.02 over-optimizes a reward model of this size.
        kl_coefficient=0.07,
        missing_eos_penalty=1.0,
        # The average forgets its start within 50 iterations instead of 500.
        ema_decay=0.9,
        ptx_coefficient=1.2,
        ptx_examples_per_episode=1,
        ptx_microbatches=1,
        ptx_length=128,
    )
    config.ppo_log.update(every=1, save_every=25, evaluate_every=5)
    config.evaluate.update(prompts=600, judgements=3, text_windows=256)

    if variant == "smoke":
        sandbox.update(documents=2_000, demonstrations=400, reward_prompts=600, prompts=800, users=200)
        sandbox.validation_prompts = 30
        config.model.update(d_model=64, num_heads=4, d_ff=256)
        config.log.update(every=10, save_every=20, evaluate_every=20)
        config.pretrain.update(steps=80, batch_size=32, warmup_steps=10)
        config.sft.update(epochs=8, batch_size=64, candidates=2, selection_prompts=64)
        config.comparisons.update(prompts=200)
        config.ppo_init.update(epochs=2)
        config.ppo.update(iterations=6, batch_size=64, minibatch_size=16, ema_decay=0.5)
        config.ppo_log.update(save_every=3, evaluate_every=3)
        config.ppo.validation_prompts = config.evaluate.few_shot_prompts = 64
        config.evaluate.update(prompts=60, batch_size=64, text_windows=32)
    if variant == "rounds":
        config.comparisons.prompts = 1_000
        config.ppo.iterations = 25
        config.ppo_log.update(save_every=25, evaluate_every=25)
        config.evaluate.update(prompts=300, judgements=1, text_windows=32, few_shot_candidates=1, few_shot_prompts=16)
    return config.lock()
