"""Settings for all tests: eight CPU devices, quick compilation, and checks of the shapes that signatures promise."""

import os

import hypothesis
import jax
import pytest
from jaxtyping import config

from tests import cpus, shape_checks

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)
os.environ["XLA_FLAGS"] = f"{cpus.QUICK_TO_COMPILE} {os.environ.get('XLA_FLAGS', '')}"
shape_checks.install()
# No test depends on the speed of the machine: the first example compiles, and others may wait for a processor.
hypothesis.settings.register_profile(
    "any speed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any speed")


@pytest.fixture
def unchecked_shapes():
    """Turns the checks off, for tests of the package's own."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """Frees the programs of a module. Without this, a worker holds gigabytes of them at the end."""
    yield
    jax.clear_caches()
