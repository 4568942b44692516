"""Eight virtual CPU devices, so that every test of what is split over devices has devices to split over; and checks
of the shapes that signatures promise."""

import jax
import pytest
from jaxtyping import config

from tests import shape_checks

jax.config.update("jax_num_cpu_devices", 8)
shape_checks.install()


@pytest.fixture
def unchecked_shapes():
    """Turns the checks off, for tests of the package's own."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
