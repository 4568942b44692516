"""A run of several processes that takes seconds: test_faults_of_one_process.py starts processes that import it."""

import os

from tests import cpus

os.environ |= cpus.environment(2)  # before JAX makes its devices

import grain  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from etils import epath  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from instructjax.data.pipeline import READ_OPTIONS  # noqa: E402
from instructjax.runs import digest, loop, processes  # noqa: E402
from instructjax.runs.schedule import Schedule  # noqa: E402
from instructjax.training import parallel  # noqa: E402
from instructjax.training.metrics import Mean  # noqa: E402

STEPS = 8


def start(address, index):
    """Connects two processes, and makes the mesh of all devices the current one."""
    processes.HEARTBEAT_SECONDS = 20
    processes.start(address, index, 2)
    jax.set_mesh(parallel.make_mesh((1, jax.device_count(), 1), jax.devices()))
    processes.connect_devices()


@jax.jit
def begin():
    w = jnp.arange(8 * 4096, dtype=jnp.float32).reshape(8, 4096)
    return {"w": jax.lax.with_sharding_constraint(w, P("fsdp")), "step": jnp.int32(0)}


@jax.jit
def step(state, batch, key):
    number = state["step"] + 1
    noise = jax.random.normal(jax.random.fold_in(key, number), state["w"].shape)
    w = 0.9 * state["w"] + noise * jnp.mean(batch.astype(jnp.float32))
    return {"w": w, "step": number}, {"loss": Mean(jnp.sum(w), jnp.float32(w.size))}


def train(directory, *, evaluate=None, made=None):
    """Makes the steps, saves every second one and evaluates every fourth.

    Args:
      directory: of the run.
      evaluate: see `loop.Callbacks`.
      made: a list that receives the number of each step that is made.

    Returns:
      The digests of the last state.
    """
    last = {}

    def noted(state, batch, key):
        state, metrics = step(state, batch, key)
        last.update(state)
        if made is not None:
            made.append(int(state["step"].addressable_data(0)))
        return state, metrics

    loop.run(
        noted,
        begin(),
        lambda: grain.MapDataset.range(7).seed(3).shuffle().repeat().batch(2).to_iter_dataset(READ_OPTIONS),
        jax.random.key(5),
        directory=epath.Path(directory),
        schedule=Schedule(STEPS, every=2, save_every=2, evaluate_every=4, keep=2),
        meta={},
        callbacks=loop.Callbacks(evaluate=evaluate),
    )
    return digest.digests(last)
