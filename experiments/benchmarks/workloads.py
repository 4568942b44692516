"""The kinds of work that speed.py measures: for each, a step on random tokens and its number of operations."""

import resource
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from instructjax.algorithms import advantages
from instructjax.algorithms.ppo import Learner, PPOState, make_iteration
from instructjax.batch import LMBatch, PromptBatch
from instructjax.data import layouts
from instructjax.models import flops, lora
from instructjax.models.config import TransformerConfig
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.rollout import sampling
from instructjax.stages import ppo as ppo_stage
from instructjax.stages import trained
from instructjax.stages.adapter_base import lora_config
from instructjax.training import objectives, optimizer
from instructjax.training import state as train_state
from instructjax.training.step import train_step

SHAPES = {
    "T": dict(vocab_size=64, num_layers=1, d_model=16, num_heads=2, d_head=8, d_ff=32, max_length=128),
    "A": dict(vocab_size=2048, num_layers=4, d_model=256, num_heads=4, d_head=64, d_ff=1024, max_length=256),
    "B": dict(vocab_size=50257, num_layers=12, d_model=768, num_heads=12, d_head=64, d_ff=3072, max_length=512),
    "S": dict(
        **dict(vocab_size=49152, num_layers=30, d_model=576, num_heads=9, num_kv_heads=3, d_head=64, d_ff=1536),
        **dict(max_length=256, norm="rms", positions="rotary", activation="silu", gated=True, biases="none"),
    ),
}
# sft, reward: rows per step; generation: prompts, tokens per prompt; ppo: episodes, episodes per minibatch.
SIZES = {
    "T": dict(sft=2, reward=2, generation=(2, 64), ppo=(4, 2)),
    "A": dict(sft=16, reward=4, generation=(32, 64), ppo=(64, 16)),
    "B": dict(sft=4, reward=1, generation=(8, 128), ppo=(8, 4)),
    "S": dict(sft=4, reward=1, generation=(8, 128), ppo=(8, 4)),
}
ANSWERS, NEW, PROMPT = 4, 64, (32, 64)  # answers per ranking, new tokens per answer, range of PPO's prompt lengths
UNITS = {"sft": "tokens", "reward": "rankings", "generation": "new tokens", "ppo": "episodes"}
OPERATIONS = 2 * 2048**3  # of one matmul
NEVER = -1  # an end token that is never sampled


def sft(shape, config, size):
    """Returns (step, state, units per step): cross-entropy on every token of full rows."""
    rows, length = size["sft"], shape.max_length
    model = LanguageModel(shape)
    batch = language_model_batch(shape, rows, length)
    return *training(objectives.language_model_loss(model), model, config, batch), rows * length


def language_model_batch(shape, rows, length):
    """Returns full rows, all of whose tokens count."""
    tokens = _random_tokens(shape, rows, length)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    return LMBatch(tokens, np.ones_like(tokens), positions, (positions > 0).astype(np.float32))


def _random_tokens(shape, *size):
    return np.random.default_rng(0).integers(3, shape.vocab_size, size).astype(np.int32)


def reward(shape, config, size):
    """Returns (step, state, units per step): the ranking loss; the prompt is half of each text."""
    model = ScalarModel(shape)
    batch = ranking_batch(shape, size["reward"], ANSWERS, shape.max_length // 2)
    return *training(objectives.ranking_loss(model), model, config, batch), size["reward"]


def ranking_batch(shape, rows, answers, length):
    """Returns one prompt per row with its answers, each `length` tokens long."""
    texts = _random_tokens(shape, rows, 1 + answers, length)
    made = [
        layouts.ranking_row(
            [layouts.TokenizedRanking(prompt, others, scores=range(answers))],
            length=length * (1 + answers), max_prompts=1, max_responses=answers, pad_id=0,
        )
        for prompt, *others in texts
    ]  # fmt: skip
    return jax.tree.map(lambda *leaves: np.stack(leaves), *made)


def training(loss, model, config, batch):
    """Returns (step, state): optimizer updates on one batch."""
    adam = optimizer.adam(config.optimizer, lambda _: 1e-5, 0.0)
    bases, learned = with_adapters(trained.initial_params(model, jax.random.key(0)), model.config, config)

    def update(state, batch, key, *bases):
        def of_learned(learned, *given):
            return loss(lora.attach(bases[0], learned) if bases else learned, *given)

        return train_step(of_learned, adam)(state, batch, key)

    step = jax.jit(update, donate_argnums=0)
    return lambda state: step(state, batch, jax.random.key(1), *bases)[0], train_state.create(learned, adam)


def with_adapters(params, shape, config):
    """Returns the base, or () if all weights learn, and what learns: with `lora.rank`, fresh adapters and the head."""
    if (adapters := lora_config(config)) is None:
        return (), params
    base, learned = lora.split(lora.attach(params, lora.init(jax.random.key(2), adapters, shape)))
    return (base,), learned


def generation(shape, config, size):
    """Returns (step, state, units per step): sampling from prompts without padding. The state is the parameters."""
    del config
    rows, width = size["generation"]
    prompts = prompt_batch(shape, np.full(rows, width), width)
    model = LanguageModel(shape)
    keys = sampling.row_keys(jax.random.key(1), rows)

    @jax.jit
    def sample(params):
        choose = sampling.categorical()
        episodes, _ = sampling.sample(model, params, prompts, keys, choose, max_response=NEW, eos_id=NEVER, pad_id=0)
        return episodes.tokens

    def step(params):
        jax.block_until_ready(sample(params))
        return params

    return step, trained.initial_params(model, jax.random.key(0)), rows * NEW


def prompt_batch(shape, lengths, width):
    """Returns prompts of these lengths, padded on the left to `width`."""
    tokens = _random_tokens(shape, len(lengths), width)
    segments = (np.arange(width) >= width - lengths[:, None]).astype(np.int32)
    return PromptBatch(jnp.asarray(tokens), jnp.asarray(segments))


def ppo(shape, config, size):
    """Returns (step, state, units per step): a PPO iteration without pretraining text; four networks of one shape."""
    iterate, state, constants = ppo_iteration(shape, config, *size["ppo"], NEW)
    return lambda state: iterate(state, *constants)[0], state, size["ppo"][0]


def ppo_iteration(shape, config, rows, minibatch, response, prompts=None, eos_id=NEVER):
    """Returns (iterate, state, the other arguments) for answers of up to `response` tokens."""
    config.ppo.update(batch_size=rows, minibatch_size=minibatch)
    if prompts is None:
        low, width = PROMPT
        prompts = prompt_batch(shape, np.random.default_rng(1).integers(low, width, rows, endpoint=True), width)
    policy, scalar = LanguageModel(shape), ScalarModel(shape)
    params, head = (trained.initial_params(model, jax.random.key(i)) for i, model in enumerate((policy, scalar)))
    (bases, params), (own, head) = (with_adapters(whole, shape, config) for whole in (params, head))
    if not config.lora.one_base:
        bases += own
    del own
    adam = optimizer.adam(config.optimizer, lambda _: 1e-5, 0.0)
    # Copies: the state is donated.
    state = PPOState(
        jnp.zeros((), jnp.int32),
        train_state.create_averaged(jax.tree.map(jnp.copy, params), adam),
        train_state.create(jax.tree.map(jnp.copy, head), adam),
    )
    parts = Learner(policy, adam), scalar, Learner(scalar, adam), advantages.gae(1.0, 0.95)
    iterate = make_iteration(*parts, config.ppo, max_response=response, eos_id=eos_id, pad_id=0)
    frozen, bases = ppo_stage.freeze(params, head, bases, config.ppo.frozen_dtype or shape.param_dtype)

    def step(state, batch, key, frozen, *bases):
        return iterate.on(bases).step(state, batch, key, frozen)

    return jax.jit(step, donate_argnums=0), state, ((prompts, None), jax.random.key(2), frozen, *bases)


def matmul(shape, config, size):
    """Returns (step, state, Gflop per step): square matmuls, whose rate is the denominator of MFU."""
    del config, size
    mean = (jnp.ones((2048, 2048)) / 2048).astype(shape.matmul_dtype)  # its own square
    product = jax.jit(lambda x: jnp.dot(x, mean, preferred_element_type=jnp.float32).astype(x.dtype))
    return product, mean, OPERATIONS / 1e9


def model_flops(work, size, adapters=None):
    """Returns the operations of one step that the model needs; see `flops.gradient_flops` for `adapters`."""
    shape, size = TransformerConfig(**SHAPES[size]), SIZES[size]
    if work == "sft":
        rows, length = size["sft"], shape.max_length
        forward = flops.forward_flops(shape, rows, length, length)
        return flops.gradient_flops(shape, forward, rows * length, rows * length, adapters)
    if work == "reward":
        half = shape.max_length // 2
        forward = flops.ranking_flops(shape, size["reward"], half, ANSWERS, half)
        return flops.gradient_flops(shape, forward, size["reward"] * half * (1 + ANSWERS), 0, adapters)
    rows, width = size["generation"] if work == "generation" else (size["ppo"][0], sum(PROMPT) // 2)
    sampled = flops.forward_flops(shape, rows, width, 1)
    sampled += (NEW - 1) * flops.forward_flops(shape, rows, 1, 1, slots=width + NEW // 2)
    if work == "generation":
        return sampled
    tokens, outputs = rows * (width + NEW), rows * NEW
    language, scalar = flops.forward_flops(shape, rows, width + NEW, NEW), flops.scalar_flops(shape, rows, width + NEW)
    learned = flops.gradient_flops(shape, language, tokens, outputs, adapters)
    return sampled + 2 * (language + scalar) + learned + flops.gradient_flops(shape, scalar, tokens, 0, adapters)


def measure_here(work, config, size, dtypes, steps):
    """Measures one kind of work in this process: {"rate", "seconds", "cpu_seconds", "peak_mb"}, medians over steps.

    Args:
      work: a kind of UNITS, or "matmul".
      config: the recipe.
      size: a key of SHAPES.
      dtypes: {"dtype", "matmul_dtype"} of the models.
      steps: the number of timed steps, after two that are not timed.
    """
    make = {"sft": sft, "reward": reward, "generation": generation, "ppo": ppo, "matmul": matmul}[work]
    config = config.copy_and_resolve_references().unlock()
    step, state, units = make(TransformerConfig(**SHAPES[size], **dtypes), config, SIZES[size])
    laps = []
    for _ in range(2 + steps):
        clock, processor = time.perf_counter(), time.process_time()
        state = jax.block_until_ready(step(state))
        laps.append((time.perf_counter() - clock, time.process_time() - processor))
    seconds, cpu_seconds = (statistics.median(column) for column in zip(*laps[2:], strict=True))
    on_device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    peak = on_device / 2**20 if on_device else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rate": units / seconds, "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak}
