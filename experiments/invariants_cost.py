"""What the run-time invariants cost: iterations of PPO with and without them, in turn, at the sandbox's size.

python experiments/invariants_cost.py

Prints the median time of each and the median of the ratios of neighbours. "Without" leaves out what
is measured for the invariants alone: the sampler's log-probabilities and the comparisons with them.
"""

import contextlib
import statistics
import time
from unittest import mock

import command_line
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from instructjax.batch import PromptBatch
from instructjax.models.transformer import LanguageModel, ScalarModel, TransformerConfig
from instructjax.rollout import consistency, sampling
from instructjax.stages import workspace
from instructjax.stages.ppo_iteration import Frozen, PPOState, make_iteration
from instructjax.training import optimizer
from instructjax.training import state as train_state

_ROUNDS = flags.DEFINE_integer("rounds", 15, "Pairs of iterations.")
VOCABULARY = 896  # the sandbox's


@contextlib.contextmanager
def without_invariants():
    """Nothing is computed for the invariants alone."""
    categorical, nothing = sampling.categorical, lambda *_: jnp.zeros(())

    def plain(keys, temperature=1.0):
        choose = categorical(keys, temperature)
        return lambda logits, step: (choose(logits, step)[0], jnp.zeros(logits.shape[0]))  # the rest is dead code

    with (
        mock.patch.object(sampling, "categorical", plain),
        mock.patch.object(consistency, "misplaced", nothing),
        mock.patch.object(consistency, "displaced_score", nothing),
    ):
        yield


def main(config, workdir):
    """Compiles both programs and runs them in turn."""
    del workdir
    shape = TransformerConfig(vocab_size=VOCABULARY, **config.model.to_dict())
    policy, scalar = LanguageModel(shape), ScalarModel(shape)
    params, reward = (workspace.initial_params(model, jax.random.key(i)) for i, model in enumerate((policy, scalar)))
    adam = optimizer.adam(config.optimizer, lambda _: 1e-6, 0.0)
    rows, width = config.ppo.batch_size, config.data.max_prompt
    tokens = np.random.default_rng(0).integers(3, VOCABULARY, (rows, width)).astype(np.int32)
    prompts = PromptBatch(tokens, np.ones_like(tokens), np.arange(rows, dtype=np.int32))
    frozen = Frozen(reference=params, reward=reward)

    def compiled():
        iterate = make_iteration(
            policy, scalar, adam, adam, config.ppo, max_response=config.data.max_response, eos_id=1, pad_id=0
        )
        state = PPOState(
            jnp.zeros((), jnp.int32), train_state.create_averaged(params, adam), train_state.create(reward, adam)
        )
        step = jax.jit(iterate)
        jax.block_until_ready(step(state, (prompts, None), jax.random.key(0), frozen))

        def seconds():
            start = time.perf_counter()
            jax.block_until_ready(step(state, (prompts, None), jax.random.key(0), frozen))
            return time.perf_counter() - start

        return seconds

    with_them = compiled()
    with without_invariants():
        without = compiled()
    pairs = [(with_them(), without()) for _ in range(_ROUNDS.value)]
    ratio = statistics.median(a / b for a, b in pairs) - 1
    print(
        f"PPO iteration, {rows} episodes: {statistics.median(a for a, _ in pairs):.3f} s with invariants, "
        f"{statistics.median(b for _, b in pairs):.3f} s without: {100 * ratio:+.1f} %"
    )


if __name__ == "__main__":
    command_line.read(main)
