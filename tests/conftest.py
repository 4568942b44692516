"""Settings for all tests: eight CPU devices, quick compilation, and checks of the shapes that signatures promise."""

import jax
import pytest
from jaxtyping import config

from tests import shape_checks

jax.config.update("jax_num_cpu_devices", 8)
# Most of the time goes into compilation. Scripts in separate processes are compiled with full optimization.
jax.config.update("jax_disable_most_optimizations", True)
shape_checks.install()


@pytest.fixture
def unchecked_shapes():
    """Turns the checks off, for tests of the package's own."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """Frees the programs of a module, of which a worker would otherwise hold gigabytes at the end."""
    yield
    jax.clear_caches()
