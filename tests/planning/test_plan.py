import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

from configs import instructgpt, sandbox
from instructjax import accelerators
from instructjax.models.flops import Work
from instructjax.models.sizes import count_parameters
from instructjax.planning import chips, compiling, compute, plan, programs, shapes, suggestions, table
from instructjax.planning.chips import Topology
from instructjax.training import parallel

TINY = {"model.num_layers": 2, "parallel.fsdp": 2, "parallel.tensor": 2, "sft.batch_size": 128}


@pytest.fixture(scope="module")
def config():
    return plan.override(sandbox.get_config("smoke"), TINY)


@pytest.fixture(scope="module")
def row(config):
    return plan.plan_program("sft", config, chips.parse("cpu:8"))


class TestOneProgram:
    def test_it_fits_and_its_peak_includes_its_arguments(self, row):
        assert row.fits and row.mesh == (2, 2, 2)
        assert row.compiled.peak >= row.residents.total > 0
        assert row.rest == row.compiled.peak - row.residents.total

    def test_each_weight_has_two_moments_and_both_are_sharded_over_fsdp_and_tensor(self, row, config):
        shape, _ = shapes.model_configs(config)
        parameters = 4 * count_parameters(shape)
        assert 2 * row.residents.weights == pytest.approx(row.residents.optimizer, rel=0.01)
        assert parameters / 4 <= row.residents.weights < parameters / 2
        mesh = parallel.make_mesh((1, 1, 1), jax.devices()[:1])
        alone = compiling.resident_bytes(
            compiling.abstract_arguments(programs.build("sft", config), mesh, shard_optimizer_state=False)
        )
        assert alone.weights == parameters + 8  # plus two counters

    def test_optimizer_state_can_be_sharded_over_data(self, row, config):
        mesh = parallel.make_mesh((2, 2, 2), jax.devices())
        program = programs.build("sft", config)
        shared = compiling.resident_bytes(compiling.abstract_arguments(program, mesh, shard_optimizer_state=True))
        assert shared.weights == row.residents.weights
        assert shared.optimizer < 0.6 * row.residents.optimizer

    def test_rows_that_do_not_divide_are_an_obstacle(self, config):
        found = plan.plan_program("sft", plan.override(config, {"sft.batch_size": 30}), chips.parse("cpu:8"))
        assert not found.fits
        assert "sft.batch_size / sft.microbatches: 30 / 1 rows do not divide over data x fsdp = 4" == found.obstacle
        found = plan.plan_program("sft", config, chips.parse("cpu:8"), {"sft.microbatches": 64})
        assert "128 / 64 rows do not divide" in found.obstacle


class TestSuggestion:
    def tight(self, memory):
        return Topology("cpu:8", dataclasses.replace(accelerators.CHIPS["cpu"], memory=memory), (8,))

    def too_full(self, row, topology):
        return dataclasses.replace(
            row, compiled=dataclasses.replace(row.compiled, fits=False, available=topology.chip.memory)
        )

    def test_smaller_parts_are_suggested_first(self, row, config):
        topology = self.tight(0.9 * row.compiled.peak)
        full = self.too_full(row, topology)
        found = suggestions.suggest(full, config, topology, trials=2)
        assert found.fits and found.changes.keys() == {"sft.microbatches"}
        assert found.compiled.peak <= topology.chip.memory
        text = table.format_misfit(full, found, 2)
        assert f"fits with --config.sft.microbatches={found.changes['sft.microbatches']} " in text

    def test_without_trials_there_is_no_suggestion(self, row, config):
        assert suggestions.suggest(row, config, self.tight(1.0), trials=0) is None
        full = self.too_full(row, self.tight(0.9 * row.compiled.peak))
        assert "0 compilations found no setting that fits" in table.format_misfit(full, None, 0)

    def test_a_program_that_cannot_fit_is_not_compiled(self, row, config, monkeypatch):
        monkeypatch.setattr(plan.compiling, "compile_program", lambda *_, **__: pytest.fail("compiled"))
        monkeypatch.setattr(suggestions, "_doubled", lambda _: ())
        assert suggestions.suggest(row, config, self.tight(row.residents.weights / 10), trials=3) is None

    def test_other_meshes_are_tried_before_larger_slices(self, row, config):
        places = [
            (place.name, changes) for place, changes in suggestions.candidates(row, config, chips.parse("v5e:2x4"))
        ]
        sizes = [chips.parse(name).size for name, _ in places]
        assert sizes == sorted(sizes) and sizes[-1] == 256
        assert places[0] == ("v5e:2x4", {"sft.microbatches": 2})
        for name, changes in places:
            mesh = [changes[f"parallel.{axis}"] for axis in ("data", "fsdp", "tensor") if "parallel.data" in changes]
            assert not mesh or math.prod(mesh) == chips.parse(name).size

    def test_each_key_is_tried_alone_and_then_all_together(self, row, config):
        iteration = dataclasses.replace(row, name="ppo_ptx iteration")
        here = chips.parse("v5e:2x4")
        found = (changes for place, changes in suggestions.candidates(iteration, config, here) if place == here)
        keys = list(dict.fromkeys(tuple(changes) for changes in itertools.islice(found, 16)))
        parts = ("ppo.rollout_parts", "ppo.microbatches", "ppo.ptx_microbatches")
        assert keys == [*((key,) for key in parts), parts]

    def test_fewer_chips_are_tried_if_rows_do_not_divide(self, row, config):
        uneven = dataclasses.replace(row, obstacle="8 rows")
        for name, fewer in (("v5p:8x8x8", "v5p:4x8x8"), ("h100:4x8", "h100:2x8"), ("v5e:4x4", "v5e:2x4")):
            names = [place.name for place, _ in suggestions.candidates(uneven, config, chips.parse(name))]
            assert names.index(fewer) > names.index(name)
            assert all(chips.parse(found) for found in names)


class TestRoofline:
    CHIPS = chips.parse("v5e:2x2")

    def test_it_is_the_larger_of_compute_time_and_memory_time(self):
        peak, bandwidth = self.CHIPS.chip.peak, self.CHIPS.chip.bandwidth
        assert plan.roofline(Work(4 * peak, 0.0, 0.0), self.CHIPS, 1) == 1
        assert plan.roofline(Work(0.0, 2 * bandwidth, 4 * bandwidth), self.CHIPS, 2) == 2
        assert plan.roofline(Work(4 * peak, 6 * bandwidth, 0.0), self.CHIPS, 2) == 3

    def test_decoding_is_bound_by_memory_and_updates_by_compute(self):
        config = instructgpt.get_config("1p3b")
        phases = programs.build("ppo_ptx iteration", config).phases
        for name, work in phases.items():
            compute_time = plan.roofline(dataclasses.replace(work, weight_bytes=0.0, bytes=0.0), self.CHIPS, 4)
            memory_bound = plan.roofline(work, self.CHIPS, 4) > compute_time
            assert memory_bound == (name in ("decode", "average"))


def test_the_compute_of_175b_is_close_to_the_papers():
    found = {s.name: s for s in compute.stage_compute(instructgpt.get_config("175b"), 12_725, 33_207, "175b")}
    for name, below, above in (("pretrain", 1.0, 1.05), ("sft", 1.0, 1.1), ("ppo_ptx", 0.95, 1.4)):
        assert below < found[name].days / found[name].paper < above
    assert found["sft"].steps == 25_450 and found["reward"].steps == 519


@pytest.mark.parametrize(
    ("message", "needed", "available"),
    [
        ("the total memory required for HLO temporaries (340.00G) exceeds available HBM (15.75G).", 340, 15.75),
        ("Ran out of memory in memory space hbm. Used 47.8G of 30.75G hbm. Exceeded by 17.05G", 47.8, 30.75),
    ],
)
def test_the_compilers_out_of_memory_messages_are_parsed(message, needed, available):
    np.testing.assert_allclose(
        compiling.parse_out_of_memory(message), (needed * accelerators.GIB, available * accelerators.GIB)
    )
    assert compiling.parse_out_of_memory("INVALID_ARGUMENT: no such thing") is None


def test_the_table_has_one_line_per_program(row):
    lines = table.format_programs([row, dataclasses.replace(row, name="longer name", obstacle="x", compiled=None)])
    header, first, second = lines.splitlines()
    assert first.startswith("sft") and " yes " in first and " NO " in second
    assert len(header) == len(first) == len(second)
    assert jax.tree.all([cell not in lines for cell in ("nan", "inf")])
