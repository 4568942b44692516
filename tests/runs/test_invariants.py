"""The limits of invariants, the errors of violations, and that no violating state is saved."""

import functools
import math

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from instructjax.data.pipeline import READ_OPTIONS
from instructjax.errors import InvariantError
from instructjax.runs import checkpoint, invariants, loop, metrics_file
from instructjax.runs.schedule import Schedule
from instructjax.training import state as train_state
from instructjax.training.metrics import Mean
from instructjax.training.step import train_step

SGD = optax.sgd(0.1)
STOP = functools.partial(invariants.enforce, precision="float32", action="stop")
WARN = functools.partial(invariants.enforce, precision="float32", action="warn")


@pytest.mark.parametrize("name", invariants.INVARIANTS)
@given(st.floats(0, 1e9), st.sampled_from(["float32", "low"]))
def test_a_value_above_its_limit_is_a_violation(name, value, precision):
    invariant = invariants.INVARIANTS[name]
    limit = invariant.limit if precision == "float32" else invariant.low_precision_limit
    lines = invariants.violations({name: value, "reward": -value}, precision)
    assert len(lines) == (value > limit)
    assert all(line.startswith(f"{name}: expected at most ") and invariant.meaning in line for line in lines)


@given(st.sampled_from([math.nan, math.inf, -math.inf]), st.sampled_from(["loss", *invariants.INVARIANTS]))
def test_every_metric_must_be_finite(value, name):
    (line,) = invariants.violations({"reward": 1.0, name: value}, "low")
    assert line.startswith(f"{name}: expected a finite number, found {value}")


def test_all_violations_are_in_one_line():
    with pytest.raises(InvariantError) as error:
        STOP("ppo, step 3", {"mask_mismatches": 2.0, "loss": math.nan, "reward": 0.5})
    first, second = str(error.value).split("; ppo, step 3: ")
    assert first.startswith("ppo, step 3: mask_mismatches: expected at most 0, found 2: masks")
    assert second.startswith("loss: expected a finite number, found nan")


def test_precision_is_measured_on_this_machine():
    assert jax.default_backend() == "cpu"
    assert invariants.precision("float32") == "float32"
    assert invariants.precision("bfloat16") == invariants.precision("float16") == "low"


def test_low_precision_is_never_stricter():
    assert all(one.limit <= one.low_precision_limit for one in invariants.INVARIANTS.values())


def run(directory, check_metrics, *, numbers=range(10), constants=(), spoil=lambda *_: None):
    """Runs ten steps with a checkpoint every second step, and `spoil(step, constants)` before each."""

    def loss(params, batch, key):
        del key
        sound = jnp.where(jnp.isfinite(batch), batch, 0.0)  # the update is made, and a metric is wrong
        rows = jnp.float32(batch.shape[0])
        return (jnp.sum((params["w"] - sound) ** 2), rows), {"reward": Mean(jnp.sum(batch), rows)}

    compiled = jax.jit(train_step(loss, SGD))

    def step(state, batch, key, *constants):
        spoil(int(state.step) + 1, constants)
        return compiled(state, batch, key)

    loop.run(
        step,
        train_state.create({"w": jnp.zeros(())}, SGD),
        lambda: (
            grain.MapDataset.source([np.float32(number) for number in numbers]).batch(1).to_iter_dataset(READ_OPTIONS)
        ),
        jax.random.key(0),
        directory=epath.Path(directory) / "test",
        schedule=Schedule(steps=10, every=2, save_every=2, evaluate_every=2, keep=9),
        meta={},
        constants=constants,
        callbacks=loop.Callbacks(check_metrics=check_metrics),
    )


def saved(directory):
    """Returns (steps of checkpoints, steps of lines of metrics)."""
    with checkpoint.Checkpoints(directory / "test" / "checkpoints") as checkpoints:
        return checkpoints.steps(), [line["step"] for line in metrics_file.read(directory / "test" / "metrics.jsonl")]


def test_nothing_is_saved_if_a_metric_is_nan(tmp_path):
    numbers = [0, 1, 2, 3, 4, math.nan, 6, 7, 8, 9]  # in step 6
    with pytest.raises(InvariantError, match="test, step 6: reward: expected a finite number, found nan"):
        run(tmp_path, STOP, numbers=numbers)
    assert saved(tmp_path) == ([2, 4], [2, 4])


def test_after_a_warning_the_run_continues(tmp_path, capsys):
    run(tmp_path, WARN, numbers=[0, 1, 2, 3, 4, math.inf, 6, 7, 8, 9])
    assert saved(tmp_path) == ([2, 4, 6, 8, 10],) * 2
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: test, step ")]
    assert any(
        line.startswith("warning: test, step 6: reward: expected a finite number, found inf") for line in warnings
    )
    assert not any(line.startswith(("warning: test, step 2:", "warning: test, step 4:")) for line in warnings)


class TestFrozenWeights:
    def test_unchanged(self, tmp_path):
        run(tmp_path, STOP, constants=({"reference": np.ones(3)},))
        assert saved(tmp_path)[0][-1] == 10

    @pytest.mark.parametrize("number", [1, 10])
    def test_written_in_place(self, tmp_path, number):
        """One step changes one element of a host array, whose memory compiled steps may share."""

        def write(step, constants):
            if step == number:
                constants[0]["reference"][1] += 1e-6

        with pytest.raises(InvariantError, match="^test, step 10: frozen_changes: expected at most 0, found 1"):
            run(tmp_path, STOP, constants=({"reference": np.ones(3), "reward": np.ones(3)},), spoil=write)
        assert saved(tmp_path) == ([2, 4, 6, 8],) * 2

    def test_replaced(self, tmp_path):
        """A trained network replaces a frozen one."""

        def replace(step, constants):
            constants[0]["reference"] = jnp.full(3, 1.0 + step)

        with pytest.raises(InvariantError, match="^test, step 10: frozen_changes: expected at most 0, found 1"):
            run(tmp_path, STOP, constants=({"reference": jnp.ones(3), "reward": jnp.ones(3)},), spoil=replace)
