"""The keys of a recipe that describe its stages, and the sections of sources and guests.

Lines are read as in `program.py`. Learning rates and batch sizes that depend on the policy's size are those of 1.3B here;
configs/instructgpt.py has the others.
"""

from __future__ import annotations

from instructjax.recipe.key import (
    AT_LEAST_0,
    BELOW_1,
    INTEGER_FROM_0,
    INTEGER_FROM_1,
    NAMES,
    POSITIVE,
    TEXT,
    UP_TO_1,
    Key,
    section,
)

# fmt: off
PRETRAIN = section(
    "GPT: a language model of the pretraining text.",
    import_from=Key("", TEXT, "", "the folder of a GPT-2 with safetensors weights, to take instead of training"),
    length=Key(2048, INTEGER_FROM_1, "tokens", "of a window", "GPT-3, section 2.1"),
    batch_size=Key(512, INTEGER_FROM_1, "windows", "of an update: 1M tokens, to the nearest multiple of 64 windows, for devices to share", "GPT-3, table 2.1"),
    steps=Key(286_102, INTEGER_FROM_1, "updates", "300B tokens", "GPT-3, table 2.1"),
    learning_rate=Key(2e-4, AT_LEAST_0, "", "peak", "GPT-3, table 2.1"),
    warmup_steps=Key(358, INTEGER_FROM_0, "updates", "375M tokens", "GPT-3, appendix B"),
    final_fraction=Key(0.1, UP_TO_1, "share", "of the peak at the end of the cosine", "GPT-3, appendix B"),
    weight_decay=Key(0.1, AT_LEAST_0, "", "decoupled, on matrices", "GPT-3, appendix B"),
    dropout=Key(0.0, BELOW_1, "share", "of residuals"),
    microbatches=Key(1, INTEGER_FROM_1, "parts", "that a batch is computed in, one after the other"),
)

SFT = section(
    "The supervised baseline.",
    init_from=Key("", TEXT, "", "a checkpoint folder; \"\" is WORKDIR/pretrain"),
    epochs=Key(16, POSITIVE, "epochs", "over the demonstrations", "C.1"),
    batch_size=Key(32, INTEGER_FROM_1, "demonstrations", "of an update", "C.1"),
    learning_rate=Key(9.65e-6, AT_LEAST_0, "", "peak", "C.1"),
    final_fraction=Key(0.1, UP_TO_1, "share", "of the peak at the end of the cosine, no warm-up", "C.1"),
    weight_decay=Key(0.0, AT_LEAST_0, "", "decoupled, on matrices", "silent"),
    dropout=Key(0.2, BELOW_1, "share", "of residuals", "C.1"),
    prompt_weight=Key(0.0, AT_LEAST_0, "", "weight of the prompt's tokens in the loss; 0 is the usual choice", "silent"),
    candidates=Key(4, INTEGER_FROM_1, "checkpoints", "evenly over the run, that the reward model chooses among", "C.1; number silent"),
    selection_prompts=Key(256, INTEGER_FROM_1, "prompts", "of validation, scored for that choice", "silent"),
    microbatches=Key(1, INTEGER_FROM_1, "parts", "that a batch is computed in"),
)

COMPARISONS = section(
    "The answers that labelers rank.",
    prompts=Key(33_207, INTEGER_FROM_1, "prompts", "to rank answers to", "Table 6"),
    min_answers=Key(4, INTEGER_FROM_1, "answers", "K at least", "3.5"),
    max_answers=Key(9, INTEGER_FROM_1, "answers", "K at most", "3.5"),
    temperature=Key(1.0, AT_LEAST_0, "", "of the samples", "silent"),
)

REWARD = section(
    "The reward model.",
    import_from=Key("", TEXT, "", "the folder of a GPT2ForSequenceClassification with one label, instead of training"),
    size=Key("6.7b", TEXT, "", "of reward model and value network, of models/sizes.py; \"\" is the policy's. If not, reward.init_from or ppo.reward_from is a checkpoint folder of a run of that size", "C.2: 6B for all policies"),
    init_from=Key("", TEXT, "", "a checkpoint folder; \"\" is WORKDIR/sft", "3.5"),
    epochs=Key(1, POSITIVE, "epochs", "over the rankings; more overfit", "C.2"),
    batch_size=Key(64, INTEGER_FROM_1, "prompts", "of an update, with all of their answers", "C.2"),
    learning_rate=Key(9e-6, AT_LEAST_0, "", "peak", "C.2"),
    final_fraction=Key(0.1, UP_TO_1, "share", "of the peak at the end of the cosine", "C.2"),
    weight_decay=Key(0.0, AT_LEAST_0, "", "decoupled, on matrices", "silent"),
    dropout=Key(0.0, BELOW_1, "share", "of residuals", "silent"),
    microbatches=Key(1, INTEGER_FROM_1, "parts", "that a batch is computed in"),
)

PPO_INIT = section(
    "PPO's initial policy: a fresh fine-tuning of GPT, not the SFT baseline.",
    init_from=Key("", TEXT, "", "a checkpoint folder; \"\" is WORKDIR/pretrain", "C.3"),
    epochs=Key(2, POSITIVE, "epochs", "over the demonstrations", "C.3"),
    text_share=Key(0.1, BELOW_1, "share", "of pretraining windows in a batch", "C.3"),
    batch_size=Key(32, INTEGER_FROM_1, "examples", "of an update: demonstrations and windows", "C.3"),
    learning_rate=Key(5e-6, AT_LEAST_0, "", "peak", "C.3"),
    final_fraction=Key(0.1, UP_TO_1, "share", "of the peak at the end of the cosine", "C.3"),
    weight_decay=Key(0.0, AT_LEAST_0, "", "decoupled, on matrices", "silent"),
    dropout=Key(0.2, BELOW_1, "share", "of residuals", "silent for this stage; C.1's"),
    prompt_weight=Key(0.0, AT_LEAST_0, "", "weight of the prompt's tokens in the loss", "silent"),
    microbatches=Key(1, INTEGER_FROM_1, "parts", "that a batch is computed in"),
)

PPO = section(
    "The stages ppo (gamma = 0) and ppo_ptx.",
    init_from=Key("", TEXT, "", "a checkpoint folder; \"\" is WORKDIR/ppo_init"),
    reward_from=Key("", TEXT, "", "a checkpoint folder; \"\" is WORKDIR/reward"),
    reward_function=Key("", TEXT, "", "\"MODULE:FUNCTION\" of (prompts, responses) that gives the rewards instead; docs/own_reward.md. The value network starts from the reward model all the same"),
    frozen_dtype=Key("", TEXT, "", "of the weights of reference and reward model on the devices; \"\" is model.param_dtype. \"bfloat16\" takes half of the memory, for networks that compute in it"),
    iterations=Key(500, INTEGER_FROM_1, "iterations", "256k episodes in batches of 512", "C.4"),
    batch_size=Key(512, INTEGER_FROM_1, "episodes", "of an iteration", "C.4"),
    samples_per_prompt=Key(1, INTEGER_FROM_1, "responses", "to each prompt; groups of several are for RLOO and GRPO", "3.5: a bandit"),
    minibatch_size=Key(64, INTEGER_FROM_1, "episodes", "of an update", "C.4"),
    microbatches=Key(1, INTEGER_FROM_1, "parts", "that the networks read a minibatch in, for scoring and updates"),
    epochs=Key(1, INTEGER_FROM_1, "epochs", "over a batch", "C.4"),
    rollout_parts=Key(1, INTEGER_FROM_1, "parts", "that a batch is sampled in, one after the other; the cache holds one part"),
    rollout_refill=Key(0, INTEGER_FROM_0, "rows", "refill a device once this many of its rows are idle; 0: one part after the other. Changes no token"),
    temperature=Key(1.0, POSITIVE, "", "of the rollout", "C.4"),
    learning_rate=Key(8.06e-6, AT_LEAST_0, "", "of the policy", "E.9's range is 2.55e-6 to 2.55e-5; the final value is not printed"),
    value_learning_rate=Key(9e-6, AT_LEAST_0, "", "of the value network", "C.4"),
    warmup_iterations=Key(10, INTEGER_FROM_0, "iterations", "from a tenth of the rate, then constant", "C.4"),
    weight_decay=Key(0.0, AT_LEAST_0, "", "decoupled, on matrices", "silent"),
    kl_coefficient=Key(0.02, AT_LEAST_0, "reward a nat", "beta", "C.4"),
    discount=Key(1.0, UP_TO_1, "", "of GAE", "C.4"),
    gae_lambda=Key(0.95, UP_TO_1, "", "lambda of GAE", "silent; the authors' earlier code"),
    clip_ratio=Key(0.2, POSITIVE, "", "of the policy's ratio", "C.4"),
    clip_value=Key(0.2, POSITIVE, "", "of the value's change", "silent; the authors' earlier code"),
    missing_eos_penalty=Key(0.0, AT_LEAST_0, "reward", "taken from a response that does not end with EOS within data.max_response", "silent"),
    ema_decay=Key(0.992, UP_TO_1, "", "of the policy's moving average, per iteration: that is when it is evaluated", "C.4; silent whether per iteration or per update"),
    ptx_coefficient=Key(27.8, AT_LEAST_0, "", "gamma of the stage ppo_ptx, on means over tokens", "C.4"),
    ptx_examples_per_episode=Key(8, INTEGER_FROM_1, "windows", "of pretraining text", "C.4"),
    ptx_microbatches=Key(8, INTEGER_FROM_1, "parts", "that a minibatch's windows are computed in"),
    ptx_length=Key(2048, INTEGER_FROM_1, "tokens", "of such a window; the full context fits the paper's FLOPs", "silent"),
)

SANDBOX = section(
    "The simulated world and its people; configs/sandbox.py.",
    documents=Key(24_000, INTEGER_FROM_1, "texts", "of pretraining"),
    demonstrations=Key(3_000, INTEGER_FROM_1, "demonstrations", "by training labelers"),
    users=Key(2_000, INTEGER_FROM_1, "users", "who send prompts, and are split"),
    reward_prompts=Key(8_000, INTEGER_FROM_1, "prompts", "for comparisons"),
    prompts=Key(8_000, INTEGER_FROM_1, "prompts", "for PPO, and of test users for evaluation"),
    labelers=Key(40, INTEGER_FROM_1, "labelers", "who write demonstrations and rank", "3.4: about 40"),
    heldout_labelers=Key(20, INTEGER_FROM_1, "labelers", "who only judge"),
    validation_prompts=Key(250, INTEGER_FROM_1, "prompts", "ranked by `raters` of each group, to measure accuracy and agreement"),
    raters=Key(3, INTEGER_FROM_1, "labelers", "of each group who rank the answers to a validation prompt"),
    noise=Key(0.18, AT_LEAST_0, "quality", "standard deviation of a judgement; sets the labelers' agreement"),
    tie=Key(0.05, AT_LEAST_0, "quality", "answers closer than this, as a labeler sees them, are tied"),
)

E2E = section(
    "The E2E NLG challenge; configs/e2e.py.",
    directory=Key("", TEXT, "", "the folder of the data sets; it has no default"),
    texts=Key(("storybooks",), NAMES, "", "sets to pretrain on: plain short sentences, near the task's"),
    aspects=Key(("quality",), NAMES, "", "rated aspects; naturalness was judged without the MR, and prefers the shorter text"),
)

DPO = section(
    "DPO, a guest (Rafailov et al. 2023); configs/dpo.py.",
    init_from=Key("", TEXT, "", "a checkpoint folder, start and reference; \"\" is WORKDIR/sft, whose answers were ranked"),
    beta=Key(0.1, POSITIVE, "", "weight of the KL divergence from the reference", "Rafailov et al., section 6"),
    epochs=Key(1, POSITIVE, "epochs", "over the rankings"),
    batch_size=Key(32, INTEGER_FROM_1, "prompts", "with all pairs of their answers; DPO's paper has 64 pairs"),
    learning_rate=Key(1e-4, AT_LEAST_0, "", "peak: a tenth of SFT's in the sandbox; DPO's paper has 1e-6 for models of billions"),
    final_fraction=Key(0.1, UP_TO_1, "share", "of the peak at the end of the cosine, as the other stages have"),
    weight_decay=Key(0.0, AT_LEAST_0, "", "decoupled, on matrices"),
    microbatches=Key(1, INTEGER_FROM_1, "parts", "that a batch is computed in"),
)
# fmt: on
