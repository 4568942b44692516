"""InstructGPT (Ouyang et al. 2022) in JAX and Flax."""

__version__ = "0.3.0"
