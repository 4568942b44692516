import math

import pytest

from instructjax.errors import ConfigError
from instructjax.planning import chips


@pytest.mark.parametrize("kind", chips.CHIPS)
def test_every_example_is_a_topology_of_its_chip(kind):
    chip = chips.CHIPS[kind]
    topology = chips.parse(f"{kind}:{chip.example}")
    assert topology.chip is chip
    assert topology.size == math.prod(topology.shape) <= chip.largest


def test_accelerators_have_published_figures():
    for kind, chip in chips.CHIPS.items():
        if kind != "cpu":
            # More operations than bytes a second, by the factor that decides between decoding and training.
            assert 100 < chip.peak / chip.bandwidth < 1000
            assert 15 * chips.GIB < chip.memory < 200 * chips.GIB


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
def test_what_is_no_topology_is_refused_with_what_is(name, expected):
    with pytest.raises(ConfigError, match=f"--topology: expected .*{expected}"):
        chips.parse(name)


def test_virtual_devices_are_those_of_this_machine():
    assert len(chips.devices(chips.parse("cpu:4"))) == 4
    with pytest.raises(ConfigError, match="JAX_NUM_CPU_DEVICES=64 with it, found 8"):
        chips.devices(chips.parse("cpu:64"))


@pytest.mark.parametrize(("name", "package"), [("v5e:4x4", "libtpu"), ("h100:8", "jax-cuda12-plugin")])
def test_a_compiler_that_is_missing_is_named_with_what_installs_it(name, package, monkeypatch):
    def absent(*_, **__):
        raise RuntimeError("no such plugin")

    monkeypatch.setattr(chips.topologies, "get_topology_desc", absent)
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"{name}: expected the package {package}, found none; pip install"):
        chips.devices(chips.parse(name))
