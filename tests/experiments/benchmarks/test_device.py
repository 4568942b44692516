"""The benchmark of accelerators, rehearsed on a CPU: what each part measures, and what becomes of one that fails."""

import json
import pathlib
import subprocess
import sys
import types

import jax
import pytest
from absl import app
from benchmarks import device, device_page, device_parts, device_recipes

SCRIPT = pathlib.Path(device.__file__)
TASK = device_parts.Task(rehearse=True, topology="cpu:8")


def merged(measurements):
    return {key: value for one in measurements for key, value in one.items()}


def test_the_machine_is_described_and_its_rates_are_measured():
    found = merged(device_parts.machine(TASK))
    assert (found["devices"], found["topology"]) == (8, "cpu:8")
    assert all(found[rate] > 1e6 for rate in ("matmul_flops", "bandwidth", "all_reduce_bandwidth"))


@pytest.mark.parametrize(
    ("kind", "platform", "coords", "name"),
    [
        ("TPU v5 lite", "tpu", [(x, y, 0) for x in range(2) for y in range(4)], "v5e:2x4"),
        ("TPU v4", "tpu", [(x, y, 0) for x in range(2) for y in range(2)], "v4:2x2x1"),
        ("NVIDIA H100 80GB HBM3", "gpu", [None], "h100:1"),
        ("NVIDIA T4", "gpu", [None], ""),
        ("cpu", "cpu", [None] * 2, "cpu:2"),
    ],
)
def test_chips_have_the_name_that_a_plan_needs(kind, platform, coords, name):
    devices = [types.SimpleNamespace(device_kind=kind, platform=platform, coords=place) for place in coords]
    assert device_parts.topology_of(devices) == name


def test_a_program_runs_on_the_mesh_of_all_devices_and_is_measured():
    (found,) = device_parts.programs_of("124M", ("sft",), TASK)
    assert found["units"] == 16 * 64
    assert found["seconds"] > 0 and found["steps"] >= 1 and found["peak_by_compiler"] > 0
    assert found["phases"]["gradients"]["flops"] > found["phases"]["update"]["flops"] == 0


def test_attention_is_compared_with_float32():
    found = list(device_parts.attention_parity(TASK))
    assert [one["attention"] for one in found] == ["packed rows", "answers to one prompt"]
    for one in found:
        assert one["kernel"] == "einsums" and 0 < one["error"] <= 2 * one["error_of_einsums"] < 0.05


def test_batches_have_the_shapes_of_the_programs():
    config = device_recipes.recipe("1.3B", rehearse=True)
    for name in device_recipes.PROGRAMS:
        program = device_parts.programs.build(name, config)
        batch = device_recipes.batch(name, config)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), batch) == jax.tree.map(
            lambda x: (x.shape, x.dtype), program.batch
        )


def results():
    """Returns results of one program on two devices, of which a part has failed."""
    work = {"flops": 2e12, "weight_bytes": 0.0, "bytes": 0.0}
    program = {
        "size": "124M", "program": "sft", "seconds": 4.0, "steps": 3, "compile_seconds": 9.0, "units": 800, "tensor": 1,
        "peak_by_compiler": 2**30, "peak_measured": 2**31, "phases": {"gradients": work},
        "changes": {},
    }  # fmt: skip
    facts = {"device": "TPU v5 lite", "devices": 2, "topology": "v5e:1x2", "matmul_flops": 1e12, "bandwidth": 1e9}
    plan = {"size": "124M", "program": "sft", "peak_planned": 3 * 2**30, "obstacle": ""}
    return {
        "rehearsal": False,
        "command": "python experiments/benchmarks/device.py --folder=FOLDER",
        "versions": {"jax": "0.0"},
        "parts": {
            "machine": {"seconds": 1.0, "measurements": [facts]},
            "124M sft": {"seconds": 2.0, "measurements": [program]},
            "plan": {"seconds": 3.0, "measurements": [plan]},
            "smoke": {"seconds": 4.0, "measurements": [], "error": "stopped after 4 s"},
        },
    }


def test_the_page_compares_measurements_with_peaks_bounds_and_plans():
    page = device_page.page(results())
    assert page.startswith("# 2 x TPU v5 lite\n")
    assert "| matmul, bfloat16 | 1 Tflop/s | 197 |" in page
    # 2 Tflop in 4 s on 2 chips of 1 Tflop/s: a quarter; the bound is 1 s.
    assert "| 124M sft | 200 tokens/s | 4 (3) | 0.001 | 0.250 | 1 | 0.25 | 3 | 1 | 2 | 9 |" in page
    assert "| smoke | 4 | stopped after 4 s |" in page


def test_a_changed_recipe_is_named_and_has_no_plan():
    changed = results()
    (program,) = changed["parts"]["124M sft"]["measurements"]
    program["changes"] = {"model__remat": "all"}
    page = device_page.page(changed)
    assert "| 124M sft model.remat=all | 200 tokens/s | 4 (3) | 0.001 | 0.250 | 1 | 0.25 | - | 1 | 2 | 9 |" in page


def test_a_key_of_the_recipe_is_changed():
    assert device_recipes.recipe("1.3B", rehearse=True, model__remat="offload").model.remat == "offload"


def test_the_page_of_the_h100_is_that_of_its_results():
    folder = device.ROOT / "docs" / "device"
    measured = json.loads((folder / "h100.json").read_text())
    assert (folder / "h100.md").read_text() == device_page.page(measured)


def test_a_page_of_nothing_names_the_failed_part():
    failed = results() | {"parts": {"machine": {"seconds": 1.0, "measurements": [], "error": "no device"}}}
    assert "| machine | 1 | no device |" in device_page.page(failed)


def test_a_part_that_fails_leaves_its_reason(tmp_path):
    found = device.run_part("layouts", "h100:1", 100, tmp_path, rehearse=False)
    assert found["error"] == "error: expected 8 devices to compare layouts on, found h100:1"
    assert found["measurements"] == []


def test_a_part_that_takes_too_long_is_stopped(tmp_path):
    found = device.run_part("machine", "", 0.01, tmp_path, rehearse=True)
    assert found["error"] == "stopped after 0 s" and found["seconds"] < 60


def test_a_folder_is_filled_in_several_calls_of_the_same_code(tmp_path, monkeypatch):
    for name, value in {"REHEARSE": True, "PARTS": ["attention", "plan"], "SECONDS": 60, "TOPOLOGY": ""}.items():
        monkeypatch.setattr(device, f"_{name}", types.SimpleNamespace(value=value))
    planned_for = []

    def run_part(name, topology, *_, **__):
        planned_for.append(topology)
        return {"seconds": 2.0, "measurements": []}

    monkeypatch.setattr(device, "run_part", run_part)
    of_this = {"rehearsal": True, "command": "python experiments/benchmarks/device.py --folder=FOLDER --rehearse"}
    of_this |= {"versions": device_parts.versions()}
    parts = results()["parts"] | {"attention": {"seconds": 45.0, "measurements": [], "error": "stopped after 45 s"}}
    (tmp_path / "device.json").write_text(json.dumps(of_this | {"parts": parts}))
    found = device.measure(tmp_path)
    assert planned_for == ["v5e:1x2"] * 2
    assert found["parts"] == parts | {name: {"seconds": 2.0, "measurements": []} for name in ("attention", "plan")}
    (tmp_path / "device.json").write_text(json.dumps(of_this | {"versions": {"jax": "0.0"}}))
    with pytest.raises(app.UsageError, match=r"device.json: expected versions .* as now, found \{'jax': '0.0'\}"):
        device.measure(tmp_path)


@pytest.mark.slow
def test_the_whole_benchmark_is_rehearsed(tmp_path):
    command = [sys.executable, SCRIPT, "--rehearse", f"--folder={tmp_path}", "--seconds=3000"]
    command.append(f"--parts={','.join(device_parts.PARTS)}")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parts = json.loads((tmp_path / "device.json").read_text())["parts"]
    assert {name: part.get("error") for name, part in parts.items()} == dict.fromkeys(device_parts.PARTS)
    page = (tmp_path / "device.md").read_text()
    assert all(f"| {size} {name} |" in page for size in device_recipes.SIZES for name in device_recipes.PROGRAMS)
    for one in parts["attention"]["measurements"]:
        assert one["error"] <= 2 * one["error_of_einsums"] < 0.05


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "--folder: expected a folder, found none"),
        ({"PARTS": ["smoke", "talk"]}, "--parts: expected some of machine, attention, 124M sft, .*, found talk"),
    ],
)
def test_impossible_choices_are_named(given, message, monkeypatch):
    for name, value in {"ONLY": None, "FOLDER": None, "PARTS": list(device_parts.PARTS), **given}.items():
        monkeypatch.setattr(device, f"_{name}", types.SimpleNamespace(value=value))
    with pytest.raises(app.UsageError, match=message):
        device.main([])
