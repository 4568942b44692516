"""Folders of runs, written by hand: a few lines of metrics, recipes of two stages, results of two models."""

import json

RECIPE = {
    "seed": 0,
    "invariants": "stop",
    "log": {"every": 20},
    "sandbox": {"documents": 24_000},
    "pretrain": {"steps": 60, "learning_rate": 3e-3},
    "sft": {"epochs": 16},
    "ppo": {"kl_coefficient": 0.07},
}
CURVE = [{"step": 0, "text_loss": 7.0}, {"step": 20, "loss": 5.0}, {"step": 40, "loss": 4.0, "text_loss": 4.5}]


def changed(recipe, **sections):
    """Returns a recipe in which keys of sections, or keys without one, have other values."""
    return {**recipe, **{k: {**recipe.get(k, {}), **v} if isinstance(v, dict) else v for k, v in sections.items()}}


def estimate(mean):
    return {"mean": mean, "low": mean - 0.02, "high": mean + 0.02, "n": 9}


def results(seed=0, config="configs/sandbox.py", quality=0.7):
    """Returns results of SFT and PPO-ptx, and of the reward model."""
    agreement = {"accuracy": 0.7, "labeler_agreement": 0.75}
    return {
        "seed": seed,
        "config": config,
        "wall_seconds": {"pretrain": 12.0, "sft": 7.0, "total": 19.0},
        "models": {
            model: {
                "params": 500_000,
                "win_rate_vs_sft": {"training": estimate(rate), "heldout": estimate(rate)},
                "likert": 1 + 6 * rate,
                "pretrain_loss": 2 * rate,
                "metadata": {
                    "fails_correct_instruction": 0.2,
                    "satisfies_constraint": 0.4,
                    "hallucination": 0.3,
                    "inappropriate_for_customer_assistant": 0.1,
                },
            }
            for model, rate in (("sft", 0.5), ("ppo_ptx", quality))
        },
        "reward_model": {
            "labeler_agreement": {"heldout": 0.75},
            "intervals": {name: {"training": estimate(m), "heldout": estimate(m)} for name, m in agreement.items()},
        },
    }


def write_run(folder, *, recipe=RECIPE, stages=("pretrain", "sft"), found=None, finished=True, lines=CURVE):
    """Writes the folder of a run.

    Args:
      folder: the run's folder, which does not exist yet.
      recipe: the content of each stage's config.json; None for a run without them.
      stages: those that have begun.
      found: the content of results.json; None for a run without it.
      finished: whether the last stage is finished.
      lines: the metrics of each stage.
    """
    folder.mkdir(parents=True)
    for stage in stages:
        (folder / stage).mkdir()
        (folder / stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if recipe is not None:
            (folder / stage / "config.json").write_text(json.dumps(recipe))
        if finished or stage != stages[-1]:
            (folder / stage / "summary.json").write_text(json.dumps({"steps": lines[-1]["step"], "wall_seconds": 3.0}))
    if found is not None:
        (folder / "results.json").write_text(json.dumps(found))
    return folder
