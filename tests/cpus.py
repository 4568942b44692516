"""Quick compilation, for the tests and for the processes that they start.

Most of the time of the tests goes into compilation. These settings more than halve it. XLA reads its flags when
the first array is made.
"""

import os

import jax

QUICK_TO_COMPILE = "--xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):  # newer versions do not know this flag, and abort
    QUICK_TO_COMPILE += " --xla_cpu_use_fusion_emitters=false"


def environment(number, **more):
    """Returns the environment of a process with this number of virtual CPU devices."""
    flags = f"{QUICK_TO_COMPILE} --xla_force_host_platform_device_count={number}"
    return os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags} | more
