"""Topologies of accelerators by name, and device descriptions to compile for without the hardware.

A topology is named CHIP:SHAPE.

    v5p:8x8x8, v5e:4x4   a TPU slice, by the shape of its torus
    h100:8               GPUs on one host
    h100:4x8             HOSTSxGPUS
    cpu:8                virtual devices of this machine, for tests
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
import types
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from instructjax import accelerators
from instructjax.accelerators import CHIPS, Chip
from instructjax.errors import ConfigError

_PACKAGES = types.MappingProxyType({"tpu": ("libtpu", "plan-tpu"), "cuda": ("jax-cuda12-plugin", "plan-cuda")})


@dataclasses.dataclass(frozen=True)
class Topology:
    """A number of chips of one kind.

    Attributes:
      name: CHIP:SHAPE.
      chip: the kind.
      shape: the sides of a TPU's torus; (hosts, GPUs) or (GPUs,); (devices,) on CPUs.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of chips. Each is one device."""
        return math.prod(self.shape)


def parse(name: str) -> Topology:
    """Parses the name of a topology, such as "v5p:8x8x8".

    Raises:
      ConfigError: the chip or shape is unknown; the error lists the known ones.
    """
    kind, colon, shape = name.partition(":")
    if kind not in CHIPS or not colon:
        known = ", ".join(f"{kind}:{chip.example}" for kind, chip in CHIPS.items())
        expected = f"the chips to compile for as CHIP:SHAPE, such as {known}"
        raise ConfigError(f"--topology: expected {expected}, found {repr(name) if name else 'none'}")
    chip = CHIPS[kind]
    numbers = tuple(int(number) for number in shape.split("x")) if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) else ()
    exact = chip.platform == "tpu"  # two sides do not describe a slice of a 3-D torus
    if not (len(numbers) == chip.rank if exact else 1 <= len(numbers) <= chip.rank):
        expected = f"{kind}:{chip.example} or another shape of {'' if exact else 'at most '}{chip.rank} numbers"
        raise ConfigError(f"--topology: expected {expected}, found {name!r}")
    if math.prod(numbers) > chip.largest:
        raise ConfigError(f"--topology: expected at most {chip.largest} chips of {kind}, found {math.prod(numbers)}")
    return Topology(name, chip, numbers)


def devices(topology: Topology) -> Sequence[jax.Device]:
    """Returns devices to compile programs for.

    Except on "cpu", they are descriptions of hardware that need not be present.

    Raises:
      ConfigError: the compiler is not installed, or does not know the slice.
    """
    if topology.chip.platform == "cpu":
        found = jax.devices("cpu")
        if len(found) < topology.size:
            raise ConfigError(
                f"--topology={topology.name}: expected {topology.size} CPU devices, found {len(found)}; "
                f"set JAX_NUM_CPU_DEVICES={topology.size}"
            )
        return found[: topology.size]
    try:
        return _tpus(topology) if topology.chip.platform == "tpu" else _gpus(topology)
    except (jax.errors.JaxRuntimeError, RuntimeError, NotImplementedError) as error:
        package, extra = _PACKAGES[topology.chip.platform]
        if _is_missing(topology.chip.platform):
            raise ConfigError(
                f"--topology={topology.name}: expected the package {package}, found none; "
                f"pip install 'instructjax[{extra}]'"
            ) from None
        raise ConfigError(f"--topology={topology.name}: {' '.join(str(error).split())}") from None


def _is_missing(platform: str) -> bool:
    return not (accelerators.has_cuda_plugin() if platform == "cuda" else importlib.util.find_spec("libtpu"))


def _tpus(topology: Topology) -> Sequence[jax.Device]:
    # Without these variables, libtpu asks the cloud's metadata server for them.
    for variable, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
    ):
        os.environ.setdefault(variable, value)
    options: dict[str, Any] = {}
    if topology.size == 1:
        options["chips_per_host_bounds"] = (1,) * 3
    if topology.chip.rank == 3:
        options["chip_config_name"] = "megacore"  # the two cores of a chip as one device
    return topologies.get_topology_desc(topology.name, platform="tpu", **options).devices


def _gpus(topology: Topology) -> Sequence[jax.Device]:
    hosts, gpus = topology.shape if len(topology.shape) == 2 else (1, *topology.shape)
    return topologies.get_topology_desc(
        topology.name, platform="cuda", target_config=_hopper(topology.chip), topology=f"1x{hosts}x{gpus}"
    ).devices


def _hopper(chip: Chip) -> str:
    """Returns XLA's description of a Hopper GPU, with the fields that the compiler needs."""
    device = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "threads_per_core_limit": 2048,
        "core_count": 132,
        "fpus_per_core": 128,
        "clock_rate_ghz": 1.98,
        "shared_memory_per_block": 49_152,
        "shared_memory_per_block_optin": 232_448,
        "shared_memory_per_core": 233_472,
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535,
        "l2_cache_size": 50 * 2**20,
        "memory_bandwidth": int(chip.bandwidth),
        "device_memory_size": round(chip.memory / 0.75),
    }
    fields = " ".join(f"{name}: {value}" for name, value in device.items())
    return (
        f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: 9 }} }} "
        f'platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{chip.name}"'
    )
