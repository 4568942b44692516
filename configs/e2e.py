"""InstructGPT on human records and judgments: the E2E NLG Challenge (Dusek et al. 2020).

Reproduces: all stages of the paper on one narrow task: state the facts of a meaning
            representation (MR) in a sentence or two. People wrote the 9,365
            demonstrations and ranked K = 5 outputs at a time; prompts are MRs. The data is
            split by MR, so that no test input is seen in training.
Cost:       44 minutes and 1.7 GiB on two CPU cores; 1.2M parameters.
Expected:   on held-out MRs the reward model orders 70 % of pairs like the average of the raters (a
            preference for the longer text 61 %, a single rater 67 %); the share of facts stated rises
            from 0.56 (SFT) to 0.79 (PPO) and 0.80 (PPO-ptx); people state 0.92.
Command:    python experiments/reproduce.py --config=configs/e2e.py --config.e2e.directory=DATA

            DATA holds a folder e2e_human_rankings and one for each text set.

Variants:   smoke: the same in minutes, for tests; too small to show the results.

Values that are not set here are the paper's; docs/recipe.md explains them.
"""

from ml_collections import ConfigDict

from configs import instructgpt
from instructjax.recipe import declared, run_keys


def get_config(variant: str = "") -> ConfigDict:
    """Returns the default run on human data, or its smoke test."""
    if variant not in ("", "smoke"):
        raise ValueError(f"configs/e2e.py: expected no variant or 'smoke', found {variant!r}")
    config = instructgpt.get_config().unlock()
    del config.files

    config.e2e = declared.defaults(run_keys.E2E)

    config.data.separator = "\n"
    config.data.max_prompt = 44  # tokens; all prompts fit
    config.data.max_response = 68  # all ranked answers fit, and 99.5 % of the references
    config.data.validation = 0.1  # share of MR patterns
    config.data.test = 0.3  # of the ranked patterns; few would make the accuracy's interval wide
    config.tokenizer.vocab_size = 1536  # words of the task and of simple stories

    # The context is longer than prompt and response, for the few-shot prefix. Two layers of many narrow heads, as in
    # the sandbox, learn early to copy facts from the MR.
    config.model.update(num_layers=2, d_model=192, num_heads=12, d_head=16, d_ff=768, max_length=256, local_window=None)
    config.model.init_std = 0.07  # about 1 / sqrt(d_model)
    # CPUs are slow at bfloat16. On one with matrix units for it, matmul_dtype = "bfloat16" is faster still.
    config.model.dtype = "float32"
    config.model.cache_by_layer = True  # two layers compile fast, and decoding copies no cache
    config.model.remat = "dense"  # it fits
    config.model.logits_chunk = 512  # the logits fit into a core's cache

    config.parallel.fsdp = 1  # the weights fit into any device

    # Learning rates for a million parameters, not a billion.
    config.log.update(every=20, save_every=200, evaluate_every=100)
    config.pretrain.update(steps=600, batch_size=32, length=128, learning_rate=2e-3, warmup_steps=50, dropout=0.1)
    config.sft.update(epochs=10, batch_size=32, learning_rate=1e-3, dropout=0.1)
    config.comparisons.update(min_answers=5, max_answers=5)  # as many as people were shown
    # The paper overfits after one epoch. A thousand rankings are only 80 updates.
    config.reward.update(size="", batch_size=16, epochs=2, learning_rate=3e-4, dropout=0.1)
    config.ppo_init.update(epochs=6, batch_size=32, learning_rate=1e-3, dropout=0.0)
    config.ppo.update(
        iterations=40,
        batch_size=128,
        minibatch_size=32,
        learning_rate=5e-5,
        value_learning_rate=1e-4,
        # Five times the paper's; not tuned on this data.
        kl_coefficient=0.1,
        missing_eos_penalty=1.0,
        # The average forgets its start within 40 iterations instead of 500.
        ema_decay=0.9,
        ptx_coefficient=1.0,
        ptx_examples_per_episode=1,
        ptx_microbatches=1,
        ptx_length=112,
    )
    config.ppo_log.update(every=1, save_every=20, evaluate_every=5)
    config.ppo.validation_prompts = config.evaluate.few_shot_prompts = 112
    config.evaluate.update(batch_size=112, text_windows=128)

    if variant == "smoke":
        config.model.update(d_model=64, num_heads=4, d_ff=256)
        config.log.update(every=10, save_every=10, evaluate_every=20)
        config.pretrain.update(steps=20, batch_size=8, warmup_steps=10)
        with config.ignore_type():  # a fraction of an epoch
            config.sft.update(epochs=0.2, candidates=2, selection_prompts=16)
            config.reward.update(epochs=0.2)
            config.ppo_init.update(epochs=0.1)
        config.ppo.update(iterations=3, batch_size=32, minibatch_size=16, ema_decay=0.5)
        config.ppo_log.update(save_every=3, evaluate_every=3)
        config.ppo.validation_prompts = config.evaluate.few_shot_prompts = 50
        config.evaluate.update(prompts=50, batch_size=50, few_shot_candidates=1, text_windows=16)
    return config.lock()
