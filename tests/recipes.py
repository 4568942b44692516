"""Recipes for small files of records, and folders of stages that look finished."""

import json

from configs import instructgpt
from instructjax.models import sizes
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.runs import checkpoint, folder
from instructjax.stages import beginning, dpo, ppo, ppo_init, pretrain, reward, sft
from instructjax.stages.run import Run, policy_config
from instructjax.stages.stage import Stage
from tests import fakes

WORDS = "the fox and the owl sleep in a red forest by night".split()
LINES = [f"{WORDS[i % 11]} {WORDS[i * 3 % 11]} {WORDS[i * 7 % 11]}" for i in range(60)]
RECORDS = {
    "text": [{"text": line} for line in LINES],
    "demonstrations": [{"prompt": line, "response": line[:8]} for line in LINES],
    "prompts": [{"prompt": line} for line in LINES],
    "rankings": [{"prompt": line, "responses": [line[:4], line[:6]], "scores": [1, 0]} for line in LINES],
}

STAGES = (pretrain.run, sft.run, reward.run, ppo_init.run, ppo.run, ppo.run_with_text, dpo.run)
DECLARATIONS = {stage.declaration.name: stage.declaration for stage in STAGES}


def recipe(tmp_path, **changes):
    """Writes small files of records and returns a recipe for them; `changes` replace the lines of a file."""
    config = instructgpt.get_config().unlock()
    for name, records in RECORDS.items():
        lines = [
            json.dumps({**record, "split": ("train", "validation", "test")[i % 3]}) for i, record in enumerate(records)
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(changes.get(name, lines)) + "\n")
        config.files[name] = str(path)
    config.data.update(separator="\n", max_prompt=16, max_response=12, strict=True, shared_prompts="keep")
    config.tokenizer.vocab_size = 290
    config.model.update(num_layers=1, d_model=8, num_heads=1, d_head=8, d_ff=8, max_length=32, local_window=None)
    config.model.update(dtype="float32", remat="dense")
    config.reward.size = ""
    for name in ("pretrain", "sft", "reward", "ppo_init"):
        config[name].batch_size = 8
    config.pretrain.length = config.ppo.ptx_length = 16
    config.ppo.update(batch_size=8, minibatch_size=8)
    return config.lock()


def prepare(config, workdir):
    """Prepares the records, and returns their layout."""
    return Run(config, workdir).layout


def save_stage(config, workdir, stage, tokenizer, seed=0):
    """Saves a checkpoint of random weights, and marks the stage as finished."""
    shape, kind = policy_config(config, tokenizer.vocab_size), LanguageModel
    if DECLARATIONS[stage].policy is None:
        shape, kind = sizes.resized(shape, config.reward.size), ScalarModel
    params = fakes.params(kind(shape), seed=seed)
    save_checkpoint(config, workdir, stage, tokenizer, shape, _state(stage, params))
    (workdir / stage / "summary.json").write_text('{"steps": 1}')


def save_adapters(config, workdir, stage):
    """Saves a checkpoint of fresh adapters on the pretrained base, and marks the stage as finished."""
    run = Run(config, workdir)
    opened = Stage(run, DECLARATIONS[stage])
    base, learned = opened.with_adapters(run.load_start("pretrain"), run.policy_config)
    meta = opened.meta(run.policy_config, run.layout.tokenizer, opened.describe_base(base))
    with checkpoint.Checkpoints(workdir / stage / "checkpoints") as checkpoints:
        checkpoints.save(1, {"params": learned}, meta=meta)
    (workdir / stage / "summary.json").write_text('{"steps": 1}')


def save_run(run):
    """Makes all of the paper's stages look finished, with random weights and a chosen SFT checkpoint."""
    for seed, stage in enumerate(folder.PAPER):
        if not run.is_finished(stage):
            save_stage(run.config, run.workdir, stage, run.layout.tokenizer, seed)
        (run.directory(stage) / "metrics.jsonl").touch()
    reward_model = checkpoint.fingerprint(run.checkpoints("reward"))
    chosen = {"step": 1, "reward": {"1": 0.0}, "reward_model": reward_model}
    (run.directory("sft") / "selected.json").write_text(json.dumps(chosen))


def save_checkpoint(config, workdir, stage, tokenizer, shape, state, step=1):
    """Saves a checkpoint of a stage, with its metadata."""
    with checkpoint.Checkpoints(workdir / stage / "checkpoints") as checkpoints:
        checkpoints.save(step, state, meta=opened(config, workdir, stage).meta(shape, tokenizer))


def opened(config, workdir, stage):
    """Returns the `Stage` of a name."""
    return Stage(Run(config, workdir), DECLARATIONS[stage])


def begin(config, workdir, stage):
    """Records what a stage begins with; if it has begun, compares that or raises an error."""
    run, declaration = Run(config, workdir), DECLARATIONS[stage]
    if beginning.has_begun(run, declaration):
        beginning.check(run, declaration)
    else:
        beginning.note(run, declaration)


def _state(stage, params):
    """Returns a state with the weights at the path that the stage declares; for a reward model, its params."""
    for key in reversed((DECLARATIONS[stage].policy or "params").split("/")):
        params = {key: params}
    return params


def changed(config, **changes):
    """Returns a copy with other values, such as `sft__epochs=2` or `seed=1`."""
    config = config.copy_and_resolve_references().unlock()
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            config[section][name] = value
        else:
            config[key] = value
    return config.lock()
