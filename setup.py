"""Packaging of instructjax. Exact versions that were tested are in constraints.txt."""

import pathlib
import re

from setuptools import find_packages, setup

VERSION = re.search('__version__ = "(.*)"', pathlib.Path("instructjax/__init__.py").read_text())[1]

HUGGINGFACE = ["safetensors>=0.5", "tokenizers>=0.21"]  # weights and vocabularies of others
NOTEBOOKS = ["ipykernel>=6.29", "nbclient>=0.10", "nbformat>=5.10"]

setup(
    name="instructjax",
    version=VERSION,
    description="InstructGPT in JAX and Flax: SFT, reward model, PPO and PPO-ptx, small and exact.",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["instructjax", "instructjax.*", "configs", "experiments"]),
    entry_points={"console_scripts": ["instructjax = experiments.__main__:main"]},
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.8",
        "etils[epath]>=1.12",
        "flax>=0.12",
        "grain>=0.2.12",
        "jax>=0.10,<0.12",
        "matplotlib>=3.9",
        "ml-collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.12",
        "rich>=13.7",
        "scipy>=1.14",
        "sentencepiece>=0.2",
        "tensorboardX>=2.6.2",
        "tensorflow-datasets>=4.9.9",
        "tqdm>=4.66",
    ],
    extras_require={
        "huggingface": HUGGINGFACE,
        # Compilers for accelerators that are not there; see docs/scaling.md.
        "plan-tpu": ["jax[tpu]>=0.10,<0.12"],
        "plan-cuda": ["jax[cuda12]>=0.10,<0.12"],
        # With the last TRL that has a PPO trainer, and what it wants.
        "parity": ["torch>=2.9", "transformers>=5.0", "trl==1.12.0", "accelerate>=1.15", "datasets>=5.2"],
        "test": [*HUGGINGFACE, *NOTEBOOKS, "hypothesis>=6.100", "pytest>=8.0", "pytest-xdist>=3.6"],
        "notebooks": NOTEBOOKS,
        "docs": ["pdoc>=15.0"],
        "dev": ["import-linter>=2.1", "ruff>=0.9"],
    },
)
