"""Learning from a rule instead of rankings, in minutes on two CPU cores: sums, and whether the answer is right.

Reproduces: nothing in InstructGPT; the loop of "reinforcement learning with verifiable rewards", as in
            DeepSeekMath (Shao et al. 2024, arXiv 2402.03300, section 4), at the size of a laptop.
Cost:       3 minutes to pretrain and to fine-tune, on two busy cores, and 16 to 44 s of CPU time for PPO; 0.1M
            parameters.
Expected:   exact match on held-out sums rises from 0.36 to 0.53 (GRPO) and 0.62 (PPO), three seeds; see
            docs/verifiable_rewards.md.
Command:    python experiments/pretrain.py --config=configs/arithmetic.py --workdir=runs/arithmetic
            python experiments/ppo.py --config=configs/arithmetic.py --workdir=runs/arithmetic \\
                --stages=ppo_init --stages=ppo

Variants:   rloo, grpo: without a value network, with four responses to each prompt.

There is no reward model and there are no rankings: the reward is 1 for the right answer and 0 for others. Some
demonstrations are wrong, so that a policy that imitates them has something to learn. Values that are not set here or in
configs/sandbox.py are the paper's; docs/recipe.md explains them.
"""

from ml_collections import ConfigDict

from configs import sandbox
from instructjax.recipe import declared, run_keys


def get_config(variant: str = "") -> ConfigDict:
    """Returns PPO with a fresh value network, RLOO, or GRPO."""
    if variant not in ("", "rloo", "grpo"):
        raise ValueError(f"configs/arithmetic.py: expected no variant, 'rloo' or 'grpo', found {variant!r}")
    config = sandbox.get_config().unlock()
    del config.sandbox
    config.arithmetic = declared.defaults(run_keys.ARITHMETIC)

    config.model.update(d_model=64, num_heads=4, d_ff=256)
    config.data.update(max_prompt=16, max_response=10, validation=0.2, test=0.1)
    config.tokenizer.vocab_size = 280  # 256 bytes and the characters: digits stay apart

    config.log.update(every=20, save_every=400, evaluate_every=200)
    config.pretrain.update(steps=100, batch_size=16)
    config.ppo_init.update(epochs=10, learning_rate=2e-3, text_share=0.0)
    config.ppo.update(
        reward_function="instructjax.evaluation.final_answers:exact_match",
        iterations=80,
        batch_size=128,
        minibatch_size=32,
        learning_rate=3e-4,
        value_learning_rate=1e-3,
        kl_coefficient=0.01,  # the reward is at most 1
        missing_eos_penalty=0.0,  # such an answer is wrong
        value_warmup_iterations=5,
        validation_prompts=200,
    )
    if variant:
        config.ppo.update(advantages=variant, samples_per_prompt=4, value_warmup_iterations=0)
    config.ppo_log.update(save_every=40, evaluate_every=20)
    return config.lock()
