"""InstructGPT as printed: every key of a recipe, its unit, and where its value comes from.

Reproduces: Ouyang et al. 2022 (arXiv 2203.02155), sections 3.4 and 3.5, appendix C.
Cost:       at 175B, 4.9 petaflop/s-days for SFT and 60 for PPO-ptx (table in section 5).
Expected:   175B PPO-ptx preferred to 175B SFT in 73.4 +- 2 % of the prompts (section 4.1).
Command:    python experiments/reproduce.py --config=configs/instructgpt.py:1p3b \\
                --config.files.text=... --config.files.demonstrations=... \\
                --config.files.rankings=... --config.files.prompts=... --workdir=...

Variants:   1p3b, 6b, 175b: the policy's size. Reward model and value network have 6B in
            all three: run 6b first, and give its reward model to the others as ppo.reward_from.
Planned:    (compiled, not run: docs/scaling.md)
            1p3b on TPU v5e:4x4, parallel.fsdp=4, parallel.tensor=4, ppo.rollout_parts=4, ppo.microbatches=16,
            ppo.frozen_dtype=bfloat16, pretrain.microbatches=16, reward.microbatches=16;
            6b on TPU v5p:4x4x4, parallel.fsdp=8, parallel.tensor=8;
            175b on TPU v5p:8x8x8, parallel.fsdp=16, parallel.tensor=32; SFT, with batches of 8, wants fsdp=8.

The other recipes start from this one and say what they change and why. "Silent" marks a
value that the paper does not give.
"""

import dataclasses

from ml_collections import ConfigDict

from instructjax.models import sizes

# fmt: off
VARIANTS = {
    "1p3b": dict(size="xl", sft_lr=9.65e-6, sft_batch=32, init_lr=5e-6, init_batch=32, ppo_lr=8.06e-6, value_lr=9e-6),
    "6b": dict(
        size="6.7b", sft_lr=9.65e-6, sft_batch=32, init_lr=1.04e-5, init_batch=32, ppo_lr=8.06e-6, value_lr=9e-6
    ),
    "175b": dict(
        size="175b", sft_lr=5.03e-6, sft_batch=8, init_lr=2.45e-6, init_batch=8, ppo_lr=2.55e-6, value_lr=5e-6
    ),
}


def get_config(variant: str = "1p3b") -> ConfigDict:
    """The recipe for one of the paper's three sizes."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/instructgpt.py: expected a variant among {', '.join(VARIANTS)}, found {variant!r}")
    row = VARIANTS[variant]
    gpt3 = sizes.SIZES[row["size"]]
    config = ConfigDict()
    config.seed = 0
    # What a run does where something that must hold does not, such as a ratio of 1 before the first update:
    # "stop" before anything is saved, or "warn"; see docs/invariants.md.
    config.invariants = "stop"

    # When training runs away; all values are silent.
    config.guards = ConfigDict()
    config.guards.max_skipped = 10  # updates in a row skipped, as loss or gradient is not finite, that end the run
    config.guards.action = "warn"  # what the limits below do: "stop" (with exit code 4) or "warn"
    config.guards.max_kl = 100.0  # nats an episode, mean over a batch
    config.guards.min_response_tokens = 1.5  # tokens an answer, EOS included, mean over a batch; 1 is an empty answer

    # Where records come from: exactly one of `files`, `sandbox` and `e2e` is declared.
    config.files = ConfigDict()
    config.files.text = ""  # .jsonl or .jsonl.gz of Text records; commas separate several files
    config.files.demonstrations = ""
    config.files.rankings = ""
    config.files.prompts = ""

    config.data = ConfigDict()
    config.data.separator = "\n\n"  # stands between prompt and response; silent
    config.data.max_prompt = 1024  # tokens, the separator included; C: prompts above 1k are filtered
    config.data.max_response = 1024  # tokens, EOS included; C: responses capped at 1k
    config.data.drop_long = True  # drop (and count) examples above these limits instead of refusing them; C
    config.data.validation = 0.05  # share of users, for records without a "split"; silent
    config.data.test = 0.05  # share of users; silent

    config.tokenizer = ConfigDict()
    config.tokenizer.path = ""  # a SentencePiece model or GPT-2's BPE; "" trains the former on the pretraining text
    config.tokenizer.vocab_size = 50257  # pieces, if trained; GPT-3's BPE has 50,257
    config.tokenizer.max_documents = 100_000  # texts that the tokenizer is trained on

    shape = dataclasses.asdict(sizes.gpt3_config(row["size"]))
    del shape["vocab_size"]  # the tokenizer's
    del shape["dropout"]  # the stage's
    config.model = ConfigDict(shape)  # fields of TransformerConfig
    config.model.local_window = 256  # tokens that odd layers see (GPT-3: banded, width silent); None is dense
    config.model.dtype = "bfloat16"  # of activations; C has fp16
    config.model.matmul_dtype = ""  # the dtype of the factors of matrix products; "" is model.dtype
    config.model.cache_by_layer = False  # a scan compiles many layers sooner
    config.model.remat = True  # recompute each layer's activations in the backward pass
    config.model.logits_chunk = 4096  # tokens whose logits a device holds at a time in a loss

    config.optimizer = ConfigDict()
    config.optimizer.beta1 = 0.9  # C
    config.optimizer.beta2 = 0.95  # C
    config.optimizer.epsilon = 1e-8  # GPT-3, appendix B; silent here
    config.optimizer.clip_norm = 1.0  # GPT-3, appendix B; silent here

    config.parallel = ConfigDict()
    config.parallel.mode = "jit"  # "jit" over the mesh below, or "pmap", with data parallelism only
    # Devices along each axis of the mesh; see models/partitioning.py.
    config.parallel.data = -1  # batches are cut over it, weights are whole; -1: all devices that are left
    config.parallel.fsdp = 1  # batches and weights are cut over it
    config.parallel.tensor = 1  # heads, hidden units and the vocabulary are cut over it
    config.parallel.shard_optimizer_state = False  # cut Adam's moments over "data" too (ZeRO-1)

    config.log = ConfigDict()
    config.log.every = 20  # steps between lines of metrics.jsonl; at most 30, see runs/loop.py
    config.log.save_every = 100  # steps between checkpoints
    config.log.evaluate_every = 100  # steps between measurements on held-out data, a multiple of log.every
    config.log.keep = 2  # checkpoints kept, beside those that a stage needs later

    config.ppo_log = ConfigDict()  # the same for the PPO stages, in iterations
    config.ppo_log.every = 1
    config.ppo_log.save_every = 10
    config.ppo_log.evaluate_every = 10
    config.ppo_log.keep = 2

    pretrain = config.pretrain = ConfigDict()
    pretrain.import_from = ""  # the folder of a GPT-2 with safetensors weights, to take instead of training
    pretrain.length = 2048  # tokens in a window
    # Windows; GPT-3, table 2.1: 1M, 2M and 3.2M tokens, here the nearest multiple of 64 windows, for devices to share.
    pretrain.batch_size = 64 * round(gpt3.batch_tokens / pretrain.length / 64)
    batch_tokens = pretrain.batch_size * pretrain.length
    pretrain.steps = round(300e9 / batch_tokens)  # updates; GPT-3: 300B tokens
    pretrain.learning_rate = gpt3.learning_rate  # GPT-3, table 2.1
    pretrain.warmup_steps = round(375e6 / batch_tokens)  # GPT-3: 375M tokens
    pretrain.final_fraction = 0.1  # GPT-3: cosine to 10 %
    pretrain.weight_decay = 0.1  # GPT-3
    pretrain.dropout = 0.0
    pretrain.microbatches = 1  # parts a batch is computed in

    sft = config.sft = ConfigDict()
    sft.init_from = ""  # a checkpoint folder; "" is WORKDIR/pretrain
    sft.epochs = 16  # C.1
    sft.batch_size = row["sft_batch"]  # demonstrations; C.1
    sft.learning_rate = row["sft_lr"]  # C.1
    sft.final_fraction = 0.1  # C.1: cosine to 10 %, no warm-up
    sft.weight_decay = 0.0  # silent
    sft.dropout = 0.2  # C.1, on residuals
    sft.prompt_weight = 0.0  # weight of the prompt's tokens in the loss; silent, 0 is the usual choice
    sft.candidates = 4  # checkpoints, evenly over the run, that the reward model chooses among; C.1 (number silent)
    sft.selection_prompts = 256  # validation prompts scored for that choice; silent
    sft.microbatches = 1

    comparisons = config.comparisons = ConfigDict()
    comparisons.prompts = 33_207  # Table 6
    comparisons.min_answers = 4  # K; section 3.5
    comparisons.max_answers = 9  # K; section 3.5
    comparisons.temperature = 1.0  # silent

    reward = config.reward = ConfigDict()
    reward.import_from = ""  # the folder of a GPT2ForSequenceClassification with one label, instead of training
    # The size of reward model and value network, of models/sizes.py; "" is the policy's. 6B for all policies (C.2):
    # reward.init_from, or ppo.reward_from, is a checkpoint folder of a run of that size.
    reward.size = "" if variant == "6b" else "6.7b"
    reward.init_from = ""  # "" is WORKDIR/sft; section 3.5
    reward.epochs = 1  # C.2: more overfit
    reward.batch_size = 64  # prompts; C.2
    reward.learning_rate = 9e-6  # C.2
    reward.final_fraction = 0.1  # C.2
    reward.weight_decay = 0.0  # silent
    reward.dropout = 0.0  # silent
    reward.microbatches = 1

    init = config.ppo_init = ConfigDict()
    init.init_from = ""  # "" is WORKDIR/pretrain: a fresh fine-tuning of GPT, not the SFT baseline; C.3
    init.epochs = 2  # C.3
    init.text_share = 0.1  # share of pretraining windows in a batch; C.3
    init.batch_size = row["init_batch"]  # examples: demonstrations and windows; C.3
    init.learning_rate = row["init_lr"]  # C.3
    init.final_fraction = 0.1  # C.3
    init.weight_decay = 0.0  # silent
    init.dropout = 0.2  # silent for this stage; C.1's
    init.prompt_weight = 0.0
    init.microbatches = 1

    ppo = config.ppo = ConfigDict()
    ppo.init_from = ""  # "" is WORKDIR/ppo_init
    ppo.reward_from = ""  # "" is WORKDIR/reward
    # "MODULE:FUNCTION" of (prompts, responses) that gives the rewards instead; see docs/own_reward.md. The value
    # network starts from the reward model all the same.
    ppo.reward_function = ""
    # Of the weights of reference and reward model on the devices; "" is model.param_dtype. "bfloat16" takes half of
    # the memory, and is for networks that compute in it.
    ppo.frozen_dtype = ""
    ppo.iterations = 500  # C.4: 256k episodes in batches of 512
    ppo.batch_size = 512  # episodes of an iteration; C.4
    ppo.minibatch_size = 64  # episodes of an update; C.4
    ppo.microbatches = 1  # parts that the networks read a minibatch in, for scoring and updates, one after the other
    ppo.epochs = 1  # passes over a batch; C.4
    ppo.rollout_parts = 1  # parts a batch is sampled in, one after the other; the cache holds one part
    # Rows that are done before as many prompts take their places, of those of one part that a device has, so that
    # no row waits for the longest response; 0: parts one after the other. Changes no token.
    ppo.rollout_refill = 0
    ppo.temperature = 1.0  # of the rollout; C.4
    ppo.learning_rate = row["ppo_lr"]  # E.9's range is 2.55e-6 to 2.55e-5; the final value is not printed
    ppo.value_learning_rate = row["value_lr"]  # C.4
    ppo.warmup_iterations = 10  # from a tenth of the rate, then constant; C.4
    ppo.weight_decay = 0.0  # silent
    ppo.kl_coefficient = 0.02  # beta; C.4
    ppo.discount = 1.0  # C.4: GAE without discount
    ppo.gae_lambda = 0.95  # silent; the authors' earlier code
    ppo.clip_ratio = 0.2  # C.4
    ppo.clip_value = 0.2  # silent; the authors' earlier code
    # Reward when a response does not end with EOS within max_response; silent (0 leaves the score alone).
    ppo.missing_eos_penalty = 0.0
    ppo.ema_decay = 0.992  # C.4; silent whether per iteration or per update: per iteration here, as it is evaluated
    ppo.ptx_coefficient = 27.8  # gamma of the ppo_ptx stage (C.4), on means over tokens; the ppo stage has 0
    ppo.ptx_examples_per_episode = 8  # windows of pretraining text; C.4
    ppo.ptx_microbatches = 8  # parts that a minibatch's windows are computed in
    ppo.ptx_length = 2048  # tokens of such a window; silent, the full context fits the paper's FLOPs

    evaluate = config.evaluate = ConfigDict()
    evaluate.prompts = 3196  # test prompts; Table 9
    evaluate.judgements = 1  # comparisons by each group of labelers per prompt and model
    evaluate.temperature = 1.0  # silent; appendix F samples InstructGPT at 1
    evaluate.few_shot = 2  # examples in the prefix of GPT (prompted); silent
    evaluate.few_shot_candidates = 4  # prefixes that the reward model chooses among; section 3.5 has two authors' two
    evaluate.batch_size = 256  # prompts sampled at a time
    evaluate.guests = ()  # stages beside the paper's whose policies are judged too, such as "dpo"
    evaluate.text_windows = 512  # validation windows for the loss on pretraining text

    return config.lock()
