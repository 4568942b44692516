"""The folder of a local copy of the data: INSTRUCTJAX_DATA, or a folder next to the repository."""

import os
import pathlib

_BESIDE = pathlib.Path(__file__).resolve().parents[2] / "shared"

DATA = pathlib.Path(os.environ.get("INSTRUCTJAX_DATA", _BESIDE / "data"))
E2E = DATA / "e2e_human_rankings"
TRL_PARITY = pathlib.Path(os.environ.get("INSTRUCTJAX_PARITY_DATA", _BESIDE / "peer_benchmark" / "parity"))
FAULTS = pathlib.Path(os.environ.get("INSTRUCTJAX_FAULTS", _BESIDE / "faults"))

ABSENT = "no local copy of the data"
