"""The rates in a line of metrics are those of its own steps, without compilation and evaluation."""

import types

import jax
import ml_collections
import numpy as np

from instructjax import accelerators, batch
from instructjax.runs import speed as speed_lib
from instructjax.runs.speed import Matmuls, Speed
from instructjax.training import parallel


class Clock:
    """A clock that a test moves."""

    seconds = 0.0

    def __call__(self):
        return self.seconds


def rows(tokens):
    """Returns a batch with this many tokens, and as much padding."""
    segments = np.repeat([1, 0], tokens)[None]
    return batch.PromptBatch(np.zeros_like(segments), segments)


def test_tokens_are_counted_without_padding_in_every_part_of_a_batch():
    assert batch.count_tokens(rows(7)) == 7
    assert batch.count_tokens((rows(3), rows(4), None, np.ones(5))) == 7


def test_a_line_counts_its_own_steps():
    clock = Clock()
    speed = Speed(clock=clock)

    def step(tokens):
        with speed.waiting():
            clock.seconds += 0.5
        speed.count(rows(tokens), 1)

    step(10)
    clock.seconds += 60  # compilation
    speed.restart()

    step(30)
    clock.seconds += 1.5
    counted = speed.cut()
    step(100)  # the next step begins before the line is read
    clock.seconds += 0.5
    speed.arrived()
    clock.seconds += 40  # evaluation
    found = speed.values(counted, {})
    assert (found["tokens_per_second"], found["data_wait_seconds"]) == (10.0, 0.5)

    clock.seconds += 4
    speed.arrived()
    found = speed.values(speed.cut(), {})
    assert (found["tokens_per_second"], found["data_wait_seconds"]) == (25.0, 0.5)


def test_mfu_is_the_share_of_the_peak_that_the_steps_of_a_line_reach(monkeypatch):
    monkeypatch.setattr(speed_lib, "peak_flops", {"bfloat16": 100.0}.get)
    for dtype, expected in {"bfloat16": 1.0, "float32": None}.items():  # no peak is known for the latter
        clock = Clock()
        speed = Speed(
            Matmuls(lambda batch, step: lambda metrics: metrics["scale"] * batch.segments.sum() * step, dtype), clock
        )
        speed.count(rows(10), 2)
        speed.count(rows(20), 1)
        clock.seconds += 2
        counted = speed.cut()
        speed.arrived()
        assert speed.values(counted, {"scale": 5.0}).get("mfu") == expected


class TestPeak:
    def test_chips_have_their_published_peak(self, monkeypatch):
        device = types.SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
        monkeypatch.setattr(jax, "devices", lambda: [device] * 4)
        monkeypatch.setattr(jax, "device_count", lambda: 4)
        assert speed_lib.peak_flops.__wrapped__("bfloat16") == 4 * accelerators.CHIPS["v5e"].peak
        device.device_kind = "TPU v99"
        assert speed_lib.peak_flops.__wrapped__("bfloat16") is None

    def test_a_cpu_counts_once_at_the_rate_that_it_reaches(self):
        found = speed_lib.peak_flops.__wrapped__("float32")
        assert 1e8 < found < 1e14

    def test_it_is_measured_within_the_mesh_of_a_run(self):
        with parallel.on_mesh(ml_collections.ConfigDict({"mode": "jit", "data": 2, "fsdp": 2, "tensor": 2})):
            assert speed_lib.peak_flops.__wrapped__("bfloat16") > 0

    def test_every_kind_of_device_belongs_to_one_chip(self):
        kinds = [kind for chip in accelerators.CHIPS.values() for kind in chip.kinds]
        assert len(set(kinds)) == len(kinds) > len(accelerators.CHIPS)
