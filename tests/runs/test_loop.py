"""An interrupted run ends like an uninterrupted one, and a finished one does nothing."""

import concurrent.futures
import json
import os
import signal
import threading
import time
import types

import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from etils import epath

from instructjax.data.pipeline import READ_OPTIONS
from instructjax.errors import CheckpointError, ConfigError, InputError
from instructjax.runs import best, checkpoint, checkpoint_files, loop, metrics_file, reporter, speed
from instructjax.runs.interruption import Interrupted
from instructjax.runs.schedule import Schedule
from instructjax.training import state as train_state
from instructjax.training.metrics import Maximum
from instructjax.training.step import train_step

STEPS = 10
ADAM = optax.adam(0.05)
LOG = ml_collections.ConfigDict({"every": 2, "save_every": 4, "evaluate_every": 4, "keep": 1, "profile_steps": 0})


def initial():
    return train_state.create_averaged({"w": jnp.array([0.5, -1.0, 0.3])}, ADAM)


def loss(params, batch, key):
    # Noise and data both matter: a resumed run must find the place in each.
    target = batch.astype(jnp.float32)[:, None] + jax.random.normal(key, (batch.shape[0], 3))
    error = params["w"] - target
    return (jnp.sum(error**2), jnp.float32(batch.shape[0])), {"largest": Maximum(jnp.abs(error).max())}


@jax.jit
def step(state, batch, key, decay):
    state, found = train_step(loss, ADAM)(state, batch, key)
    return train_state.update_average(state, decay), found


def finish(state):
    return state.replace(params={"w": state.params["w"] + 100.0})


def evaluate(state):
    return {"validation": float(state.params["w"].sum())}


def run(
    directory,
    *,
    step=step,
    evaluate=evaluate,
    finish=finish,
    steps=STEPS,
    keep_steps=(),
    log=LOG,
    draw=None,
    best="",
):
    loop.run(
        step,
        initial(),
        lambda: grain.MapDataset.range(7).seed(3).shuffle().repeat().batch(2).to_iter_dataset(READ_OPTIONS),
        jax.random.key(5),
        directory=epath.Path(directory),
        schedule=Schedule.from_config(ml_collections.ConfigDict(log), steps=steps, keep_steps=keep_steps),
        meta={"name": "test"},
        constants=(0.9,),
        callbacks=loop.Callbacks(evaluate=evaluate, finish=finish, draw=draw, best=best),
    )


def lines(directory):
    return [
        {name: value for name, value in line.items() if name not in speed.MEASURED}
        for line in metrics_file.read(directory / "metrics.jsonl")
    ]


def final_state(directory):
    with checkpoint.Checkpoints(directory / "checkpoints") as checkpoints:
        state, meta = checkpoints.restore(initial())
        assert meta["name"] == "test"
        return state, checkpoints.steps()


def assert_same_run(directory, expected):
    found, steps = final_state(directory)
    wanted, expected_steps = final_state(expected)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert steps == expected_steps
    assert lines(directory) == lines(expected)


class Stopped(Exception):
    pass


def failing_at(function, call, error=Stopped):
    """Wraps the function so that its `call`-th call raises."""
    calls = iter(range(1, 1000))

    def wrapped(*arguments):
        if next(calls) == call:
            raise error
        return function(*arguments)

    return wrapped


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns a run without interruption."""
    directory = tmp_path_factory.mktemp("whole")
    run(directory)
    return directory


def test_what_a_run_leaves(whole):
    state, steps = final_state(whole)
    assert steps == [STEPS] and int(state.step) == STEPS
    found = lines(whole)
    assert [line["step"] for line in found] == [0, 2, 4, 6, 8, 10]
    assert [line["step"] for line in found if "validation" in line] == [0, 4, 8, 10]
    assert all({"loss", "largest", "gradient_norm"} <= set(line) for line in found[1:])
    # The last line was measured before `finish`, the state was saved after it.
    np.testing.assert_allclose(float(state.params["w"].sum()) - 300, found[-1]["validation"], rtol=1e-3)
    seconds = [line["wall_seconds"] for line in metrics_file.read(whole / "metrics.jsonl")]
    assert seconds == sorted(seconds)
    assert json.loads((whole / "summary.json").read_text())["steps"] == STEPS


@pytest.mark.parametrize("call", [1, 6, 9])
def test_interrupted_in_a_step(tmp_path, whole, call):
    with pytest.raises(Stopped):
        run(tmp_path, step=failing_at(step, call))
    assert not (tmp_path / "summary.json").exists()
    run(tmp_path)
    assert_same_run(tmp_path, whole)


def signalling(call, *numbers, function=step):
    """Wraps the step, or another function, so that its `call`-th call sends signals to its own process."""
    calls = iter(range(1, 1000))

    def wrapped(*arguments):
        if next(calls) == call:
            for number in numbers:
                os.kill(os.getpid(), number)
                time.sleep(0.1)  # another thread may have been woken for it
        return function(*arguments)

    return wrapped


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("call", [1, 5, 8, STEPS - 1])
def test_asked_to_stop(tmp_path, whole, call, number):
    """The run saves the current step, even between two lines of metrics, and reports it."""
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"stopped by {number.name} after step {call} of {STEPS}, which is saved"):
        run(tmp_path, step=signalling(call, number))
    assert signal.getsignal(number) is before
    assert final_state(tmp_path)[1] == [call]
    run(tmp_path, step=counting(done := []))
    assert len(done) == STEPS - call
    assert_same_run(tmp_path, whole)


def counting(calls):
    def wrapped(*arguments):
        calls.append(None)
        return step(*arguments)

    return wrapped


@pytest.mark.parametrize(
    "changes",
    [{"step": signalling(STEPS, signal.SIGTERM)}, {"finish": signalling(1, signal.SIGTERM, function=finish)}],
    ids=["in it", "after it"],
)
def test_asked_to_stop_in_the_last_step(tmp_path, whole, changes):
    """The stage is finished, but the next one does not begin."""
    with pytest.raises(Interrupted, match="stopped by SIGTERM after its last step, which is saved"):
        run(tmp_path, **changes)
    assert_same_run(tmp_path, whole)
    run(tmp_path, step=counting(done := []))
    assert not done


def test_a_second_signal_ends_the_run_at_once(tmp_path, whole):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker of pytest-xdist ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, step=signalling(6, signal.SIGINT, signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    run(tmp_path)
    assert_same_run(tmp_path, whole)


def test_no_signals_outside_the_main_thread(tmp_path, whole):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        pool.submit(run, tmp_path).result()
    assert_same_run(tmp_path, whole)


def test_a_damaged_checkpoint_costs_the_steps_since_the_last(tmp_path, whole, capsys):
    with pytest.raises(Stopped):
        run(tmp_path, step=failing_at(step, 10), log={**LOG, "keep": 2})
    (place,) = tmp_path.glob("checkpoints/8/state/d/*")
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 0x10
    place.write_bytes(content)
    run(tmp_path, step=counting(done := []))
    assert len(done) == STEPS - 4 and "continues from step 4" in capsys.readouterr().out
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize("call", [1, 3, 4])
def test_interrupted_in_a_measurement(tmp_path, whole, call):
    with pytest.raises(Stopped):
        run(tmp_path, evaluate=failing_at(evaluate, call))
    run(tmp_path)
    assert_same_run(tmp_path, whole)


def test_interrupted_again_and_again(tmp_path, whole):
    for call in (6, 2, 4):
        with pytest.raises(Stopped):
            run(tmp_path, step=failing_at(step, call))
    with pytest.raises(Stopped):
        run(tmp_path, finish=failing_at(finish, 1))
    run(tmp_path)
    assert_same_run(tmp_path, whole)
    seconds = [line["wall_seconds"] for line in metrics_file.read(tmp_path / "metrics.jsonl")]
    assert seconds == sorted(seconds)


def test_a_clock_that_goes_back(tmp_path, whole, monkeypatch):
    """The clock goes back an hour each second, and starts a day earlier at each restart."""
    began, now = time.monotonic(), time.time()
    for day, call in enumerate((3, 6, 2)):
        monkeypatch.setattr(time, "time", lambda day=day: now - 86_400 * day - 3600 * (time.monotonic() - began))
        with pytest.raises(Stopped):
            run(tmp_path, step=failing_at(step, call), log={**LOG, "keep": 2})
    run(tmp_path)
    assert_same_run(tmp_path, whole)
    seconds = [line["wall_seconds"] for line in metrics_file.read(tmp_path / "metrics.jsonl")]
    assert seconds == sorted(seconds) and seconds[-1] < 600


def test_interrupted_between_the_last_checkpoint_and_the_summary(tmp_path, whole):
    run(tmp_path)
    (tmp_path / "summary.json").unlink()
    run(tmp_path, step=failing_at(step, 1), finish=failing_at(finish, 1))
    assert_same_run(tmp_path, whole)
    assert (tmp_path / "summary.json").exists()


def test_a_longer_run_continues_a_shorter_one(tmp_path, whole):
    run(tmp_path, steps=4, finish=None)
    with pytest.raises(Stopped):
        run(tmp_path, step=failing_at(step, 1))
    assert not (tmp_path / "summary.json").exists()  # it is no longer finished
    run(tmp_path)
    assert_same_run(tmp_path, whole)


def test_a_finished_run_does_nothing(whole):
    def content():
        files = (path for path in whole.rglob("*") if path.is_file())
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = content()
    run(whole, step=failing_at(step, 1), evaluate=failing_at(evaluate, 1), finish=failing_at(finish, 1))
    assert content() == before


@pytest.mark.parametrize(
    ("seconds", "drawn"),
    [
        (0.05, [4, 8, STEPS]),  # the next is due after 2.5 seconds, which are less than the four to the next evaluation
        (0.2, [4, STEPS]),  # the next would be due after ten seconds
    ],
)
def test_drawing_takes_at_most_a_fiftieth_of_the_time(tmp_path, monkeypatch, seconds, drawn):
    """Curves are drawn when there is something new to see. A clock of the test's own: a second for each step."""
    now, seen = [0.0], []
    monkeypatch.setattr(reporter, "time", types.SimpleNamespace(monotonic=lambda: now[0]))

    def timed_step(*arguments):
        now[0] += 1.0
        return step(*arguments)

    def draw():
        now[0] += seconds
        seen.append(lines(tmp_path)[-1]["step"])

    run(tmp_path, step=timed_step, draw=draw)
    assert seen == drawn


def test_the_thread_that_makes_batches_ends_with_the_run(tmp_path):
    def making_batches():
        return [thread.name for thread in threading.enumerate() if "thread-prefetch" in thread.name]

    seen = []
    run(tmp_path, draw=lambda: seen.extend(making_batches()))
    assert seen and not making_batches()


def test_a_line_is_read_when_the_next_step_is_under_way(tmp_path):
    written = {}

    def noting_step(state, *arguments):
        written[int(state.step) + 1] = [line["step"] for line in metrics_file.read(tmp_path / "metrics.jsonl")]
        return step(state, *arguments)

    run(tmp_path, step=noting_step)
    assert written[3] == [0]  # the line of step 2 does not wait for an end of it
    assert written[4] == [0, 2]
    assert written[5] == [0, 2, 4]  # step 4 was measured and saved
    assert [line["step"] for line in lines(tmp_path)] == [0, 2, 4, 6, 8, STEPS]


def test_the_time_to_the_first_step_is_reported(tmp_path):
    def slow_step(state, *arguments):
        if not int(state.step):
            time.sleep(0.3)
        return step(state, *arguments)

    run(tmp_path, step=slow_step)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert 0.3 <= summary["first_step_seconds"] <= summary["wall_seconds"] + 1


def test_a_line_says_how_long_the_devices_waited_for_data_and_how_much_memory_is_in_use(whole):
    _, *written = metrics_file.read(whole / "metrics.jsonl")
    assert all(line["data_wait_seconds"] >= 0 and 0.01 < line["memory_gib"] < 100 for line in written)
    assert all("tokens_per_second" not in line for line in written)  # these batches are no tokens


def test_some_steps_can_be_profiled_and_are_the_same(tmp_path, whole):
    run(tmp_path, log={**LOG, "profile_steps": 3})
    assert list(tmp_path.glob("profile/**/*.xplane.pb"))
    assert not (whole / "profile").exists()
    assert_same_run(tmp_path, whole)


def test_a_profile_of_more_steps_than_there_are_ends_with_the_run(tmp_path):
    run(tmp_path, log={**LOG, "profile_steps": 99})
    assert list(tmp_path.glob("profile/**/*.xplane.pb"))


def test_checkpoints_that_a_later_stage_needs_are_kept(tmp_path):
    run(tmp_path, keep_steps=[4])
    assert final_state(tmp_path)[1] == [4, STEPS]


@pytest.mark.parametrize("call", [2, 4], ids=["in the middle", "after the last step"])
def test_an_evaluation_that_failed_is_made_up_for(tmp_path, whole, call):
    failed = failing_at(evaluate, call, InputError("the judge did not answer"))
    saved = {2: 4, 4: STEPS}[call]
    with pytest.raises(InputError, match=f"^the judge did not answer; step {saved} is saved$"):
        run(tmp_path, evaluate=failed, finish=None)
    assert [line["step"] for line in lines(tmp_path)][-1] < saved  # its line waits for the evaluation
    run(tmp_path, finish=None)
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [line["step"] for line in lines(whole)]
    assert found == lines(whole)


def test_an_evaluation_that_was_made_up_for_is_repeated_if_the_run_stops_before_it_saves(tmp_path, whole):
    with pytest.raises(InputError):
        run(tmp_path, evaluate=failing_at(evaluate, 2, InputError("the judge did not answer")))
    for _ in range(2):
        with pytest.raises(Stopped):
            run(tmp_path, step=failing_at(step, 2))
    run(tmp_path)
    assert_same_run(tmp_path, whole)


def test_fewer_steps_than_are_done_are_refused(tmp_path):
    run(tmp_path, steps=6, finish=None)
    summary = (tmp_path / "summary.json").read_text()
    with pytest.raises(ConfigError) as error:
        run(tmp_path, steps=4)
    expected = f"{tmp_path}: steps: expected at least the 6 that are done, found 4; choose another --workdir"
    assert str(error.value) == expected
    assert (tmp_path / "summary.json").read_text() == summary
    (tmp_path / "summary.json").unlink()
    with pytest.raises(ConfigError):
        run(tmp_path, steps=4)
    assert not (tmp_path / "summary.json").exists()


def test_an_empty_folder_with_the_name_of_a_step_is_not_a_checkpoint(tmp_path, whole):
    with pytest.raises(Stopped):
        run(tmp_path, step=failing_at(step, 6))
    (tmp_path / "checkpoints" / "999").mkdir()
    assert checkpoint_files.saved_steps(tmp_path / "checkpoints") == [4]
    run(tmp_path)
    assert_same_run(tmp_path, whole)


BY_STEP = {0: 9.0, 4: 2.0, 8: 5.0, STEPS: 1.0}  # the initial state has no checkpoint


def rated(state):
    return {"validation_reward": BY_STEP[int(state.step)]}


@pytest.mark.parametrize("stop", [None, 6, 9])
def test_the_best_checkpoint_is_kept_in_addition_to_the_newest(tmp_path, stop):
    if stop:
        with pytest.raises(Stopped):
            run(tmp_path, step=failing_at(step, stop), evaluate=rated, best="validation_reward")
    run(tmp_path, evaluate=rated, best="validation_reward")
    assert final_state(tmp_path)[1] == [8, STEPS]
    assert best.best_step(tmp_path) == 8


def test_a_new_best_is_saved_when_it_is_measured(tmp_path):
    log = {**LOG, "save_every": 100, "evaluate_every": 2}
    rewards = {0: 0.0, 2: 1.0, 4: 3.0, 6: 2.0, 8: 3.0, STEPS: 0.0}
    run(
        tmp_path,
        evaluate=lambda state: {"validation_reward": rewards[int(state.step)]},
        log=log,
        best="validation_reward",
    )
    assert final_state(tmp_path)[1] == [4, STEPS] and best.best_step(tmp_path) == 4


def test_a_stage_without_evaluations_has_no_best_checkpoint(whole):
    with pytest.raises(CheckpointError, match="expected a checkpoint with validation_reward, found none$"):
        best.best_step(whole)
