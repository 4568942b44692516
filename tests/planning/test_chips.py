import math

import pytest

from instructjax import accelerators
from instructjax.errors import ConfigError
from instructjax.planning import chips


@pytest.mark.parametrize("kind", accelerators.CHIPS)
def test_every_example_is_a_topology_of_its_chip(kind):
    chip = accelerators.CHIPS[kind]
    topology = chips.parse(f"{kind}:{chip.example}")
    assert topology.chip is chip
    assert topology.size == math.prod(topology.shape) <= chip.largest


def test_accelerators_have_plausible_specifications():
    for kind, chip in accelerators.CHIPS.items():
        if kind != "cpu":
            # FLOPs per byte, above which a program is bound by arithmetic instead of memory.
            assert 100 < chip.peak / chip.bandwidth < 1000
            assert 15 * accelerators.GIB < chip.memory < 200 * accelerators.GIB


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", "v4:4x4x4, v5e:4x4, v5p:4x4x4, v6e:4x4, h100:8"),
        ("v9:4x4", "v4:4x4x4, v5e:4x4, v5p:4x4x4, v6e:4x4, h100:8"),
        ("v5p:8x8", "v5p:4x4x4 or another shape of 3 numbers"),
        ("v5e:4x0", "v5e:4x4 or another shape of 2 numbers"),
        ("h100:2x2x2", "h100:8 or another shape of at most 2 numbers"),
        ("v5e:32x32", "at most 256 chips"),
    ],
)
def test_an_unknown_topology_is_rejected_with_the_known_ones(name, expected):
    with pytest.raises(ConfigError, match=f"--topology: expected .*{expected}"):
        chips.parse(name)


def test_cpu_topologies_use_this_machines_virtual_devices():
    assert len(chips.devices(chips.parse("cpu:4"))) == 4
    with pytest.raises(
        ConfigError, match="--topology=cpu:64: expected 64 CPU devices, found 8; set JAX_NUM_CPU_DEVICES=64"
    ):
        chips.devices(chips.parse("cpu:64"))


@pytest.mark.parametrize(("name", "package"), [("v5e:4x4", "libtpu"), ("h100:8", "jax-cuda12-plugin")])
def test_the_error_for_a_missing_compiler_says_how_to_install_it(name, package, monkeypatch):
    def absent(*_, **__):
        raise RuntimeError("no such plugin")

    monkeypatch.setattr(chips.topologies, "get_topology_desc", absent)
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"{name}: expected the package {package}, found none; pip install"):
        chips.devices(chips.parse(name))
