"""Programs compile for accelerators that are not present. Needs the extras plan-tpu and plan-cuda.

JAX_PLATFORMS=cpu pytest -m absent_hardware
"""

import importlib.util
import os

import pytest

from configs import sandbox
from instructjax import accelerators
from instructjax.planning import chips, plan


def needs(platform):
    present = accelerators.has_cuda_plugin() if platform == "cuda" else importlib.util.find_spec("libtpu")
    if not present:
        return pytest.mark.skip(reason=f"the compiler for {platform} is not installed")
    # Once JAX has looked for chips and found none, the CUDA compiler is no longer available.
    alone = os.environ.get("JAX_PLATFORMS") == "cpu"
    return pytest.mark.skipif(not alone, reason="needs JAX_PLATFORMS=cpu to compile for absent chips")


@pytest.mark.absent_hardware
@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=needs("tpu")) for name in ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2")),
        *(pytest.param(name, marks=needs("cuda")) for name in ("h100:4", "h100:2x2")),
    ],
)
def test_a_program_compiles_for_chips_that_are_not_present(name):
    changes = {"model.num_layers": 2, "parallel.fsdp": 2, "parallel.tensor": 2}
    topology = chips.parse(name)
    row = plan.plan_program("sft", plan.override(sandbox.get_config("smoke"), changes), topology)
    assert row.fits and row.mesh == (1, 2, 2)
    assert row.residents.total <= row.compiled.peak < 2**30
    assert row.compiled.available == topology.chip.memory
    assert 0 < row.seconds["gradients"] < 1


@pytest.mark.absent_hardware
@needs("cuda")
@pytest.mark.parametrize("program", ["pretrain", "sft", "reward", "ppo_init", "ppo iteration", "ppo_ptx iteration"])
def test_every_program_compiles_for_a_mesh_of_eight_gpus(program):
    changes = {"model.num_layers": 2, "model.dtype": "bfloat16"}
    changes |= {"parallel.data": 2, "parallel.fsdp": 2, "parallel.tensor": 2}
    row = plan.plan_program(program, plan.override(sandbox.get_config("smoke"), changes), chips.parse("h100:8"))
    assert (row.fits, row.obstacle, row.mesh) == (True, "", (2, 2, 2))


@pytest.mark.absent_hardware
@pytest.mark.parametrize(
    "name", [pytest.param("v5e:2x2", marks=needs("tpu")), pytest.param("h100:4", marks=needs("cuda"))]
)
def test_a_program_that_exceeds_the_memory_does_not_fit(name):
    # One layer of attention over 64 x 8190^2 cells and 8 heads. No multiple of 128 tokens, so not fused on TPUs either.
    changes = {
        "model.num_layers": 1,
        "model.max_length": 8192,
        "pretrain.length": 8190,
        "pretrain.batch_size": 256,
        "parallel.fsdp": 4,
    }
    row = plan.plan_program("pretrain", plan.override(sandbox.get_config("smoke"), changes), chips.parse(name))
    assert not row.fits
    assert row.compiled.peak > row.compiled.available == pytest.approx(chips.parse(name).chip.memory, rel=0.01)
