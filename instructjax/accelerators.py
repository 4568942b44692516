"""Published specifications of accelerators, and whether JAX can use them."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import types

import jax

GIB = 2**30

_CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of accelerator.

    Attributes:
      name: the maker's name.
      platform: the compiler's platform, "tpu", "cuda" or "cpu".
      peak: FLOP/s in bfloat16 without sparsity; 0 if none is published.
      bandwidth: bytes/s of the device's memory; 0 if none is published.
      links: bytes/s that a device sends to others over all of its links; 0 if none is published. On GPUs, those of
        NVLink, which connects the devices of one host.
      memory: bytes available to a program. On a TPU, the compiler's own figure; on a GPU,
        the share of the memory that JAX's allocator takes by default.
      example: a valid shape.
      rank: the number of sides of a shape; on GPUs and CPUs, the largest such number.
      largest: chips of the largest slice.
      kinds: the names of this chip in `jax.Device.device_kind`.
    """

    name: str
    platform: str
    peak: float
    bandwidth: float
    links: float
    memory: float
    example: str
    rank: int
    largest: int
    kinds: tuple[str, ...] = ()


# Peaks and bandwidths come from the pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" of Google Cloud's documentation
# and from NVIDIA's data sheets of the H100 and H200 (SXM, dense). The available memory of a TPU is the figure that its
# compiler reports for a program that needs more (libtpu 0.0.42). On a GPU, XLA_PYTHON_CLIENT_MEM_FRACTION is 0.75 by
# default.
CHIPS = types.MappingProxyType(
    {
        "v4": Chip("TPU v4", "tpu", 275e12, 1228e9, 300e9, 30.75 * GIB, "4x4x4", 3, 4096, ("TPU v4",)),
        "v5e": Chip("TPU v5e", "tpu", 197e12, 819e9, 200e9, 15.75 * GIB, "4x4", 2, 256, ("TPU v5 lite", "TPU v5e")),
        "v5p": Chip("TPU v5p", "tpu", 459e12, 2765e9, 600e9, 95.74 * GIB, "4x4x4", 3, 6144, ("TPU v5", "TPU v5p")),
        "v6e": Chip("TPU v6e", "tpu", 918e12, 1640e9, 448e9, 31.25 * GIB, "4x4", 2, 256, ("TPU v6 lite", "TPU v6e")),
        "h100": Chip(
            "NVIDIA H100 SXM",
            "cuda",
            989.4e12,
            3350e9,
            450e9,
            0.75 * 84_942_979_072,
            "8",
            2,
            4096,
            ("NVIDIA H100 80GB HBM3",),
        ),
        "h200": Chip(
            "NVIDIA H200 SXM", "cuda", 989.4e12, 4800e9, 450e9, 0.75 * 151_397_597_184, "8", 2, 4096, ("NVIDIA H200",)
        ),
        "cpu": Chip("this machine's CPU", "cpu", 0.0, 0.0, 0.0, math.inf, "8", 1, 4096),
    }
)


def of_device(device: jax.Device) -> Chip | None:
    """Returns the specification of a device, or None if this table does not have it."""
    return next((chip for chip in CHIPS.values() if device.device_kind in chip.kinds), None)


def has_cuda_plugin() -> bool:
    """Returns whether JAX's compiler for NVIDIA GPUs is installed. The GPUs themselves may be absent."""
    return any(importlib.util.find_spec(plugin) for plugin in _CUDA_PLUGINS)
