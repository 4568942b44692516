"""Meshes of TPU slices that are not present: every shape can be made, and every host knows its rows."""

import collections
import importlib.util

import jax
import ml_collections
import numpy as np
import pytest

from instructjax.errors import ConfigError
from instructjax.planning import chips
from instructjax.training import parallel

pytestmark = [
    pytest.mark.absent_hardware,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"),
]

SLICES = {
    "v4:2x2x1": [(-1, 1, 1), (1, 4, 1)],
    "v4:2x2x2": [(-1, 1, 1), (1, 8, 1), (1, 2, 4)],
    "v4:2x2x4": [(-1, 1, 1), (1, 16, 1), (1, 4, 4)],
    "v5e:2x4": [(-1, 1, 1), (1, 8, 1)],
    "v5e:4x4": [(-1, 1, 1), (1, 16, 1), (1, 4, 4), (4, 4, 1)],
    "v5e:8x8": [(-1, 1, 1), (1, 64, 1), (1, 16, 4)],
    "v5e:16x16": [(-1, 1, 1), (1, 256, 1), (1, 64, 4), (16, 16, 1)],
    "v5p:2x2x4": [(-1, 1, 1), (1, 16, 1)],
    "v5p:4x4x4": [(-1, 1, 1), (1, 64, 1), (1, 8, 8)],
    "v5p:8x8x8": [(-1, 1, 1), (1, 512, 1), (1, 16, 32), (1, 8, 64)],
    "v6e:4x4": [(-1, 1, 1), (1, 16, 1), (1, 8, 2)],
    "v6e:8x8": [(-1, 1, 1), (1, 64, 1), (1, 16, 4)],
}


def on_slice(monkeypatch, name, data, fsdp, tensor):
    """Returns the context of a mesh as the stages make it, and the numbers of the slice's hosts."""
    devices = chips.devices(chips.parse(name))
    hosts = sorted({device.process_index for device in devices})
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "device_count", lambda: len(devices))
    monkeypatch.setattr(jax, "process_count", lambda: len(hosts))
    return parallel.on_mesh(ml_collections.ConfigDict(dict(mode="jit", data=data, fsdp=fsdp, tensor=tensor))), hosts


@pytest.mark.parametrize(("name", "shape"), [(name, shape) for name, shapes in SLICES.items() for shape in shapes])
def test_every_host_reads_the_rows_of_its_chips(monkeypatch, name, shape):
    mesh, hosts = on_slice(monkeypatch, name, *shape)
    with mesh:
        devices = jax.sharding.get_mesh().devices
        rows = 2 * devices.shape[0] * devices.shape[1]
        readers = collections.defaultdict(set)
        for host in hosts:
            monkeypatch.setattr(jax, "process_index", lambda host=host: host)
            for row in parallel.share_of_rows().rows(rows):
                readers[int(row)].add(host)
    assert sorted(readers) == list(range(rows))
    for row, found in readers.items():
        part = devices.reshape(-1, devices.shape[2])[row // 2]
        assert found == {device.process_index for device in part}


def test_a_share_of_several_hosts_is_not_always_adjacent(monkeypatch):
    """A check of the check: this is the case that made slices of several hosts impossible."""
    mesh, hosts = on_slice(monkeypatch, "v5e:4x4", -1, 1, 1)
    with mesh:
        monkeypatch.setattr(jax, "process_index", lambda: hosts[0])
        assert (np.diff(parallel.share_of_rows().rows(16)) > 1).any()


def test_data_spans_the_slices(monkeypatch):
    from jax.experimental import topologies

    chips.devices(chips.parse("v5e:2x2"))  # sets the variables without which libtpu asks the cloud
    devices = topologies.get_topology_desc("v5e:2x2", platform="tpu", num_slices=2).devices
    mesh = parallel.make_mesh((2, 2, 2), devices)
    assert [{device.slice_index for device in part.flat} for part in mesh.devices] == [{0}, {1}]
    with pytest.raises(
        ConfigError, match="^parallel.data: expected a multiple of the 2 TPU slices, such as 2, found 1$"
    ):
        parallel.make_mesh((1, 4, 2), devices)
