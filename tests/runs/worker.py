"""One process of several that train a small network together; test_processes.py starts it.

python tests/runs/worker.py COORDINATOR INDEX COUNT DIRECTORY STEPS FSDP TENSOR ORDER

ORDER: "hosts", or "torus" for a mesh in which the rows of a process are not adjacent, as on a TPU slice.
"""

import functools
import pathlib
import sys

import jax
import ml_collections
import numpy as np
import optax

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from instructjax.data import demonstrations, layouts, pipeline  # noqa: E402
from instructjax.data.layouts import Layout  # noqa: E402
from instructjax.models.transformer import LanguageModel  # noqa: E402
from instructjax.records import Demonstration, Text  # noqa: E402
from instructjax.runs import loop, processes  # noqa: E402
from instructjax.runs.schedule import Schedule  # noqa: E402
from instructjax.training import objectives, parallel  # noqa: E402
from instructjax.training import state as train_state  # noqa: E402
from instructjax.training.step import train_step  # noqa: E402
from tests import fakes  # noqa: E402

T, B = 16, 16
ADAM = optax.adam(1e-2, eps=1e-3)


class Letters:
    """A tokenizer of sixteen letters."""

    vocab_size, pad_id, eos_id, bos = 16, 0, 1, ()

    def encode(self, text):
        return [2 + ord(letter) % 14 for letter in text]

    encode_opening = encode

    def lost(self, text):
        return ""

    def encode_all(self, texts):
        return [self.encode(text) for text in texts]


def batches(share):
    """Returns packed text next to demonstrations, as in pretraining and SFT."""
    rng = np.random.default_rng(0)
    words = ["".join(map(chr, rng.integers(97, 123, size=rng.integers(1, 30)))) for _ in range(40)]
    layout = Layout(Letters(), "=", 8, 8)
    records = [Demonstration(prompt=word[:5], response=word[:7]) for word in words]
    text = pipeline.text_batches(
        [layouts.document_tokens(Text(text=word), Letters()) for word in words],
        Letters(),
        length=T,
        batch_size=B,
        seed=1,
        share=share,
    )
    packed = demonstrations.batches(records, layout, batch_size=2 * B, seed=2, steps=20, multiple=B, share=share)
    return pipeline.zip_batches(text, packed)


def train(directory, steps, config, order="hosts"):
    """Trains to the last step, in a long run almost without lines of metrics.

    It writes the weights as a file that any process count can read.
    """
    model = LanguageModel(fakes.BANDED)
    text_loss = objectives.language_model_loss(model)

    def loss(params, batch, key):
        (text, weight), metrics = text_loss(params, batch[0], key)
        (other, other_weight), _ = text_loss(params, batch[1], key)
        return (text + other, weight + other_weight), metrics

    lines = 2 if steps < 100 else 10_000
    mesh = parallel.on_mesh(config) if order == "hosts" else jax.set_mesh(across_hosts(config))
    with mesh:
        step = train_step(loss, ADAM, axis_name=parallel.axis_name(config.mode))
        begin = functools.partial(train_state.create, optimizer=ADAM)
        loop.run(
            parallel.compile_step(step, config),
            parallel.build(begin, fakes.params(model), shard_optimizer_state=config.shard_optimizer_state),
            lambda: batches(parallel.share_of_rows()),
            jax.random.key(0),
            directory=directory,
            schedule=Schedule(steps, every=lines, save_every=2, evaluate_every=lines, keep=2),
            meta={},
        )


def across_hosts(config):
    """Returns a mesh on which neighbors belong to different processes."""
    devices = np.array(jax.devices()).reshape(jax.process_count(), -1).T.reshape(-1)
    return parallel.make_mesh(parallel.mesh_shape(config, devices.size), list(devices))


def config_of(fsdp, tensor):
    return ml_collections.ConfigDict(
        {"mode": "jit", "data": -1, "fsdp": fsdp, "tensor": tensor, "shard_optimizer_state": False}
    )


if __name__ == "__main__":
    from etils import epath

    processes.HEARTBEAT_SECONDS = 20  # the tests wait for it
    coordinator, index, count, directory, steps, fsdp, tensor, order = sys.argv[1:]
    processes.start(coordinator, int(index), int(count))
    print(f"process {jax.process_index()} of {jax.process_count()}, {jax.device_count()} devices", flush=True)
    train(epath.Path(directory), int(steps), config_of(int(fsdp), int(tensor)), order)
