"""The keys of a recipe that describe data, networks, devices and reports.

Each line is a key: the paper's value for 1.3B (or the default, if the paper does not have the key), its range, its unit,
what it means, and where the value comes from.
"""

from __future__ import annotations

from instructjax.recipe.key import (
    AT_LEAST_0,
    AT_LEAST_0_OR_INFINITY,
    BELOW_1,
    INTEGER_FROM_0,
    INTEGER_FROM_1,
    INTEGER_OR_NONE,
    INTEGER_OR_REST,
    NAMES,
    POSITIVE,
    SEED,
    TEXT,
    TRUE_OR_FALSE,
    Key,
    one_of,
    section,
)

# fmt: off
ROOT = section(
    "The recipe itself.",
    seed=Key(0, SEED, "", "of all randomness"),
    invariants=Key("stop", one_of("stop", "warn"), "", "what a run does if something that must hold does not, such as a ratio of 1 before the first update: stop before anything is saved, or warn; docs/invariants.md"),
)

GUARDS = section(
    "When training runs away.",
    max_skipped=Key(10, INTEGER_FROM_1, "updates", "skipped in a row, because loss or gradient is not finite, that end the run", "silent"),
    action=Key("warn", one_of("stop", "warn"), "", "what the limits below do; stop leaves with exit code 4"),
    max_kl=Key(100.0, AT_LEAST_0_OR_INFINITY, "nats an episode", "limit of the KL from the initial policy, mean over a batch", "silent"),
    min_response_tokens=Key(1.5, AT_LEAST_0_OR_INFINITY, "tokens", "limit of an answer's length, EOS included, mean over a batch; 1 is an empty answer", "silent"),
)

FILES = section(
    "Records of your own: .jsonl or .jsonl.gz, several files separated by commas.",
    text=Key("", TEXT, "", "files of Text records"),
    demonstrations=Key("", TEXT, "", "files of Demonstration records"),
    rankings=Key("", TEXT, "", "files of Ranking records"),
    prompts=Key("", TEXT, "", "files of Prompt records"),
)

DATA = section(
    "How records become tokens, and how they are split.",
    separator=Key("\n\n", TEXT, "", "stands between prompt and response", "silent"),
    max_prompt=Key(1024, INTEGER_FROM_1, "tokens", "longest prompt, the separator included", "C: prompts above 1k are filtered"),
    max_response=Key(1024, INTEGER_FROM_1, "tokens", "longest response, EOS included", "C: responses capped at 1k"),
    drop_long=Key(True, TRUE_OR_FALSE, "", "drop (and count) records above these limits instead of refusing them", "C"),
    validation=Key(0.05, BELOW_1, "share", "of users in the validation split, for records without a split", "silent"),
    test=Key(0.05, BELOW_1, "share", "of users in the test split", "silent"),
)

TOKENIZER = section(
    "The tokenizer.",
    path=Key("", TEXT, "", "a SentencePiece model or GPT-2's BPE; \"\" trains the former on the pretraining text"),
    vocab_size=Key(50257, INTEGER_FROM_1, "pieces", "if trained", "GPT-3's BPE"),
    max_documents=Key(100_000, INTEGER_FROM_1, "texts", "that the tokenizer is trained on"),
)

MODEL = section(
    "The policy's network: fields of models/config.py::TransformerConfig.",
    num_layers=Key(24, INTEGER_FROM_1, "layers", "blocks of attention and feed-forward", "GPT-3, table 2.1"),
    d_model=Key(2048, INTEGER_FROM_1, "", "width of the residual stream", "GPT-3, table 2.1"),
    num_heads=Key(16, INTEGER_FROM_1, "heads", "of attention; the printed 24 does not make up the width", "GPT-3, table 2.1"),
    d_head=Key(128, INTEGER_FROM_1, "", "width of a head", "GPT-3, table 2.1"),
    d_ff=Key(8192, INTEGER_FROM_1, "", "hidden units of the feed-forward layer", "GPT-3, section 2.1: 4 d_model"),
    max_length=Key(2048, INTEGER_FROM_1, "tokens", "context", "GPT-3, section 2.1; C: 2k"),
    tied=Key(True, TRUE_OR_FALSE, "", "the unembedding is the embedding", "GPT-2"),
    local_window=Key(256, INTEGER_OR_NONE, "tokens", "that odd layers see; None is dense", "GPT-3: banded, width silent"),
    init_std=Key(0.02, POSITIVE, "", "standard deviation of the initial weights", "GPT-2"),
    dtype=Key("bfloat16", TEXT, "", "of activations", "C has fp16"),
    matmul_dtype=Key("", TEXT, "", "of the factors of matrix products, whose sums are float32; \"\" is model.dtype"),
    param_dtype=Key("float32", TEXT, "", "of weights"),
    remat=Key(True, TRUE_OR_FALSE, "", "recompute each layer's activations in the backward pass"),
    unroll=Key(1, INTEGER_FROM_1, "layers", "of the scan that are compiled side by side"),
    shard_length=Key(True, TRUE_OR_FALSE, "", "cut the residual stream along the sequence over \"tensor\""),
    logits_chunk=Key(4096, INTEGER_FROM_1, "tokens", "whose logits a device holds at a time in a loss"),
    cache_by_layer=Key(False, TRUE_OR_FALSE, "", "a decoding cache of its own for each layer; a scan compiles many layers sooner"),
)

OPTIMIZER = section(
    "Adam.",
    beta1=Key(0.9, BELOW_1, "", "decay of the first moment", "C"),
    beta2=Key(0.95, BELOW_1, "", "decay of the second moment", "C"),
    epsilon=Key(1e-8, POSITIVE, "", "added to the root of the second moment", "silent; GPT-3, appendix B"),
    clip_norm=Key(1.0, POSITIVE, "", "largest global norm of a gradient", "silent; GPT-3, appendix B"),
)

PARALLEL = section(
    "How devices share the work; models/partitioning.py.",
    mode=Key("jit", TEXT, "", "\"jit\" over the mesh below, or \"pmap\", with data parallelism only"),
    data=Key(-1, INTEGER_OR_REST, "devices", "over which batches are cut and weights are whole; -1: all that are left"),
    fsdp=Key(1, INTEGER_FROM_1, "devices", "over which batches and weights are cut"),
    tensor=Key(1, INTEGER_FROM_1, "devices", "over which heads, hidden units and the vocabulary are cut"),
    shard_optimizer_state=Key(False, TRUE_OR_FALSE, "", "cut Adam's moments over \"data\" too (ZeRO-1)"),
)

LOG = section(
    "What a stage reports and saves, in steps.",
    every=Key(20, INTEGER_FROM_1, "steps", "between lines of metrics.jsonl; at most 30"),
    save_every=Key(100, INTEGER_FROM_1, "steps", "between checkpoints"),
    evaluate_every=Key(100, INTEGER_FROM_1, "steps", "between measurements on held-out data; a multiple of log.every"),
    keep=Key(2, INTEGER_FROM_1, "checkpoints", "kept, besides those that a stage needs later"),
)

PPO_LOG = section(
    "The same for the PPO stages, in iterations.",
    every=Key(1, INTEGER_FROM_1, "iterations", "between lines of metrics.jsonl; at most 30"),
    save_every=Key(10, INTEGER_FROM_1, "iterations", "between checkpoints"),
    evaluate_every=Key(10, INTEGER_FROM_1, "iterations", "between measurements on held-out data; a multiple of ppo_log.every"),
    keep=Key(2, INTEGER_FROM_1, "checkpoints", "kept"),
)

EVALUATE = section(
    "The evaluation (section 4.1).",
    prompts=Key(3196, INTEGER_FROM_1, "prompts", "of the test split", "Table 9"),
    judgements=Key(1, INTEGER_FROM_1, "comparisons", "by each group of labelers per prompt and model"),
    temperature=Key(1.0, AT_LEAST_0, "", "of the samples; 0 is greedy", "silent; appendix F samples InstructGPT at 1"),
    few_shot=Key(2, INTEGER_FROM_0, "examples", "in the prefix of GPT (prompted)", "silent"),
    few_shot_candidates=Key(4, INTEGER_FROM_1, "prefixes", "that the reward model chooses among", "3.5 has two authors' two"),
    batch_size=Key(256, INTEGER_FROM_1, "prompts", "sampled at a time"),
    guests=Key((), NAMES, "", "stages besides the paper's whose policies are judged too, such as \"dpo\""),
    text_windows=Key(512, INTEGER_FROM_1, "windows", "of validation text for the loss on pretraining text"),
)
# fmt: on
