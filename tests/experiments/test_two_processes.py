"""The whole recipe, from pretraining to the report, and imports: two processes with four devices each, and one."""

import json
import pathlib
import socket
import subprocess
import sys

import jax
import orbax.checkpoint
import pytest

from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.runs import checkpoint_files, metrics_file
from instructjax.runs.folder import PAPER
from instructjax.stages import pretrain, reward, trained
from instructjax.stages.run import Run
from tests import cpus, recipes

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = {
    "sandbox.documents": 300,
    "sandbox.demonstrations": 100,
    "sandbox.reward_prompts": 100,
    "sandbox.prompts": 120,
    "sandbox.users": 40,
    "sandbox.validation_prompts": 8,
    "model.d_model": 32,
    "model.d_ff": 64,
    "pretrain.steps": 20,
    "sft.epochs": 1,
    "sft.batch_size": 32,
    "sft.selection_prompts": 8,
    "comparisons.prompts": 40,
    "reward.epochs": 1,
    "ppo_init.epochs": 1,
    "ppo_init.batch_size": 32,
    "ppo.iterations": 1,
    "ppo.batch_size": 16,
    "evaluate.prompts": 12,
    "evaluate.batch_size": 16,
    "evaluate.text_windows": 8,
}


def start(script, devices, *flags):
    return subprocess.Popen(
        [sys.executable, f"experiments/{script}", *map(str, flags)],
        cwd=ROOT,
        env=cpus.environment(devices, PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(script, *flags):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
    return [start(script, 4, *flags, coordinator, f"--process_id={i}", "--process_count=2") for i in range(2)]


def outputs(two, timeout):
    """Returns what two processes print, after both have succeeded."""
    printed = [process.communicate(timeout=timeout) for process in two]
    assert [process.returncode for process in two] == [0, 0], "\n".join(error[-2000:] for _, error in printed)
    return [output for output, _ in printed]


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(tmp_path):
    flags = ["--config=configs/sandbox.py:smoke", *(f"--config.{key}={value}" for key, value in SMALL.items())]
    printed = outputs(start_two("reproduce.py", f"--workdir={tmp_path / 'two'}", *flags), timeout=900)
    # The first process alone prints the table. Gloo's threads write to the same output, in the middle of a line too.
    assert ["PPO-ptx" in output for output in printed] == [True, False]

    one = start("reproduce.py", 1, f"--workdir={tmp_path / 'one'}", *flags)
    output, error = one.communicate(timeout=600)
    assert one.returncode == 0, error[-2000:]
    for stage in PAPER:
        found, expected = (metrics_file.read(tmp_path / name / stage / "metrics.jsonl") for name in ("two", "one"))
        assert [line["step"] for line in found] == [line["step"] for line in expected]
        names = {"loss", "accuracy", "validation_loss", "reward", "response_tokens", "policy_loss", "ptx_loss"}
        for here, there in zip(found, expected, strict=True):
            assert here.keys() == there.keys()
            for name in names & there.keys():
                assert here[name] == pytest.approx(there[name], rel=2e-3, abs=2e-3), (stage, name)
    here, there = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("two", "one"))
    assert here.keys() == there.keys() and here["models"].keys() == there["models"].keys()
    for model, entry in there["models"].items():
        if entry:
            assert here["models"][model]["pretrain_loss"] == pytest.approx(entry["pretrain_loss"], rel=2e-3)


def saved_partitions(path):
    """Returns how each array was sharded when it was saved, by the axes of the mesh."""
    arrays = orbax.checkpoint.StandardCheckpointer().metadata(path / "state").item_metadata["params"]
    return jax.tree.map(lambda array: array.sharding.partition_spec, arrays)


LLAMA = {"norm": "rms", "positions": "rotary", "activation": "silu", "gated": True, "biases": "none", "tied": False}
LLAMA |= {"num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "d_head": 4}


@pytest.mark.slow
def test_two_processes_import_the_weights_that_one_imports(tmp_path):
    """A policy, and a reward model whose offset is in config.json, with fsdp over all devices of both processes."""
    pytest.importorskip("safetensors", reason="needs the extra huggingface")
    pytest.importorskip("tokenizers", reason="needs the extra huggingface")
    from tests.stages import test_imported as models

    config = recipes.changed(recipes.recipe(tmp_path), **{f"model__{key}": value for key, value in LLAMA.items()})
    (tmp_path / "recipe.py").write_text(
        f"import ml_collections\n\n\ndef get_config():\n    return ml_collections.ConfigDict({config.to_dict()!r})\n"
    )
    kinds = {"pretrain": (LanguageModel, pretrain.run), "reward": (ScalarModel, reward.run)}
    running = {}
    for stage, (kind, _) in kinds.items():
        folder = tmp_path / stage
        models.folder_of(folder, config, models.PIECES, kind, changes={"score_offset": -1.5})
        flags = [f"--config={tmp_path / 'recipe.py'}", f"--stage={stage}", f"--source={folder}"]
        running[stage] = start_two("import_weights.py", *flags, f"--workdir={tmp_path / 'two' / stage}")
    for stage, (_, run) in kinds.items():
        run(Run(models.importing(config, stage, tmp_path / stage), tmp_path / "one" / stage))
    for stage, two in running.items():
        outputs(two, timeout=300)
        folders = [tmp_path / name / stage / stage / "checkpoints" for name in ("two", "one")]
        load = trained.open_policy if stage == "pretrain" else trained.open_reward_model
        models.assert_identical(*(load(folder)[0].params for folder in folders))
        paths = [checkpoint_files.step_path(folder, 0) for folder in folders]
        here, there = (checkpoint_files.read_content(path)["arrays"] for path in paths)
        assert here == there
        here, there = map(saved_partitions, paths)
        assert here == there and here["trunk"]["token_embedding"] == (None, "fsdp")
        found, expected = (metrics_file.read(folder.parent / "metrics.jsonl")[0] for folder in folders)
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
