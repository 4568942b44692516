"""How fast the four kinds of work are, on random tokens, beside TRL on the same machine if asked.

python experiments/benchmark.py --size=A
python experiments/benchmark.py --size=A --peer=trl --peer_scripts=FOLDER --peer_python=PYTHON

    sft         a step on full rows                                     tokens/s
    reward      a step on rankings of 4, half of each text the prompt   rankings/s (6 comparisons each)
    generation  answers that never end early                            new tokens/s
    ppo         an iteration: rollout, four networks' scores, updates   episodes/s

Every measurement is a process of its own, so that its peak memory is its own, and the sides take turns, so
that what else the machine does meets both. The first steps, which compile, do not count. Prints medians over
rounds, with the load of the machine, and writes them as JSON where --results says.

FOLDER holds the peer's scripts bench_{sft,rm,gen,ppo}.py. Each takes --size, --dtype, --warm, --steps and --budget
(seconds), and writes $PEER_OUT/results/NAME.json with the rate and "peak_rss_mb".
"""

import functools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import command_line
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from instructjax.batch import LMBatch, PromptBatch
from instructjax.data import examples
from instructjax.errors import ConfigError
from instructjax.models.transformer import LanguageModel, ScalarModel, TransformerConfig
from instructjax.rollout import sampling
from instructjax.stages import workspace
from instructjax.stages.ppo_iteration import Frozen, PPOState, make_iteration
from instructjax.training import objectives, optimizer
from instructjax.training import state as train_state
from instructjax.training.step import train_step

SHAPES = {
    "T": dict(vocab_size=64, num_layers=1, d_model=16, num_heads=2, d_head=8, d_ff=32, max_length=128),
    "A": dict(vocab_size=2048, num_layers=4, d_model=256, num_heads=4, d_head=64, d_ff=1024, max_length=256),
    "B": dict(vocab_size=50257, num_layers=12, d_model=768, num_heads=12, d_head=64, d_ff=3072, max_length=512),
}
# Rows of a step; prompt tokens and prompts of generation; episodes and those of a minibatch.
SIZES = {
    "T": dict(sft=2, reward=2, generation=(2, 64), ppo=(4, 2)),
    "A": dict(sft=16, reward=4, generation=(32, 64), ppo=(64, 16)),
    "B": dict(sft=4, reward=1, generation=(8, 128), ppo=(8, 4)),
}
ANSWERS, NEW, PROMPT = 4, 64, (32, 64)  # answers of a ranking, new tokens of an answer, tokens of PPO's prompts
UNITS = {"sft": "tokens", "reward": "rankings", "generation": "new tokens", "ppo": "episodes"}
PEER = {
    "sft": ("bench_sft.py", "tokens_per_s"),
    "reward": ("bench_rm.py", "rankings_per_s"),
    "generation": ("bench_gen.py", "new_tokens_per_s"),
    "ppo": ("bench_ppo.py", "episodes_per_s"),
}
NEVER = -1  # no token: answers do not end

_SIZE = flags.DEFINE_enum("size", "A", sorted(SHAPES), "A: 4 layers of width 256; B: GPT-2, 124M; T: a test.")
_WORK = flags.DEFINE_list("work", list(UNITS), "Which kinds.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each side.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 8, "Steps of each turn.", lower_bound=1)
_RESULTS = flags.DEFINE_string("results", None, "A JSON file to write.")
_PEER = flags.DEFINE_enum("peer", None, ["trl"], "Whom to measure in turn.")
_PEER_SCRIPTS = flags.DEFINE_string("peer_scripts", None, "The folder of the peer's scripts.")
_PEER_PYTHON = flags.DEFINE_string("peer_python", None, "The Python that has the peer's packages.")
_PEER_DTYPE = flags.DEFINE_enum("peer_dtype", "fp32", ["fp32", "bf16"], "The peer's arithmetic.")
_PEER_BUDGET = flags.DEFINE_integer("peer_budget", 30, "Seconds that the peer may wait for a quiet machine.")
_ALONE = flags.DEFINE_enum("alone", None, list(UNITS), "Measures one kind in this process and prints it as JSON.")


def sft(shape, config, size):
    """(step, state, units of a step): cross-entropy of every token of full rows."""
    rows, length = size["sft"], shape.max_length
    tokens = np.random.default_rng(0).integers(3, shape.vocab_size, (rows, length)).astype(np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    batch = LMBatch(tokens, np.ones_like(tokens), positions, (positions > 0).astype(np.float32))
    model = LanguageModel(shape)
    return *training(objectives.language_model_loss(model), model, config, batch), rows * length


def reward(shape, config, size):
    """(step, state, units): rankings whose prompt is half of each text."""
    rng, half = np.random.default_rng(0), shape.max_length // 2
    rows = [
        examples.ranking_row(
            [examples.RankedTokens(*_texts(rng, shape, half), scores=range(ANSWERS))],
            length=half * (1 + ANSWERS), max_prompts=1, max_responses=ANSWERS, pad_id=0,
        )
        for _ in range(size["reward"])
    ]  # fmt: skip
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    model = ScalarModel(shape)
    return *training(objectives.ranking_loss(model), model, config, batch), size["reward"]


def _texts(rng, shape, half):
    prompt, *answers = rng.integers(3, shape.vocab_size, (1 + ANSWERS, half))
    return prompt, answers


def training(loss, model, config, batch):
    """(step, state) of an optimiser's updates on one batch."""
    adam = optimizer.adam(config.optimizer, lambda _: 1e-5, 0.0)
    state = train_state.create(workspace.initial_params(model, jax.random.key(0)), adam)
    step = jax.jit(train_step(loss, adam), donate_argnums=0)
    return lambda state: step(state, batch, jax.random.key(1))[0], state


def generation(shape, config, size):
    """(step, state, units): sampling from prompts that fill their rows; the state is the weights."""
    del config
    rows, width = size["generation"]
    prompts = _prompts(shape, np.full(rows, width), width)
    model = LanguageModel(shape)
    keys = sampling.row_keys(jax.random.key(1), rows)

    @jax.jit
    def sample(params):
        choose = sampling.categorical(keys)
        return sampling.sample(model, params, prompts, choose, max_response=NEW, eos_id=NEVER, pad_id=0).tokens

    def step(params):
        jax.block_until_ready(sample(params))
        return params

    return step, workspace.initial_params(model, jax.random.key(0)), rows * NEW


def _prompts(shape, lengths, width):
    tokens = np.random.default_rng(0).integers(3, shape.vocab_size, (len(lengths), width)).astype(np.int32)
    return PromptBatch(tokens, (np.arange(width) >= width - lengths[:, None]).astype(np.int32))


def ppo(shape, config, size):
    """(step, state, units): an iteration without pretraining text, four networks of one shape."""
    rows, minibatch = size["ppo"]
    config.ppo.update(batch_size=rows, minibatch_size=minibatch)
    low, width = PROMPT
    prompts = _prompts(shape, np.random.default_rng(1).integers(low, width, rows, endpoint=True), width)
    policy, scalar = LanguageModel(shape), ScalarModel(shape)
    params, head = (workspace.initial_params(model, jax.random.key(i)) for i, model in enumerate((policy, scalar)))
    adam = optimizer.adam(config.optimizer, lambda _: 1e-5, 0.0)
    # Copies: the state is donated.
    state = PPOState(
        jnp.zeros((), jnp.int32),
        train_state.create_averaged(jax.tree.map(jnp.copy, params), adam),
        train_state.create(jax.tree.map(jnp.copy, head), adam),
    )
    iterate = make_iteration(policy, scalar, adam, adam, config.ppo, max_response=NEW, eos_id=NEVER, pad_id=0)
    compiled = jax.jit(iterate.whole, donate_argnums=0)
    frozen = Frozen(reference=params, reward=head)
    return lambda state: compiled(state, (prompts, None), jax.random.key(2), frozen)[0], state, rows


def alone(work, config, size, steps):
    """Measures one kind: {"rate", "seconds", "cpu_seconds", "peak_mb"}, medians over steps."""
    make = {"sft": sft, "reward": reward, "generation": generation, "ppo": ppo}[work]
    config = config.copy_and_resolve_references().unlock()
    step, state, units = make(TransformerConfig(**SHAPES[size]), config, SIZES[size])
    laps = []
    for _ in range(2 + steps):
        clock, processor = time.perf_counter(), time.process_time()
        state = jax.block_until_ready(step(state))
        laps.append((time.perf_counter() - clock, time.process_time() - processor))
    seconds, cpu_seconds = (statistics.median(column) for column in zip(*laps[2:], strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rate": units / seconds, "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak}


def ours(work):
    """`alone` in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], f"--alone={work}"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def peer(folder, work):
    """The same work by the peer's script, in its own environment; it leaves what it prepares in the folder."""
    script, rate = PEER[work]
    command = [
        *(_PEER_PYTHON.value, str(epath.Path(_PEER_SCRIPTS.value) / script), f"--size={_SIZE.value}"),
        *(f"--dtype={_PEER_DTYPE.value}", "--warm=2", f"--steps={_STEPS.value}", f"--budget={_PEER_BUDGET.value}"),
    ]
    (epath.Path(folder) / "results").rmtree(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**environment, "PEER_OUT": folder})
    (path,) = (epath.Path(folder) / "results").glob("*.json")
    found = json.loads(path.read_text())
    return {
        "rate": found[rate],
        "seconds": found["all_median_s"],
        "cpu_seconds": found["cpu_s_median"],
        "peak_mb": found["peak_rss_mb"],
    }


def main(config, workdir):
    """Takes turns, and prints a table."""
    del workdir
    if _ALONE.value:
        print(json.dumps(alone(_ALONE.value, config, _SIZE.value, _STEPS.value)))
        return
    if unknown := set(_WORK.value) - set(UNITS):
        raise ConfigError(f"--work: expected kinds among {', '.join(UNITS)}, found {', '.join(sorted(unknown))}")
    if _PEER.value and not (_PEER_SCRIPTS.value and _PEER_PYTHON.value):
        raise ConfigError("--peer: expected --peer_scripts and --peer_python with it, found one or both missing")
    with tempfile.TemporaryDirectory() as folder:
        sides = {"instructjax": ours} | ({_PEER.value: functools.partial(peer, folder)} if _PEER.value else {})
        results = compare(sides)
    if _RESULTS.value:
        epath.Path(_RESULTS.value).write_text(json.dumps(results, indent=2) + "\n")


def compare(sides):
    """Has the sides measure each kind in turn; prints a line for each and returns everything."""
    results = {
        "size": _SIZE.value,
        "command": " ".join(sys.argv),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {jax.default_backend()}",
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
        "load": [os.getloadavg()[0]],
        "work": {},
    }
    print(f"size {_SIZE.value}, {results['machine']}, load {results['load'][0]:.1f}")
    for work in _WORK.value:
        rounds = [{side: measure(work) for side, measure in sides.items()} for _ in range(_ROUNDS.value)]
        medians = {
            side: {name: statistics.median(turn[side][name] for turn in rounds) for name in rounds[0][side]}
            for side in sides
        }
        results["work"][work] = {"rounds": rounds, "medians": medians}
        results["load"].append(os.getloadavg()[0])
        for side, found in medians.items():
            print(
                f"{work:10}  {side:11}  {found['rate']:10.2f} {UNITS[work]}/s  {found['seconds']:8.3f} s a step  "
                f"{found['cpu_seconds']:8.3f} s of processors  {found['peak_mb']:6.0f} MB"
            )
        if _PEER.value:
            one, other = medians["instructjax"], medians[_PEER.value]
            print(f"{work:10}  ratio {one['rate'] / other['rate']:.2f}, memory {one['peak_mb'] / other['peak_mb']:.2f}")
    print(f"load at the end {results['load'][-1]:.1f}")
    return results


if __name__ == "__main__":
    command_line.read(main)
