"""The speed benchmark measures each kind of work, and takes turns with a peer."""

import json
import pathlib
import re
import subprocess
import sys

import pytest
from benchmarks import speed, workloads

from configs import sandbox
from instructjax.models import sizes
from instructjax.models.config import TransformerConfig
from tests import scripts

SCRIPT = pathlib.Path(speed.__file__)

# A script of the peer that reports a fixed rate.
PEER = """
import json, os, pathlib, sys
folder = pathlib.Path(os.environ["PEER_OUT"]) / "results"
folder.mkdir(parents=True)
row = {"tokens_per_s": 4.0, "all_median_s": 2.0, "cpu_s_median": 3.0, "peak_rss_mb": 100, "argv": sys.argv[1:]}
(folder / "sft.json").write_text(json.dumps(row))
"""


@pytest.mark.parametrize("work", [*workloads.UNITS, "matmul"])
def test_each_kind_is_measured(work):
    found = workloads.measure_here(work, sandbox.get_config(), "T", {"matmul_dtype": "bfloat16"}, 1)
    assert found.keys() == {"rate", "seconds", "cpu_seconds", "peak_mb"}
    assert all(value > 0 for value in found.values())


def test_size_s_is_smollm2():
    assert sizes.count_parameters(TransformerConfig(**workloads.SHAPES["S"])) == 134_515_008


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)


@pytest.mark.slow
def test_two_sides_take_turns(tmp_path):
    (tmp_path / "bench_sft.py").write_text(PEER)
    found = run(
        *("--size=T", "--work=sft", "--rounds=1", "--steps=1", "--peer=trl", f"--peer_scripts={tmp_path}"),
        *(f"--peer_python={sys.executable}", f"--results={tmp_path}/results.json"),
    )
    assert found.returncode == 0, found.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    medians = results["work"]["sft"]["medians"]
    assert medians["trl"] == {"rate": 4.0, "seconds": 2.0, "cpu_seconds": 3.0, "peak_mb": 100, "peak_again_mb": 100}
    assert 0 < results["work"]["sft"]["mfu"] < 1
    assert f"ratio {medians['instructjax']['rate'] / 4:.2f}, memory" in found.stdout
    assert len(results["load"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--work=sft,talk"], "error: --work: expected kinds among sft, reward, generation, ppo, found talk"),
        (["--peer_environment=A"], "error: --peer_environment: expected KEY=VALUE, found 'A'"),
        (["--peer=trl"], "error: --peer: expected --peer_scripts and --peer_python with it, found one or both missing"),
    ],
)
def test_impossible_choices_are_named(arguments, message):
    with pytest.raises(scripts.Left, match=f"^{re.escape(message)}$") as left:
        scripts.run("benchmarks/speed.py", *arguments)
    assert left.value.code == 2


def test_it_starts_as_a_script():
    found = run("--work=talk")
    assert (found.returncode, found.stderr.partition(" found ")[2]) == (2, "talk\n")
