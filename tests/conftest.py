"""Eight virtual CPU devices, so that every test of what is split over devices has devices to split over."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
