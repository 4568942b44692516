"""Divergence: gradients that are not finite never reach the weights, and limits warn or stop."""

import functools
import math

import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import instructgpt
from instructjax.data.pipeline import READ_OPTIONS
from instructjax.errors import DivergenceError, RunError
from instructjax.runs import checkpoint_files, guards, loop, metrics_file
from instructjax.runs.schedule import Schedule
from instructjax.training import state as train_state
from instructjax.training.metrics import Maximum, Mean, compute
from instructjax.training.step import train_step

ADAM = optax.adam(0.1)
KEY = jax.random.key(0)
FAULTS = (math.nan, math.inf, -math.inf)
SECTION = instructgpt.get_config().guards


def loss(params, batch, key):
    """Computes squares. A number that is not finite spoils the gradient, and one in "added" only the loss."""
    del key
    value = jnp.sum(jnp.square(params["w"] - batch["x"]))
    metrics = {"error": Mean(value, jnp.float32(batch["x"].size)), "largest": Maximum(jnp.abs(batch["x"]).max())}
    return (value + batch["added"].sum(), jnp.float32(batch["x"].size)), metrics


@functools.cache
def compiled(microbatches):
    return jax.jit(train_step(loss, ADAM, microbatches=microbatches))


def batch_of(number, place=None, fault=None):
    batch = {"x": np.full((4,), number, np.float32), "added": np.zeros((4,), np.float32)}
    if place:
        batch[place][2] = fault
    return batch


def trained(batches, microbatches):
    state = train_state.create({"w": jnp.float32(0.5)}, ADAM)
    found = []
    for batch in batches:
        state, metrics = compiled(microbatches)(state, batch, KEY)
        found.append(jax.device_get(metrics))
    return state, found


faults = st.tuples(st.sampled_from(["x", "added"]), st.sampled_from(FAULTS))


@given(st.lists(st.tuples(st.integers(-5, 5), st.none() | faults), min_size=1, max_size=12), st.sampled_from([1, 2]))
@settings(max_examples=60, deadline=None)
def test_skipped_batches_do_not_affect_the_result(plan, microbatches):
    state, found = trained([batch_of(number, *(fault or ())) for number, fault in plan], microbatches)
    sound = [batch_of(number) for number, fault in plan if fault is None]
    expected, alone = trained(sound, microbatches)
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.opt_state), (expected.params, expected.opt_state))
    assert int(state.step) == len(plan)

    in_a_row = 0
    for (_, fault), one in zip(plan, found, strict=True):
        in_a_row = in_a_row + 1 if fault else 0
        assert (one["skipped"].total, one["skipped"].weight) == (float(fault is not None), 1.0)
        assert one["skipped_in_a_row"].value == in_a_row
    assert int(state.skipped) == in_a_row

    values = compute(found)
    assert values["skipped"] == pytest.approx(sum(fault is not None for _, fault in plan) / len(plan))
    skips = {"skipped", "skipped_in_a_row"}
    others = {name: value for name, value in values.items() if name not in skips}
    assert all(map(math.isfinite, others.values()))
    expected = compute(alone) if alone else {}
    assert others == pytest.approx({name: value for name, value in expected.items() if name not in skips})


def run(directory, broken, *, steps=12, max_skipped=3, every=2):
    """Runs twelve steps on 0, 1, 2, ...; the steps in `broken` get NaN."""
    ranges = guards.from_config(ml_collections.ConfigDict({**SECTION.to_dict(), "max_skipped": max_skipped}))
    numbers = [batch_of(n, *(("x", math.nan) if n in broken else ())) for n in range(steps)]
    loop.run(
        compiled(1),
        train_state.create({"w": jnp.float32(0.5)}, ADAM),
        lambda: grain.MapDataset.source(numbers).repeat().to_iter_dataset(READ_OPTIONS),
        KEY,
        directory=epath.Path(directory) / "test",
        schedule=Schedule(steps, every, save_every=4, evaluate_every=every, keep=1),
        meta={},
        callbacks=loop.Callbacks(check_metrics=lambda place, values: guards.enforce(place, values, ranges, "warn")),
    )


def test_a_run_continues_after_skipped_updates_and_counts_them(tmp_path):
    run(tmp_path, {2, 3, 7})
    lines = {line["step"]: line for line in metrics_file.read(tmp_path / "test" / "metrics.jsonl")}
    assert [lines[step]["skipped"] for step in (2, 4, 6, 8)] == [0.0, 1.0, 0.0, 0.5]
    assert "loss" not in lines[4] and math.isfinite(lines[8]["loss"])
    assert lines[4]["skipped_in_a_row"] == 2.0


@pytest.mark.parametrize("every", [1, 4])
def test_too_many_in_a_row_stop_the_run_and_the_last_good_checkpoint_is_named(tmp_path, every):
    with pytest.raises(DivergenceError) as error:
        run(tmp_path, {5, 6, 7}, every=every)
    good = tmp_path / "test" / "checkpoints" / "4"
    assert str(error.value).startswith("test, step 8: skipped_in_a_row is 3, and guards.max_skipped is reached: ")
    assert str(error.value).endswith(f"; the last good checkpoint is {good}")
    assert checkpoint_files.saved_steps(tmp_path / "test" / "checkpoints") == [4]

    # Started again, the run gets the same batches and stops at the same step.
    with pytest.raises(DivergenceError, match="step 8"):
        run(tmp_path, {5, 6, 7}, every=every)


def test_a_run_of_skips_is_counted_across_an_interruption(tmp_path):
    run(tmp_path, {2, 3, 4, 5}, steps=4, max_skipped=4)  # saved in the middle of it
    with pytest.raises(DivergenceError, match="step 6: skipped_in_a_row is 4"):
        run(tmp_path, {2, 3, 4, 5}, steps=12, max_skipped=4)


def test_without_a_checkpoint_the_error_says_so(tmp_path):
    with pytest.raises(DivergenceError, match="; no checkpoint was saved$"):
        run(tmp_path, {0, 1, 2})


LIMITS = {
    "max_kl": 10.0,
    "min_response_tokens": 2.0,
    "max_missing_eos": 0.9,
    "min_entropy": 0.01,
    "max_skipped": 3,
    "action": "stop",
}
RANGES = guards.from_config(ml_collections.ConfigDict(LIMITS))


@given(kl=st.floats(-5, 50), tokens=st.floats(1, 50), skipped=st.integers(0, 6))
def test_a_metric_outside_its_range_stops_the_run(kl, tokens, skipped):
    values = {"kl": kl, "response_tokens": tokens, "value_skipped_in_a_row": float(skipped), "loss": 1e9}
    wrong = kl > 10 or tokens < 2 or skipped >= 3
    try:
        guards.enforce("ppo, step 3", values, RANGES, "stop")
        assert not wrong
    except DivergenceError as error:
        assert wrong and isinstance(error, RunError)
        assert str(error).startswith("ppo, step 3: ") and "guards." in str(error)


def test_a_warning_names_the_key_and_the_run_continues(capsys):
    guards.enforce("ppo, step 3", {"kl": 11.0, "response_tokens": 1.25}, RANGES, "warn")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("warning: ppo, step 3: kl is 11, and guards.max_kl is reached: ")
    assert second.startswith("warning: ppo, step 3: response_tokens is 1.25, and guards.min_response_tokens is reached")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("missing_eos", 0.95, "guards.max_missing_eos is reached: the policy's answers no longer end"),
        ("entropy", 0.001, "guards.min_entropy is reached: the policy's entropy has collapsed"),
    ],
)
def test_answers_that_never_end_and_a_collapsed_entropy_are_told(name, value, message, capsys):
    guards.enforce("ppo, step 3", {"missing_eos": 0.5, "entropy": 2.0, name: value}, RANGES, "warn")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"warning: ppo, step 3: {name} is {value}, and {message}")
