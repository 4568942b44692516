"""A recipe for small files of records, and the folder of a stage that looks finished."""

import json

from configs import instructgpt
from instructjax.models.transformer import LanguageModel
from instructjax.runs import checkpoint
from instructjax.stages import workspace
from tests import tiny_models

WORDS = "the fox and the owl sleep in a red forest by night".split()
LINES = [f"{WORDS[i % 11]} {WORDS[i * 3 % 11]} {WORDS[i * 7 % 11]}" for i in range(60)]
RECORDS = {
    "text": [{"text": line} for line in LINES],
    "demonstrations": [{"prompt": line, "response": line[:8]} for line in LINES],
    "prompts": [{"prompt": line} for line in LINES],
    "rankings": [{"prompt": line, "responses": [line[:4], line[:6]], "scores": [1, 0]} for line in LINES],
}


def recipe(tmp_path, **changes):
    """A recipe for small files of records, which are written; `changes` replace the lines of a file."""
    config = instructgpt.get_config().unlock()
    for name, records in RECORDS.items():
        lines = [
            json.dumps({**record, "split": ("train", "validation", "test")[i % 3]}) for i, record in enumerate(records)
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(changes.get(name, lines)) + "\n")
        config.files[name] = str(path)
    config.data.update(separator="\n", max_prompt=16, max_response=12, drop_long=False)
    config.tokenizer.vocab_size = 290
    config.model.update(num_layers=1, d_model=8, num_heads=1, d_head=8, d_ff=8, max_length=32, local_window=None)
    config.model.update(dtype="float32", remat=False)
    config.reward.size = ""
    for name in ("pretrain", "sft", "reward", "ppo_init"):
        config[name].batch_size = 8
    config.pretrain.length = config.ppo.ptx_length = 16
    config.ppo.update(batch_size=8, minibatch_size=8)
    return config.lock()


def save_stage(config, workdir, stage, tokenizer, seed=0):
    """One checkpoint of random weights, and the mark of a finished stage."""
    shape = workspace.model_config(config, tokenizer)
    with checkpoint.Checkpoints(workdir / stage / "checkpoints") as checkpoints:
        params = tiny_models.params(LanguageModel(shape), seed=seed)
        checkpoints.save(1, {"params": params}, meta=workspace.describe(config, shape, tokenizer))
    (workdir / stage / "summary.json").write_text('{"steps": 1}')


def changed(config, **changes):
    """A copy with other values: `sft__epochs=2`, `seed=1`."""
    config = config.copy_and_resolve_references().unlock()
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            config[section][name] = value
        else:
            config[key] = value
    return config.lock()
