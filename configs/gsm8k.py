"""GSM8K with a rule as the reward: 1 for the right final answer behind "####", 0 for others. For accelerators.

Reproduces: nothing in InstructGPT. The settings are those that two trainers publish for this data or for math problems,
            as far as they have a counterpart here, so that runs can be compared with theirs:
            ppo   verl, docs/start/quickstart.rst and verl/trainer/config/ppo_trainer.yaml: 1024 prompts, minibatches of
                  256, rates 1e-6 and 1e-5, KL 0.001, lambda 1, value clip 0.5, 15 epochs, 512 + 512 tokens
            rloo  verl, examples/rloo_trainer/run_qwen2-7b.sh: the same with 5 responses to each prompt, KL in the
                  reward as here, 512 + 1024 tokens
            grpo  NVIDIA-NeMo/RL, examples/configs/grpo_math_1B.yaml, whose data is OpenMathInstruct-2: 32 prompts with
                  16 responses, one update, rate 5e-6, KL 0.01, 512 tokens in all
Differs:    verl's cut of the loss at a ratio of 3 is not here. NeMo-RL takes the KL in the loss and leaves a response
            out of its own mean; here the KL is in the reward. Training starts with `ppo_init`, two epochs on the
            solutions that people wrote. Both trainers start without it, verl from an instruct model and NeMo-RL
            from a base model: set ppo.init_from=WORKDIR/pretrain/checkpoints for that.
Cost:       not measured; the recipe has not been run.
Expected:   not measured.
Command:    python experiments/pretrain.py --config=configs/gsm8k.py:rloo --workdir=runs/gsm8k \\
                --config.gsm8k.directory=DATA --config.pretrain.import_from=FOLDER --config.tokenizer.path=FOLDER
            python experiments/ppo.py (the same flags) --stages=ppo_init --stages=ppo

            DATA holds train.jsonl and test.jsonl of the release (openai/grade-school-math); FOLDER holds Qwen2.5-1.5B.
            For other weights, change the section `model` as in docs/weights.md.

Variants:   ppo, rloo, grpo.

Values that are not set here are the paper's; docs/recipe.md explains them.
"""

from ml_collections import ConfigDict

from configs import instructgpt
from instructjax.recipe import declared, run_keys

VARIANTS = ("ppo", "rloo", "grpo")


def get_config(variant: str = "rloo") -> ConfigDict:
    """Returns one of three published settings."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/gsm8k.py: expected a variant among {', '.join(VARIANTS)}, found {variant!r}")
    config = instructgpt.get_config().unlock()
    del config.files
    config.gsm8k = declared.defaults(run_keys.GSM8K)

    config.data.update(separator="\n", validation=0.05)
    # Qwen2.5-1.5B, with a context of 2,048 of its 131,072 tokens.
    config.model.update(num_layers=28, d_model=1536, num_heads=12, d_head=128, d_ff=8960, max_length=2048)
    with config.ignore_type():  # None in the base
        config.model.update(num_kv_heads=2, local_window=None)
    config.model.update(norm="rms", norm_epsilon=1e-6, positions="rotary", rotary_base=1e6)
    config.model.update(activation="silu", gated=True, biases="query_key_value")
    config.reward.size = ""  # a value network of the policy's size
    config.optimizer.beta2 = 0.999
    config.ppo_init.text_share = 0.0
    config.ppo.update(
        reward_function="instructjax.evaluation.final_answers:exact_match",
        weight_decay=0.01,
        warmup_iterations=0,
        ema_decay=0.0,  # the last weights are evaluated
        ptx_length=1024,
    )
    config.evaluate.temperature = 0.0
    if variant == "grpo":
        config.data.update(max_prompt=256, max_response=256)
        config.ppo.update(advantages="grpo", samples_per_prompt=16, batch_size=512, minibatch_size=512, microbatches=8)
        config.ppo.update(learning_rate=5e-6, warmup_iterations=50, kl_coefficient=0.01)
        return config.lock()
    prompts, minibatch, samples = 1024, 256, 1 if variant == "ppo" else 5
    config.data.update(max_prompt=512, max_response=512 if variant == "ppo" else 1024)
    config.ppo.update(batch_size=prompts * samples, minibatch_size=minibatch * samples, microbatches=16)
    config.ppo.update(iterations=15 * (7_473 // prompts), learning_rate=1e-6, kl_coefficient=0.001)
    if variant == "rloo":
        config.ppo.update(advantages="rloo", samples_per_prompt=samples)
    else:
        config.ppo.update(value_learning_rate=1e-5, gae_lambda=1.0, clip_value=0.5)
    return config.lock()
