"""The keys of each stage, in the order in which the stages run.

They are declared as in run_keys.py. Values that depend on the size of the policy are those for 1.3B; values for the
other sizes are in configs/instructgpt.py.
"""

from __future__ import annotations

from instructjax.models.config import DECODING_DTYPES
from instructjax.models.sizes import SIZES, is_size
from instructjax.recipe.key import (
    AT_LEAST_0,
    AT_LEAST_0_OR_INFINITY,
    BELOW_1,
    INTEGER_FROM_0,
    INTEGER_FROM_1,
    INTEGER_FROM_2,
    NAMES,
    POSITIVE,
    POSITIVE_OR_INFINITY,
    TEXT,
    TRUE_OR_FALSE,
    UP_TO_1,
    Key,
    Range,
    empty_or_one_of,
    integers,
    one_of,
    section,
)
from instructjax.records import MAX_RESPONSES

ESTIMATORS = ("gae", "rloo", "grpo")  # of advantages; see algorithms/advantages.py
MODEL_SIZE = Range(
    f'"" or one of {", ".join(SIZES)}, or LAYERSxWIDTH such as 2x64',
    lambda value: isinstance(value, str) and (not value or is_size(value)),
)
ANSWERS = integers(f"an integer from 2 to {MAX_RESPONSES}", 2, MAX_RESPONSES)

PRETRAIN = section(
    "pretraining of GPT on text",
    import_from=Key(
        "", TEXT, "path", "a folder with safetensors or a GGUF file, also as package://NAME/FILE, instead of training"
    ),
    length=Key(2048, INTEGER_FROM_1, "tokens", "in a window", "GPT-3, 2.1"),
    batch_size=Key(512, INTEGER_FROM_1, "windows", "nearest multiple of 64", "GPT-3, table 2.1: 1M tokens"),
    steps=Key(286_102, INTEGER_FROM_1, "updates", "", "GPT-3: 300B tokens"),
    learning_rate=Key(2e-4, AT_LEAST_0, "", "peak", "GPT-3, table 2.1"),
    warmup_steps=Key(358, INTEGER_FROM_0, "updates", "linear, from 0", "GPT-3: 375M tokens"),
    final_fraction=Key(0.1, UP_TO_1, "of the peak", "rate at the end of the cosine", "GPT-3"),
    weight_decay=Key(0.1, AT_LEAST_0, "", "decoupled, as in AdamW", "GPT-3"),
    dropout=Key(0.0, BELOW_1, "", "on residuals"),
    microbatches=Key(1, INTEGER_FROM_1, "parts", "that a batch is computed in, one after the other"),
)

SFT = section(
    "supervised fine-tuning: the SFT baseline (C.1)",
    init_from=Key("", TEXT, "path", 'a checkpoint folder; "": WORKDIR/pretrain'),
    epochs=Key(16.0, POSITIVE, "epochs", "", "C.1"),
    batch_size=Key(32, INTEGER_FROM_1, "demonstrations", "", "C.1"),
    learning_rate=Key(9.65e-6, AT_LEAST_0, "", "peak, without warm-up", "C.1"),
    final_fraction=Key(0.1, UP_TO_1, "of the peak", "rate at the end of the cosine", "C.1"),
    weight_decay=Key(0.0, AT_LEAST_0, "", "decoupled, as in AdamW", "silent"),
    dropout=Key(0.2, BELOW_1, "", "on residuals", "C.1"),
    prompt_weight=Key(0.0, AT_LEAST_0, "", "of the prompt's tokens in the loss", "silent; 0 is usual"),
    candidates=Key(4, INTEGER_FROM_1, "checkpoints", "that the reward model chooses among", "C.1; number silent"),
    selection_prompts=Key(256, INTEGER_FROM_1, "prompts", "of validation, scored for that choice", "silent"),
    microbatches=Key(1, INTEGER_FROM_1, "parts", "that a batch is computed in, one after the other"),
)

COMPARISONS = section(
    "samples that labelers rank (3.5)",
    prompts=Key(33_207, INTEGER_FROM_1, "prompts", "", "table 6"),
    min_answers=Key(4, ANSWERS, "answers", "least K", "3.5"),
    max_answers=Key(9, ANSWERS, "answers", "largest K", "3.5"),
    temperature=Key(1.0, AT_LEAST_0, "", "of the samples", "silent"),
    stages=Key(("sft",), NAMES, "stages", 'whose policies answer in turn; "../1/ppo" is a stage of another run', "3.5"),
    skip=Key(0, INTEGER_FROM_0, "prompts", "to leave out before these, as those of earlier rounds; docs/rounds.md"),
    earlier=Key("", TEXT, "path", 'a run whose rankings are also used, relative to WORKDIR, such as "../1"; "": none'),
)

REWARD = section(
    "the reward model (C.2)",
    import_from=Key(
        "", TEXT, "path", "a folder with a GPT2ForSequenceClassification of one label, instead of training"
    ),
    size=Key("6.7b", MODEL_SIZE, "", 'of reward model and value network; "": the policy\'s', "C.2: 6B for all"),
    init_from=Key("", TEXT, "path", 'a checkpoint folder of a policy of that size; "": WORKDIR/sft', "3.5"),
    epochs=Key(1.0, POSITIVE, "epochs", "", "C.2: more overfit"),
    batch_size=Key(64, INTEGER_FROM_1, "prompts", "with all comparisons of their answers", "C.2"),
    learning_rate=Key(9e-6, AT_LEAST_0, "", "peak, without warm-up", "C.2"),
    final_fraction=Key(0.1, UP_TO_1, "of the peak", "rate at the end of the cosine", "C.2"),
    weight_decay=Key(0.0, AT_LEAST_0, "", "decoupled, as in AdamW", "silent"),
    dropout=Key(0.0, BELOW_1, "", "on residuals", "silent"),
    candidates=Key(
        1, INTEGER_FROM_1, "checkpoints", "compared by validation loss; the best one is kept. 1: keep the last", "C.2"
    ),
    offset_demonstrations=Key(
        0, INTEGER_FROM_0, "demonstrations", "the mean reward of the first ones becomes 0; 0: of all", "3.5"
    ),
    microbatches=Key(1, INTEGER_FROM_1, "parts", "that a batch is computed in, one after the other"),
)

PPO_INIT = section(
    "the start of PPO: GPT fine-tuned again, not the SFT baseline (C.3)",
    init_from=Key("", TEXT, "path", 'a checkpoint folder; "": WORKDIR/pretrain', "C.3"),
    epochs=Key(2.0, POSITIVE, "epochs", "", "C.3"),
    text_share=Key(0.1, BELOW_1, "of a batch", "windows of pretraining text", "C.3"),
    batch_size=Key(32, INTEGER_FROM_1, "examples", "demonstrations and windows", "C.3"),
    learning_rate=Key(5e-6, AT_LEAST_0, "", "peak, without warm-up", "C.3"),
    final_fraction=Key(0.1, UP_TO_1, "of the peak", "rate at the end of the cosine", "C.3"),
    weight_decay=Key(0.0, AT_LEAST_0, "", "decoupled, as in AdamW", "silent"),
    dropout=Key(0.2, BELOW_1, "", "on residuals", "silent; C.1's"),
    prompt_weight=Key(0.0, AT_LEAST_0, "", "of the prompt's tokens in the loss", "silent; 0 is usual"),
    microbatches=Key(1, INTEGER_FROM_1, "parts", "that a batch is computed in, one after the other"),
)

PPO = section(
    "PPO and PPO-ptx (3.5, C.4)",
    init_from=Key("", TEXT, "path", 'a checkpoint folder, start and reference; "": WORKDIR/ppo_init', "C.3"),
    reward_from=Key(
        "",
        TEXT,
        "path",
        'a checkpoint folder of a reward model; "": WORKDIR/reward, or none with a reward_function. With one, it only '
        "starts the value network",
    ),
    reward_function=Key(
        "", TEXT, "", '"MODULE:FUNCTION" of (prompts, responses) gives the rewards instead; see docs/own_reward.md'
    ),
    reward_retries=Key(3, INTEGER_FROM_0, "tries", "again, if it raises ConnectionError or TimeoutError"),
    reward_retry_seconds=Key(10.0, AT_LEAST_0, "seconds", "pause before each of them"),
    reward_timeout_seconds=Key(
        0.0, AT_LEAST_0_OR_INFINITY, "seconds", "that one call of it may take; 0 or infinity: no limit"
    ),
    reward_scale=Key(1.0, POSITIVE, "", "factor of all rewards, before clipping and the KL penalty"),
    reward_clip=Key(0.0, AT_LEAST_0, "reward", "clips rewards to plus or minus this, after scaling; 0: does not clip"),
    frozen_dtype=Key(
        "",
        TEXT,
        "",
        'of the weights of reference and reward model, or of their base; "": model.param_dtype; bfloat16 halves them',
    ),
    iterations=Key(500, INTEGER_FROM_1, "iterations", "", "C.4: 256k episodes"),
    batch_size=Key(512, INTEGER_FROM_1, "episodes", "of an iteration", "C.4"),
    advantages=Key(
        "gae",
        one_of(*ESTIMATORS),
        "",
        "gae: PPO's, from a value network; rloo, grpo: from the other responses to a prompt, without one",
        "C.4",
    ),
    samples_per_prompt=Key(
        1, INTEGER_FROM_1, "samples", "of each prompt, in a group; several for rloo and grpo", "3.5: 1"
    ),
    minibatch_size=Key(64, INTEGER_FROM_1, "episodes", "of an update", "C.4"),
    microbatches=Key(1, INTEGER_FROM_1, "parts", "that a minibatch is scored and updated in, one after the other"),
    pack_episodes=Key(
        False,
        TRUE_OR_FALSE,
        "",
        "score and update rows that several episodes share, and skip parts without any; for microbatches above 1. "
        "Changes no result but by rounding",
    ),
    epochs=Key(1, INTEGER_FROM_1, "passes", "over a batch", "C.4"),
    rollout_parts=Key(1, INTEGER_FROM_1, "parts", "that a batch is sampled in; the cache holds one part"),
    rollout_refill=Key(
        0,
        INTEGER_FROM_0,
        "rows",
        "refill a device once this many of its rows are idle; 0: parts one after the other. Changes no token",
    ),
    rollout_widths=Key(
        1,
        INTEGER_FROM_1,
        "widths",
        "of prompts in a rollout: data.max_prompt and its halves; a part has prompts of similar lengths and the least "
        "width that holds them. Changes no token",
    ),
    rollout_dtype=Key(
        "",
        empty_or_one_of(*DECODING_DTYPES),
        "",
        'of the weights that sample rollouts; "": model.matmul_dtype; int8: fewer bytes, with importance weights; '
        "int8xint8: rounds activations too; docs/serving.md",
    ),
    temperature=Key(1.0, POSITIVE, "", "of the rollout", "C.4"),
    learning_rate=Key(8.06e-6, AT_LEAST_0, "", "of the policy, constant", "silent; E.9: 2.55e-6 to 2.55e-5"),
    value_learning_rate=Key(9e-6, AT_LEAST_0, "", "of the value network, if there is one", "C.4"),
    value_warmup_iterations=Key(
        0, INTEGER_FROM_0, "iterations", "first ones, in which only the value network learns", "C.4: none"
    ),
    warmup_iterations=Key(10, INTEGER_FROM_0, "iterations", "from a tenth of the rate", "C.4"),
    weight_decay=Key(0.0, AT_LEAST_0, "", "decoupled, as in AdamW", "silent"),
    kl_coefficient=Key(0.02, AT_LEAST_0, "reward per nat", "beta, penalizes divergence from the start", "C.4"),
    kl_target=Key(
        0.0, AT_LEAST_0, "nats per episode", "KL that beta is adapted to, from kl_coefficient; 0: beta is fixed", "C.4"
    ),
    kl_horizon=Key(10_000, INTEGER_FROM_1, "episodes", "in which beta adapts, with kl_target", "Ziegler et al. 2019"),
    entropy_coefficient=Key(
        0.0, AT_LEAST_0, "per nat", "weight of the entropy of a token in the objective", "C.4: none"
    ),
    whiten_rewards=Key(
        False, TRUE_OR_FALSE, "", "scale the rewards of tokens to variance 1 in each batch", "silent; Ziegler et al. do"
    ),
    discount=Key(1.0, UP_TO_1, "", "gamma of GAE", "C.4: none"),
    gae_lambda=Key(0.95, UP_TO_1, "", "lambda of GAE", "silent; the authors' earlier code"),
    clip_ratio=Key(0.2, POSITIVE, "", "of the probability ratio", "C.4"),
    clip_value=Key(
        0.2, POSITIVE_OR_INFINITY, "reward", "of the change of a value; inf: not", "silent; the authors' earlier code"
    ),
    missing_eos_penalty=Key(
        0.0, AT_LEAST_0, "reward", "subtracted if a response does not end within data.max_response", "silent"
    ),
    ema_decay=Key(0.992, UP_TO_1, "per iteration", "of the weights that are evaluated", "C.4; per what is silent"),
    ptx_coefficient=Key(27.8, AT_LEAST_0, "", "gamma of ppo_ptx, on means over tokens; ppo has 0", "C.4"),
    ptx_examples_per_episode=Key(8, INTEGER_FROM_1, "windows", "of pretraining text", "C.4"),
    ptx_microbatches=Key(8, INTEGER_FROM_1, "parts", "that the windows of a minibatch are computed in"),
    ptx_length=Key(2048, INTEGER_FROM_1, "tokens", "of such a window", "silent; 2048 fits the paper's FLOPs"),
    validation_prompts=Key(256, INTEGER_FROM_1, "prompts", "of the validation split, answered at each evaluation"),
    shown_answers=Key(
        4, INTEGER_FROM_0, "answers", "of them, written to WORKDIR/STAGE/samples.jsonl with their rewards"
    ),
)

EVALUATE = section(
    "win rates, agreement and the loss on text (4.1)",
    prompts=Key(3196, INTEGER_FROM_2, "prompts", "of the test split; one has no interval", "table 9"),
    judgements=Key(1, INTEGER_FROM_1, "comparisons", "by each group of labelers per prompt and model"),
    temperature=Key(1.0, AT_LEAST_0, "", "of the samples", "silent; F has 1 for InstructGPT"),
    few_shot=Key(2, INTEGER_FROM_0, "examples", "in the prefix of GPT (prompted)", "silent"),
    few_shot_candidates=Key(
        4, INTEGER_FROM_1, "prefixes", "that the reward model chooses among", "3.5: 2 by 2 authors"
    ),
    few_shot_prompts=Key(256, INTEGER_FROM_1, "prompts", "of the validation split, answered for that choice", "silent"),
    batch_size=Key(256, INTEGER_FROM_1, "prompts", "sampled at a time; decides no result"),
    ppo_checkpoint=Key(
        "last", one_of("last", "best"), "", 'of ppo and ppo_ptx; "best": by validation_reward', "silent"
    ),
    guests=Key((), NAMES, "stages", 'in addition to the paper\'s, whose policies are also judged, such as "dpo"'),
    text_windows=Key(512, INTEGER_FROM_1, "windows", "of validation text, for the loss on it"),
    tasks=Key(
        "",
        TEXT,
        "path",
        "the folder of public tasks' files; they are run on all policies, before the rest; docs/tasks.md",
    ),
    task_names=Key("", TEXT, "tasks", 'with commas between them; "": those whose file is there'),
    task_examples=Key(0, INTEGER_FROM_0, "examples", "the first of each task; 0: all"),
)

DPO = section(
    "a guest: DPO (Rafailov et al. 2023, arXiv 2305.18290)",
    init_from=Key(
        "", TEXT, "path", 'a checkpoint folder, start and reference; "": WORKDIR/sft, whose answers are ranked'
    ),
    beta=Key(0.1, AT_LEAST_0, "reward per nat", "weight of the KL divergence from the reference", "DPO, 6"),
    epochs=Key(1.0, POSITIVE, "epochs", ""),
    batch_size=Key(32, INTEGER_FROM_1, "prompts", "with all pairs of their answers", "DPO has 64 pairs"),
    learning_rate=Key(1e-4, AT_LEAST_0, "", "a tenth of SFT's in the sandbox", "DPO has 1e-6 for billions"),
    final_fraction=Key(0.1, UP_TO_1, "of the peak", "rate at the end of the cosine, as in other stages"),
    weight_decay=Key(0.0, AT_LEAST_0, "", "decoupled, as in AdamW"),
    microbatches=Key(1, INTEGER_FROM_1, "parts", "that a batch is computed in, one after the other"),
)
