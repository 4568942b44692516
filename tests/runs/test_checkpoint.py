import functools
import json
import signal
import subprocess
import sys
import textwrap

import flax.struct
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from instructjax.data.pipeline import READ_OPTIONS
from instructjax.errors import CheckpointError, ConfigError, DamagedCheckpointError, TokenizerError
from instructjax.runs import checkpoint, checkpoint_files
from instructjax.training import state
from tests import cpus

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))


def params(width=3, dtype=jnp.float32):
    kernel = jax.random.normal(jax.random.key(width), (2, width))
    return {"embed": {"kernel": kernel.astype(dtype)}, "bias": jnp.arange(width, dtype=jnp.bfloat16)}


@jax.jit
def updated(current):
    gradients = jax.tree.map(jnp.cos, current.params)
    return state.update_average(state.apply_gradients(current, gradients, OPTIMIZER, True), 0.9)


@functools.cache
def train_state(width=3, updates=2):
    return updated(train_state(width, updates - 1)) if updates else state.create_averaged(params(width), OPTIMIZER)


def assert_identical(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def abstract(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def message(error):
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.fixture
def saved(tmp_path):
    with checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(2, train_state(updates=2), meta={"fingerprint": "abc"})
        checkpoints.save(5, train_state(updates=5), meta={"fingerprint": "abc", "at": 5})
    return tmp_path / "run"


class TestResume:
    @pytest.mark.parametrize("template", [train_state(updates=0), abstract(train_state())], ids=["arrays", "abstract"])
    def test_the_newest_state_is_restored_bit_for_bit(self, saved, template):
        with checkpoint.Checkpoints(saved) as checkpoints:
            restored, meta = checkpoints.restore(template)
        assert_identical(restored, train_state(updates=5))
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored))
        assert meta == {"fingerprint": "abc", "at": 5}

    def test_an_older_step_can_be_chosen(self, saved):
        with checkpoint.Checkpoints(saved) as checkpoints:
            restored, meta = checkpoints.restore(train_state(), step=2)
        assert_identical(restored, train_state(updates=2))
        assert meta == {"fingerprint": "abc"}

    def test_a_numpy_template_restores_numpy_arrays(self, saved):
        template = jax.tree.map(np.asarray, train_state())
        with checkpoint.Checkpoints(saved) as checkpoints:
            restored, _ = checkpoints.restore(template)
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(restored))
        assert_identical(restored, jax.tree.map(np.asarray, train_state(updates=5)))

    def test_the_template_determines_the_sharding(self, saved):
        sharding = NamedSharding(jax.make_mesh((1,), ("data",)), P("data"))
        kernel = jax.ShapeDtypeStruct((2, 3), jnp.float32, sharding=sharding)
        template = {"kernel": kernel}
        restored = checkpoint.restore_params(saved, template, item="params/embed")
        assert restored["kernel"].sharding == sharding
        assert_identical(restored, train_state(updates=5).params["embed"])

    @pytest.mark.parametrize("template", [params(), abstract(params())], ids=["arrays", "abstract"])
    def test_without_a_sharding_arrays_are_free_to_move(self, saved, template):
        restored = checkpoint.restore_params(saved, template)
        assert not any(leaf.committed for leaf in jax.tree.leaves(restored))

    def test_relative_paths(self, saved, monkeypatch):
        monkeypatch.chdir(saved.parent)
        assert checkpoint.read_meta("run")["at"] == 5
        with checkpoint.Checkpoints("run") as checkpoints:
            assert checkpoints.directory == saved
            monkeypatch.chdir("/")
            assert checkpoints.steps() == [2, 5]
            assert checkpoints.restore(train_state())[1]["at"] == 5

    def test_training_may_donate_the_state_while_it_is_saved(self, tmp_path):
        current = {"w": jnp.zeros((512, 1024))}
        update = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
        with checkpoint.Checkpoints(tmp_path) as checkpoints:
            for step in range(1, 4):
                current = update(current)
                checkpoints.save(step, current, meta={})
                for _ in range(3):
                    current = update(current)
            for step in range(1, 4):
                restored, _ = checkpoints.restore(abstract(current), step=step)
                np.testing.assert_array_equal(restored["w"], 4.0 * step - 3)

    def test_metadata_are_read_at_the_call(self, tmp_path):
        meta = {"list": [1]}
        with checkpoint.Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, {"w": jnp.ones(2)}, meta=meta)
            meta["list"].append(2)
        assert checkpoint.read_meta(tmp_path) == {"list": [1]}

    def test_meta_must_be_json(self, tmp_path):
        with checkpoint.Checkpoints(tmp_path) as checkpoints:
            with pytest.raises(TypeError):
                checkpoints.save(1, {"w": jnp.ones(2)}, meta={"x": object()})
            assert checkpoints.steps() == []


class TestData:
    def numbers(self):
        return iter(grain.MapDataset.range(100).shuffle(seed=7).to_iter_dataset(READ_OPTIONS))

    def test_the_data_resume_at_their_position(self, tmp_path):
        source = self.numbers()
        for _ in range(13):
            next(source)
        with checkpoint.Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(13, {"w": jnp.ones(2)}, meta={}, iterator=source)
            following = [next(source) for _ in range(10)]
            resumed = self.numbers()
            checkpoints.restore({"w": jnp.ones(2)}, iterator=resumed)
        assert [next(resumed) for _ in range(10)] == following

    def test_a_loader_with_its_state_in_bytes(self, tmp_path):
        def loader():
            sampler = grain.samplers.IndexSampler(num_records=50, seed=1, shuffle=True, num_epochs=1)
            return iter(grain.DataLoader(data_source=grain.sources.RangeDataSource(0, 50, 1), sampler=sampler))

        source = loader()
        for _ in range(13):
            next(source)
        with checkpoint.Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(13, {"w": jnp.ones(2)}, meta={}, iterator=source)
            following = list(source)
            resumed = loader()
            checkpoints.restore({"w": jnp.ones(2)}, iterator=resumed)
        assert list(resumed) == following

    def test_a_checkpoint_without_a_place_in_the_data(self, saved):
        with checkpoint.Checkpoints(saved) as checkpoints, pytest.raises(CheckpointError) as error:
            checkpoints.restore(train_state(), iterator=self.numbers())
        assert "data/metadata" in message(error)

    def test_a_place_in_other_data(self, tmp_path):
        class Elsewhere:
            def get_state(self):
                return {"unknown": 1}

        with checkpoint.Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, {"w": jnp.ones(2)}, meta={}, iterator=Elsewhere())
            with pytest.raises(CheckpointError) as error:
                checkpoints.restore({"w": jnp.ones(2)}, iterator=self.numbers())
        assert "1/data" in message(error)


class TestNextStage:
    @pytest.mark.parametrize("item", ["params", "ema"])
    def test_reads_one_part(self, saved, item):
        restored = checkpoint.restore_params(saved, abstract(params()), item=item)
        assert_identical(restored, getattr(train_state(updates=5), item))

    def test_params_and_average_are_distinguished(self, saved):
        read = [checkpoint.restore_params(saved, params(), item=item)["embed"]["kernel"] for item in ("params", "ema")]
        assert not np.array_equal(*read)

    def test_reads_a_part_of_a_part(self, tmp_path):
        @flax.struct.dataclass
        class Both:
            policy: state.TrainState
            value: state.TrainState

        with checkpoint.Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, Both(train_state(3), train_state(4)), meta={})
        assert_identical(checkpoint.restore_params(tmp_path, params(3), item="policy/ema"), train_state(3).ema)
        assert_identical(checkpoint.restore_params(tmp_path, params(4), item="value/params"), train_state(4).params)

    def test_the_optimizer_state_is_not_read(self, saved):
        # What cannot be read cannot have been read.
        reference = checkpoint.restore_params(saved, params())
        names = [name for name in (saved / "5" / "state").rglob("*") if name.is_file()]
        assert names
        metadata = json.loads((saved / "5" / "state" / "_METADATA").read_text())
        kept = {k: v for k, v in metadata["tree_metadata"].items() if "opt_state" not in k}
        assert len(kept) < len(metadata["tree_metadata"])
        (saved / "5" / "state" / "_METADATA").write_text(json.dumps({**metadata, "tree_metadata": kept}))
        assert_identical(checkpoint.restore_params(saved, params()), reference)

    def test_describe_carries_the_tokenizer(self, tmp_path):
        class Tokenizer:
            fingerprint = "f00"

            def to_bytes(self):
                return bytes(range(256))

        meta = checkpoint.describe({"lr": 1e-5, "sizes": (1, 2)}, {"width": 3}, Tokenizer())
        with checkpoint.Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, {"w": jnp.ones(2)}, meta=meta)
        read = checkpoint.read_meta(tmp_path)
        assert checkpoint.tokenizer_bytes(read) == bytes(range(256))
        assert read["config"] == {"lr": 1e-5, "sizes": [1, 2]}
        assert read["model"] == {"width": 3}
        checkpoint.check_tokenizer(tmp_path, "f00")

    def test_another_tokenizer(self, saved):
        with pytest.raises(TokenizerError) as error:
            checkpoint.check_tokenizer(saved, "xyz")
        assert str(saved) in message(error) and "xyz" in message(error) and "abc" in message(error)


class TestDamage:
    """Damages real files: whatever can still be read is what was saved."""

    def files(self, path):
        return sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size)

    def test_any_flipped_bit_is_harmless_or_found(self, saved):
        """Flips one bit at a time, at places spread over every file of a checkpoint."""
        reference, found = train_state(updates=5), 0
        with checkpoint.Checkpoints(saved) as checkpoints:
            for file in self.files(saved / "5"):
                content = file.read_bytes()
                for place in {len(content) // 3, len(content) // 2, len(content) - 1}:
                    flipped = bytearray(content)
                    flipped[place] ^= 1 << place % 8
                    file.write_bytes(flipped)
                    try:
                        restored, meta = checkpoints.restore(abstract(reference), step=5)
                    except DamagedCheckpointError as error:
                        assert "\n" not in str(error) and str(saved / "5") in str(error)
                        found += 1
                    else:
                        assert_identical(restored, reference)
                        assert meta == {"fingerprint": "abc", "at": 5}
                file.write_bytes(content)
        assert found > 5

    def test_every_cut_or_missing_file_is_harmless_or_found(self, saved):
        reference, found = train_state(updates=5), 0
        with checkpoint.Checkpoints(saved) as checkpoints:
            for file in self.files(saved / "5"):
                content = file.read_bytes()
                for left in (content[: len(content) // 2], None):
                    file.unlink(missing_ok=True)
                    if left is not None:
                        file.write_bytes(left)
                    try:
                        restored, _ = checkpoints.restore(abstract(reference), step=5)
                    except DamagedCheckpointError:
                        found += 1
                    else:
                        assert_identical(restored, reference)
                file.write_bytes(content)
        assert found > 5

    def damage(self, path):
        """Changes the largest file of a checkpoint in its middle."""
        file = max(self.files(path), key=lambda file: file.stat().st_size)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)

    def test_the_last_good_checkpoint_is_used(self, saved, capsys):
        self.damage(saved / "5")
        with checkpoint.Checkpoints(saved) as checkpoints:
            restored, meta = checkpoints.restore(abstract(train_state()))
            assert checkpoints.latest_step() == 2
            checkpoints.save(5, train_state(updates=5), meta={"fingerprint": "again"})
        assert_identical(restored, train_state(updates=2))
        assert meta == {"fingerprint": "abc"}
        (line,) = capsys.readouterr().out.splitlines()
        assert str(saved / "5") in line and "removed" in line and "continues from step 2" in line
        assert checkpoint.read_meta(saved) == {"fingerprint": "again"}
        assert_identical(checkpoint.restore_params(saved, params()), train_state(updates=5).params)

    def test_nothing_is_removed_if_no_checkpoint_is_undamaged(self, saved):
        for step in (2, 5):
            self.damage(saved / str(step))
        with checkpoint.Checkpoints(saved) as checkpoints, pytest.raises(DamagedCheckpointError, match="no other"):
            checkpoints.restore(abstract(train_state()))
        assert checkpoint_files.saved_steps(saved) == [2, 5]

    def test_a_mismatch_is_not_treated_as_damage(self, saved):
        with checkpoint.Checkpoints(saved) as checkpoints:
            with pytest.raises(CheckpointError) as error:
                checkpoints.restore(train_state(width=4))
            assert type(error.value) is CheckpointError and checkpoints.steps() == [2, 5]

    def test_a_later_stage_rejects_a_damaged_checkpoint(self, saved):
        self.damage(saved / "5")
        with pytest.raises(DamagedCheckpointError):
            checkpoint.restore_params(saved, params())


class TestMisfits:
    def test_missing_directory(self, tmp_path):
        for read in (checkpoint.read_meta, lambda path: checkpoint.restore_params(path, params())):
            with pytest.raises(CheckpointError) as error:
                read(tmp_path / "nowhere")
            assert "nowhere" in message(error)

    def test_empty_directory(self, tmp_path):
        with pytest.raises(CheckpointError, match="empty"):
            checkpoint.read_meta(tmp_path)
        with checkpoint.Checkpoints(tmp_path) as checkpoints:
            assert checkpoints.latest_step() is None
            with pytest.raises(CheckpointError, match="empty"):
                checkpoints.restore(params())

    def test_a_file_instead_of_a_directory(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(CheckpointError, match="found a file"):
            checkpoint.Checkpoints(tmp_path / "file")

    def test_missing_step(self, saved):
        with pytest.raises(CheckpointError) as error:
            checkpoint.read_meta(saved, step=3)
        assert "step 3" in message(error) and "2, 5" in message(error)

    def test_another_model_size(self, saved):
        with pytest.raises(CheckpointError) as error:
            checkpoint.restore_params(saved, params(width=4))
        for part in ("run/5", "params/bias", "bfloat16[4]", "bfloat16[3]", "2 of 2"):
            assert part in message(error)

    def test_another_dtype_is_not_cast(self, saved):
        with pytest.raises(CheckpointError) as error:
            checkpoint.restore_params(saved, params(dtype=jnp.float16))
        for part in ("params/embed/kernel", "float16[2, 3]", "found float32[2, 3]", "1 of 2"):
            assert part in message(error)

    def test_an_extra_parameter_is_rejected(self, saved):
        with pytest.raises(CheckpointError) as error:
            checkpoint.restore_params(saved, params() | {"head": jnp.ones(3)})
        assert "params/head: expected float32[3], found nothing" in message(error)

    def test_a_missing_parameter_is_rejected(self, saved):
        with pytest.raises(CheckpointError) as error:
            checkpoint.restore_params(saved, {"embed": params()["embed"]})
        assert "params/bias: expected nothing, found bfloat16[3]" in message(error)

    def test_a_missing_part_is_rejected(self, saved, tmp_path):
        with pytest.raises(CheckpointError) as error:
            checkpoint.restore_params(saved, params(), item="value/params")
        assert "value/params: expected value in the state" in message(error)
        assert message(error).endswith("found only ema, opt_state, params, skipped, step")
        with checkpoint.Checkpoints(tmp_path / "plain") as checkpoints:
            checkpoints.save(1, state.create(params(), OPTIMIZER), meta={})
        with pytest.raises(CheckpointError, match="ema: expected ema in the state"):
            checkpoint.restore_params(tmp_path / "plain", params(), item="ema")

    def test_a_state_of_another_optimizer_is_rejected(self, saved):
        template = state.create_averaged(params(), optax.sgd(0.1))
        with checkpoint.Checkpoints(saved) as checkpoints, pytest.raises(CheckpointError) as error:
            checkpoints.restore(template)
        assert "opt_state/" in message(error)


class TestSteps:
    def save_all(self, path, steps, **retention):
        with checkpoint.Checkpoints(path, **retention) as checkpoints:
            for step in steps:
                checkpoints.save(step, {"w": jnp.full(2, step)}, meta={"at": step})
        with checkpoint.Checkpoints(path) as checkpoints:
            return checkpoints.steps()

    def test_all_are_kept_by_default(self, tmp_path):
        assert self.save_all(tmp_path, [1, 2, 30, 100]) == [1, 2, 30, 100]

    def test_the_newest_are_kept(self, tmp_path):
        assert self.save_all(tmp_path, range(1, 7), keep=2) == [5, 6]

    def test_chosen_steps_are_kept_in_addition(self, tmp_path):
        assert self.save_all(tmp_path, range(1, 8), keep=1, keep_steps=[2, 4]) == [2, 4, 7]

    @pytest.mark.parametrize("keep", [0, -1])
    def test_keep_must_be_positive(self, tmp_path, keep):
        with pytest.raises(ConfigError, match="keep"):
            checkpoint.Checkpoints(tmp_path, keep=keep)

    def test_the_newest_step_is_saved_once(self, tmp_path):
        with checkpoint.Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(3, {"w": jnp.ones(2)}, meta={"first": True})
            checkpoints.save(3, {"w": jnp.ones(2)}, meta={"first": False})
        assert checkpoint.read_meta(tmp_path) == {"first": True}

    def test_a_save_does_not_ask_the_preemption_service(self, tmp_path, monkeypatch):
        """Its answers depend on the last number that it was asked about, which must be that of `interruption`."""
        asked = []
        monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
        with checkpoint.Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(7, {"w": jnp.ones(1)}, meta={})
        assert checkpoint_files.saved_steps(tmp_path) == [7] and not asked

    def test_steps_do_not_go_back(self, tmp_path):
        with checkpoint.Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(3, {"w": jnp.ones(2)}, meta={})
            with pytest.raises(CheckpointError) as error:
                checkpoints.save(2, {"w": jnp.ones(2)}, meta={})
        assert "after 3" in message(error) and "step 2" in message(error)


def test_a_checkpoint_moves_to_another_mesh(tmp_path):
    program = """
        import sys
        import jax, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec as P
        from instructjax.runs.checkpoint import Checkpoints, restore_params

        values = np.arange(128, dtype=np.float32).reshape(8, 16)
        flat, square = jax.make_mesh((8,), ("x",)), jax.make_mesh((2, 2), ("x", "y"), devices=jax.devices()[:4])
        with Checkpoints(sys.argv[1]) as checkpoints:
            checkpoints.save(1, {"w": jax.device_put(values, NamedSharding(flat, P("x")))}, meta={})
        for sharding in (NamedSharding(square, P("y", "x")), NamedSharding(flat, P()), None):
            template = jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=sharding)
            read = restore_params(sys.argv[1], template, item="w")
            assert read.tobytes() == values.tobytes()
            assert sharding is None or read.sharding == sharding
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    subprocess.run(command, check=True, env=cpus.environment(8))
    read = checkpoint.restore_params(tmp_path, jax.ShapeDtypeStruct((8, 16), jnp.float32), item="w")
    np.testing.assert_array_equal(read, np.arange(128).reshape(8, 16))


def test_a_killed_run_leaves_only_complete_checkpoints(tmp_path):
    program = """
        import os, signal, sys
        import jax.numpy as jnp
        from instructjax.runs.checkpoint import Checkpoints

        checkpoints = Checkpoints(sys.argv[1])
        for step in range(1, 4):
            checkpoints.save(step, {"w": jnp.full((1024, 2048), step, jnp.float32)}, meta={"at": step})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    template = {"w": jax.ShapeDtypeStruct((1024, 2048), jnp.float32)}
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        steps = checkpoints.steps()
        assert steps in ([1, 2], [1, 2, 3])
        restored, meta = checkpoints.restore(template)
    assert meta == {"at": steps[-1]}
    np.testing.assert_array_equal(restored["w"], steps[-1])
    assert sorted(path.name for path in tmp_path.iterdir() if "tmp" in path.name) == []
