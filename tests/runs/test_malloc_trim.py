"""Free memory on the heap is returned to the system after a compilation."""

import os
import platform
import subprocess
import sys

import jax
import pytest

from instructjax.runs import malloc_trim

# Blocks are freed, except one at the end of the heap, as after a compilation.
PROGRAM = """
import ctypes, sys
import jax, jax.numpy as jnp
from instructjax.runs import malloc_trim

def resident():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmRSS")]
    return int(line.split()[1]) // 1024

def program(x):
    for i in range(150):
        x = jnp.sin(x @ x + i)
    return x

if sys.argv[1] == "trim":
    malloc_trim.trim_after_compiling()
x = jnp.ones((4, 4))  # loads what JAX's plugins need, which may be more than the blocks
c = ctypes.CDLL(None)
c.malloc.restype, c.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
blocks = [c.malloc(4000) for _ in range(100_000)]
for block in blocks[:-1]:
    ctypes.memset(block, 1, 4000)
    c.free(block)
before = resident()
jax.jit(program).lower(x).compile()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has malloc_trim")
def test_free_memory_is_returned_after_compilation():
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}  # a cached program frees nothing
    given_back = {
        mode: int(
            subprocess.run(
                [sys.executable, "-c", PROGRAM, mode], check=True, stdout=subprocess.PIPE, env=environment
            ).stdout
        )
        for mode in ("trim", "keep")
    }
    assert given_back["trim"] > 200 > given_back["keep"], given_back


def test_scripts_of_one_process_share_a_listener(monkeypatch):
    listeners = []
    monkeypatch.setattr(jax.monitoring, "register_event_duration_secs_listener", listeners.append)
    malloc_trim.trim_after_compiling.cache_clear()
    for _ in range(3):
        malloc_trim.trim_after_compiling()
    assert len(listeners) == 1
