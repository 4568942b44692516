"""The keys that all stages share: the run, its records, its model and its devices.

Each is declared once: the paper's value for 1.3B (or the default if the paper does not have the key), the range, the
unit, the meaning, and the source of the value.
"""

from __future__ import annotations

from instructjax.models.config import CHOICES, DTYPES
from instructjax.recipe.key import (
    ABOVE_0_UP_TO_1,
    AT_LEAST_0,
    AT_LEAST_0_OR_INFINITY,
    BELOW_1,
    INTEGER_FROM_0,
    INTEGER_FROM_1,
    INTEGER_OR_NONE,
    INTEGER_OR_REST,
    NAMES,
    POSITIVE,
    POSITIVE_OR_NONE,
    SEED,
    TEXT,
    TRUE_OR_FALSE,
    UP_TO_1,
    Key,
    Range,
    Section,
    empty_or_one_of,
    integers,
    one_of,
    section,
    some_of,
)

# With virtual CPU devices, collectives hang if about 33 steps are in flight and the host waits for none of them. A line
# of metrics is read while the next step runs.
MAX_STEPS_IN_FLIGHT = 31

STOP_OR_WARN = one_of("stop", "warn")
DTYPE = one_of(*DTYPES)
STEPS_BETWEEN_LINES = integers(f"an integer from 1 to {MAX_STEPS_IN_FLIGHT - 1}", 1, MAX_STEPS_IN_FLIGHT - 1)

PATTERN = Range(
    "a text of D and L, at least one L",
    lambda value: isinstance(value, str) and "L" in value and not set(value) - {"D", "L"},
)
PROFILED = integers("an integer from 0 to 100", 0, 100)

ROOT = section(
    "the run as a whole; keys without a section",
    seed=Key(0, SEED, "", "of weights, shuffles, dropout, samples and simulated people"),
    invariants=Key("stop", STOP_OR_WARN, "", 'if an invariant does not hold: "stop" before saving, or "warn"'),
)

GUARDS = section(
    "when a run counts as diverged",
    max_skipped=Key(10, INTEGER_FROM_1, "updates", "skipped in a row because loss or gradient is not finite", "silent"),
    action=Key("warn", STOP_OR_WARN, "", 'at the limits below: "stop", with exit code 4, or "warn"', "silent"),
    max_kl=Key(100.0, AT_LEAST_0_OR_INFINITY, "nats per episode", "mean KL of a batch to the start of PPO", "silent"),
    min_response_tokens=Key(
        1.5, AT_LEAST_0_OR_INFINITY, "tokens", "mean length of answers, including EOS; 1 is an empty answer", "silent"
    ),
    max_missing_eos=Key(0.9, UP_TO_1, "share of episodes", "that do not end within data.max_response", "silent"),
    min_entropy=Key(1e-3, AT_LEAST_0, "nats per token", "mean entropy of the policy in a batch", "silent"),
)

FILES = section(
    "records from files, folders, patterns or public:NAME, several separated by commas; docs/formats.md",
    text=Key("", TEXT, "paths", "Text records, to pretrain on"),
    demonstrations=Key("", TEXT, "paths", "Demonstration records"),
    rankings=Key("", TEXT, "paths", "Ranking records"),
    prompts=Key("", TEXT, "paths", "Prompt records, for PPO and evaluation"),
    fields=Key("", TEXT, "", 'names of fields, such as "prompt=question, response=answer"'),
    public=Key("", TEXT, "path", 'the folder of public sets; "": ~/.cache/instructjax/public'),
)

SANDBOX = section(
    "records from a simulated world with simulated labelers",
    documents=Key(24_000, INTEGER_FROM_1, "documents", "pretraining text"),
    demonstrations=Key(3_000, INTEGER_FROM_1, "demonstrations", "written by labelers"),
    users=Key(2_000, INTEGER_FROM_1, "users", "who send prompts; splits are by user"),
    reward_prompts=Key(8_000, INTEGER_FROM_1, "prompts", "for comparisons"),
    prompts=Key(8_000, INTEGER_FROM_1, "prompts", "for PPO, and of test users for evaluation"),
    labelers=Key(40, INTEGER_FROM_1, "labelers", "who write demonstrations and rank", "3.4: about 40"),
    heldout_labelers=Key(20, INTEGER_FROM_1, "labelers", "who only judge"),
    validation_prompts=Key(250, INTEGER_FROM_1, "prompts", "ranked by `raters` of each group, to measure agreement"),
    raters=Key(3, INTEGER_FROM_1, "labelers", "per validation prompt and group"),
    noise=Key(0.18, AT_LEAST_0, "quality", "standard deviation of a judgment; sets how often labelers agree"),
    tie=Key(0.05, AT_LEAST_0, "quality", "answers whose perceived quality differs by less than this tie"),
)

E2E = section(
    "records that people wrote and judged: the E2E NLG Challenge",
    directory=Key("", TEXT, "path", "the folder of the data sets; it has no default"),
    texts=Key(("storybooks",), NAMES, "sets", "to pretrain on: plain short sentences, near the task's"),
    aspects=Key(("quality",), NAMES, "aspects", "used as scores; naturalness prefers the shorter text"),
)

GSM8K = section(
    "grade-school math problems with solutions by people (Cobbe et al. 2021); docs/verifiable_rewards.md",
    directory=Key("", TEXT, "path", "the folder with train.jsonl and test.jsonl, or .jsonl.gz; it has no default"),
    instruction=Key(
        'Let\'s think step by step and output the final answer after "####".', TEXT, "", "behind each question", "verl"
    ),
)

ARITHMETIC = section(
    "sums of a number and a digit, with the answer to each",
    largest=Key(99, INTEGER_FROM_1, "", "number to which a digit is added"),
    demonstrations=Key(6_000, INTEGER_FROM_1, "demonstrations", "of drawn sums, which are also the text"),
    wrong=Key(0.3, UP_TO_1, "share of demonstrations", "that are wrong by 1 to 9"),
)

DATA = section(
    "prompts, responses and splits",
    separator=Key("\n\n", TEXT, "", "stands between prompt and response", "silent"),
    template=Key(
        "separator", one_of("separator", "chat"), "", '"chat": prompts through the chat template of tokenizer.path'
    ),
    every_answer=Key(
        False, TRUE_OR_FALSE, "", "demonstrations teach all answers of a chat, not only the last; needs a chat template"
    ),
    max_prompt=Key(
        1024, INTEGER_FROM_1, "tokens", "longest prompt, including the separator", "C: prompts above 1k filtered"
    ),
    max_response=Key(1024, INTEGER_FROM_1, "tokens", "longest response, including EOS", "C: capped at 1k"),
    prepared=Key("", TEXT, "path", 'local folder of each host for prepared records; "": WORKDIR/data; docs/tpu.md'),
    cut_prompts=Key(False, TRUE_OR_FALSE, "", "cut longer prompts from the left, instead of leaving them out"),
    strict=Key(
        False, TRUE_OR_FALSE, "", "records that are too long or carry no signal: True: an error; False: left out", "C"
    ),
    shared_prompts=Key(
        "leave out",
        one_of("leave out", "keep"),
        "",
        'prompts that are in two splits; "keep": split by user only; docs/own_data.md',
        "silent",
    ),
    validation=Key(0.05, BELOW_1, "share of users", 'for records without a "split"', "silent"),
    test=Key(0.05, BELOW_1, "share of users", 'for records without a "split"', "silent"),
)

MIXTURE = section(
    "how often each source of records is drawn in training; docs/mixtures.md",
    weights=Key("", TEXT, "", 'shares of the examples, or of the characters of text, such as "hh=2, oasst1=1"'),
    epochs=Key(
        "", TEXT, "", 'relative to that of other sources, such as "hh=0.5"; without effect on sources with weights'
    ),
    temperature=Key(1.0, POSITIVE, "", "T: shares are (size x epochs)^(1 / T); large T: equal shares"),
)

TOKENIZER = section(
    "read from a file, or trained on the pretraining text",
    path=Key("", TEXT, "path", 'a SentencePiece model, tokenizer.json, GGUF file or folder; "" trains the first'),
    vocab_size=Key(50257, INTEGER_FROM_1, "pieces", "of a tokenizer that is trained", "GPT-3's BPE"),
    character_coverage=Key(
        1.0, ABOVE_0_UP_TO_1, "of the text", "whose characters get pieces; the rarest others become bytes"
    ),
    max_documents=Key(100_000, INTEGER_FROM_1, "texts", "that the tokenizer is trained on"),
)

MODEL = section(
    "the policy's network; fields of TransformerConfig in models/config.py",
    num_layers=Key(24, INTEGER_FROM_1, "layers", "L", "GPT-3, table 2.1"),
    d_model=Key(2048, INTEGER_FROM_1, "units", "width of the residual stream", "GPT-3, table 2.1"),
    num_heads=Key(16, INTEGER_FROM_1, "heads", "H", "GPT-3, table 2.1"),
    num_kv_heads=Key(None, INTEGER_OR_NONE, "heads", "of keys and values, shared by groups; None: num_heads", "GPT-3"),
    d_head=Key(128, INTEGER_FROM_1, "units", "D", "GPT-3, table 2.1"),
    d_ff=Key(8192, INTEGER_FROM_1, "units", "width of the feed-forward layer", "GPT-3: 4 d_model"),
    max_length=Key(2048, INTEGER_FROM_1, "tokens", "context", "GPT-3, 2.1"),
    local_window=Key(256, INTEGER_OR_NONE, "tokens", "of local layers; None: dense", "GPT-3: banded; width silent"),
    window_pattern=Key("DL", PATTERN, "", "dense and local layers, repeated", "GPT-3, 2.1: alternating"),
    norm=Key("layer", one_of(*CHOICES["norm"]), "", "LayerNorm; RMSNorm; RMSNorm with a scale of 1 + w", "GPT-3"),
    norm_epsilon=Key(1e-5, POSITIVE, "", "added to the variance or the mean square", "GPT-2's code"),
    norm_placement=Key(
        "pre", one_of(*CHOICES["norm_placement"]), "", "before a sublayer, after it, or both", "GPT-2, 2.3"
    ),
    parallel_residual=Key(False, TRUE_OR_FALSE, "", "both sublayers read the same input", "GPT-3"),
    positions=Key("learned", one_of(*CHOICES["positions"]), "", "embeddings, or rotated queries and keys", "GPT-3"),
    rotary_base=Key(10_000.0, POSITIVE, "", "of the angles' frequencies"),
    rotary_local_base=Key(None, POSITIVE_OR_NONE, "", "of local layers; None: rotary_base"),
    rotary_fraction=Key(1.0, ABOVE_0_UP_TO_1, "share of d_head", "that is rotated"),
    rotary_scaling=Key(
        "", empty_or_one_of(*CHOICES["rotary_scaling"][1:]), "", 'of frequencies for longer contexts; "": none'
    ),
    rotary_factor=Key(1.0, POSITIVE, "", "by which low frequencies are lowered, at least 1"),
    rotary_original_length=Key(None, INTEGER_OR_NONE, "tokens", "the context in training, for llama3 and yarn"),
    rotary_slow=Key(1.0, POSITIVE, "rotations", "in that context, below which frequencies are lowered"),
    rotary_fast=Key(4.0, POSITIVE, "rotations", "in that context, above which frequencies are kept"),
    rotary_amplitude=Key(1.0, POSITIVE, "", "factor on rotated queries and keys, for yarn"),
    activation=Key("gelu_tanh", one_of(*CHOICES["activation"]), "", "of the feed-forward network", "GPT-2's code"),
    gated=Key(False, TRUE_OR_FALSE, "", "the activation multiplies another dense layer: SwiGLU, GeGLU", "GPT-3"),
    biases=Key("all", one_of(*CHOICES["biases"]), "", "dense layers that have one", "GPT-2's code"),
    query_key_norm=Key("none", one_of(*CHOICES["query_key_norm"]), "", "of each head, or of the width of all", "GPT-3"),
    query_scalar=Key(None, POSITIVE_OR_NONE, "", "scores are divided by its root; None: d_head", "GPT-3"),
    score_cap=Key(0.0, AT_LEAST_0, "", "c in c tanh(score / c); 0: none", "GPT-3"),
    logits_cap=Key(0.0, AT_LEAST_0, "", "c in c tanh(logit / c); 0: none", "GPT-3"),
    scaled_embedding=Key(False, TRUE_OR_FALSE, "", "token embeddings times sqrt(d_model)", "GPT-3"),
    dtype=Key("bfloat16", DTYPE, "", "of activations and of the cache", "C: fp16"),
    matmul_dtype=Key("", empty_or_one_of(*DTYPES), "", 'operands of matmuls are rounded to it; "": model.dtype'),
    param_dtype=Key("float32", DTYPE, "", "of parameters and optimizer state", "C: fp32 master weights"),
    tied=Key(True, TRUE_OR_FALSE, "", "logits use the token embedding", "GPT-3"),
    remat=Key(
        "all",
        one_of(*CHOICES["remat"]),
        "",
        "recomputed for gradients: all but these outputs; offload: dense's, on the host",
    ),
    unroll=Key(1, INTEGER_FROM_1, "layers", "per turn of the scan over layers"),
    cache_by_layer=Key(False, TRUE_OR_FALSE, "", "decode without a scan: compiles slower, copies no cache"),
    shard_length=Key(True, TRUE_OR_FALSE, "", 'shard the residual stream by position over the mesh axis "tensor"'),
    logits_chunk=Key(4096, INTEGER_FROM_1, "tokens", "whose logits a device holds at a time in a loss"),
    init_std=Key(0.02, POSITIVE, "", "standard deviation of initial weights", "GPT, 4.1"),
)

OPTIMIZER = section(
    "Adam, in all stages",
    beta1=Key(0.9, BELOW_1, "", "decay of the first moment", "C"),
    beta2=Key(0.95, BELOW_1, "", "decay of the second moment", "C"),
    epsilon=Key(1e-8, POSITIVE, "", "added to the root of the second moment", "silent; GPT-3, B"),
    clip_norm=Key(1.0, POSITIVE, "", "largest norm of a gradient", "silent; GPT-3, B"),
    first_moment_dtype=Key(
        "", empty_or_one_of("bfloat16"), "", '"bfloat16" saves 2 bytes per weight; "": that of the weights', "silent"
    ),
)

LORA = section(
    "low-rank adapters (Hu et al. 2021) in place of all weights, in the stages after pretraining; docs/lora.md",
    rank=Key(0, INTEGER_FROM_0, "units", "r; 0: none, all weights learn", "C: all weights"),
    alpha=Key(16.0, POSITIVE, "", "adapters are multiplied by alpha / rank", "Dettmers et al. 2023: 16"),
    dropout=Key(0.0, BELOW_1, "", "on the input of adapters, in sft, ppo_init and reward"),
    matrices=Key(("*",), NAMES, "patterns", 'of names of kernels: "attention/*"', "Dettmers et al. 2023: all"),
    one_base=Key(True, TRUE_OR_FALSE, "", "four networks of PPO share one base; False: the reward model has its own"),
)

PARALLEL = section(
    "how devices share the work",
    mode=Key("jit", one_of("jit", "pmap"), "", '"jit" over the mesh below, or "pmap" with data parallelism only'),
    data=Key(-1, INTEGER_OR_REST, "devices", "that share batches and replicate weights; -1: all remaining devices"),
    fsdp=Key(-1, INTEGER_OR_REST, "devices", "that share batches and weights; -1: all remaining devices"),
    tensor=Key(1, INTEGER_FROM_1, "devices", "that share heads, hidden units and the vocabulary"),
    shard_optimizer_state=Key(False, TRUE_OR_FALSE, "", 'shard Adam\'s moments over "data" too (ZeRO-1)'),
)


def _intervals(unit: str, about: str, every: int, save_every: int, evaluate_every: int) -> Section:
    return section(
        about,
        every=Key(every, STEPS_BETWEEN_LINES, unit, "between lines of metrics.jsonl"),
        save_every=Key(save_every, INTEGER_FROM_1, unit, "between checkpoints"),
        evaluate_every=Key(evaluate_every, INTEGER_FROM_1, unit, "between evaluations, a multiple of `every`"),
        keep=Key(2, INTEGER_FROM_1, "checkpoints", "kept, in addition to those that a stage needs later"),
        profile_steps=Key(
            0, PROFILED, unit, "to profile after the second of each start; the profile is in WORKDIR/STAGE/profile"
        ),
    )


LOG = _intervals("steps", "what the stages before PPO write", every=20, save_every=100, evaluate_every=100)
PPO_LOG = _intervals("iterations", "what the PPO stages write", every=1, save_every=10, evaluate_every=10)

TRACKING = section(
    "trackers of experiments that get the metrics, next to TensorBoard; docs/tracking.md",
    trackers=Key((), some_of("wandb", "trackio", "mlflow"), "", "from the extra trackers"),
    project=Key("instructjax", TEXT, "", "in which they list the run"),
    run=Key("", TEXT, "", 'name of the run; "": that of WORKDIR'),
)
