"""States a run's findings in sentences that claim only what the numbers support."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructjax.reporting.figures import lookup, styles
from instructjax.reporting.tables import Estimate, Results, known_models, one_line

LEAST_TAX = 0.01  # nats per token; the loss on text has no interval, and a smaller difference is not interpreted
SMOKE = (
    "This is a smoke run: it checks that every stage works. Its models are too small and its steps too few to tell "
    "anything about win rates, the alignment tax or the agreement with labelers."
)
TOO_SMALL = "too small to tell"


def alignment_tax(results: Results) -> float | None:
    """Computes the share of the alignment tax that PPO-ptx takes back (section 4.2).

    The tax is the increase of the loss on pretraining text by PPO. The share is
    (ppo - ppo_ptx) / (ppo - gpt): 1 if PPO-ptx predicts the text as well as GPT, 0 if no better
    than PPO. Values above 1 and below 0 are possible.

    Returns:
      The share, or None if a loss is missing or PPO did not increase the loss.
    """
    gpt, ppo, ppo_ptx = (lookup(results, "models", name, "pretrain_loss") for name in ("gpt", "ppo", "ppo_ptx"))
    if gpt is None or ppo is None or ppo_ptx is None or ppo <= gpt:
        return None
    return (ppo - ppo_ptx) / (ppo - gpt)


def is_smoke(results: Results) -> bool:
    """Returns whether a run used the smoke variant of its recipe, such as "configs/sandbox.py:smoke"."""
    return results["config"].rpartition(":")[2] == "smoke"


def findings(results: Results) -> list[str]:
    """Returns one or two sentences per finding; of a smoke run, only a notice that it shows no results."""
    if is_smoke(results):
        return [SMOKE]
    return [
        *_preferences(results),
        *_tax(results),
        *_agreement(results.get("reward_model") or {}),
        *_human(results.get("human") or {}),
    ]


def _preferences(results: Results) -> list[str]:
    names = {model: one_line(styles(results["models"])[model][0]) for model in known_models(results) if model != "sft"}
    better: list[str] = []
    worse: list[str] = []
    unclear: list[str] = []
    for model, name in names.items():
        if estimate := lookup(results, "models", model, "win_rate_vs_sft", "heldout"):
            (better if estimate["low"] > 0.5 else worse if estimate["high"] < 0.5 else unclear).append(name)
    found = []
    if better:
        found.append(f"Held-out labelers prefer {_and(better)} to SFT.")
    if worse:
        found.append(f"Held-out labelers prefer SFT to {_and(worse)}.")
    if unclear:
        found.append(f"The preference between SFT and {_and(unclear)} is {TOO_SMALL}.")
    return found


def _tax(results: Results) -> list[str]:
    share = alignment_tax(results)
    if share is None:
        return []
    given_away = results["models"]["ppo"]["pretrain_loss"] - results["models"]["gpt"]["pretrain_loss"]
    if given_away < LEAST_TAX:
        excess = f"PPO's loss on pretraining text is {given_away:.4f} nats per token above GPT's"
        return [f"The alignment tax is {TOO_SMALL}: {excess}."]
    return [f"PPO-ptx takes back {100 * share:.0f} % of the loss on pretraining text that PPO gave away."]


def _agreement(reward_model: Mapping[str, Any]) -> list[str]:
    found = []
    for group, name in (("training", "training"), ("heldout", "held-out")):
        accuracy, agreement = (
            _first_known(lookup(reward_model, "intervals", measure, group), lookup(reward_model, measure, key))
            for measure, key in (("accuracy", f"{group}_labelers"), ("labeler_agreement", group))
        )
        if accuracy is None:
            continue
        text = f"The reward model orders {_share(accuracy)} of untied pairs as {name} labelers do"
        if agreement is not None:
            text += f"; they agree on {_share(agreement)}"
        if isinstance(accuracy, Mapping) and accuracy["low"] <= 0.5 <= accuracy["high"]:
            text += f". The reward model's difference from chance is {TOO_SMALL}"
        elif _overlap(accuracy, agreement):
            text += f". The difference is {TOO_SMALL}"
        found.append(text + ".")
    return found


def _human(human: Mapping[str, Any]) -> list[str]:
    found = []
    for key, name in (("averaged", "averaged raters"), ("single", "single raters")):
        accuracy = lookup(human, "accuracy", key) or {}
        if accuracy.get("reward_model") is None:
            continue
        text = f"Accuracy on held-out rankings by {name}: reward model {_share(accuracy['reward_model'])}"
        if accuracy.get("length") is not None:
            prefers = human.get("length_prefers")
            text += f", length baseline{f' ({prefers} is better)' if prefers else ''} {_share(accuracy['length'])}"
        if (difference := accuracy.get("difference")) is not None:
            text += f", difference {_share(difference)}"
            text += f" ({TOO_SMALL})" if difference["low"] <= 0 <= difference["high"] else ""
        if accuracy.get("raters") is not None:
            text += f", agreement of raters {_share(accuracy['raters'])}"
        found.append(text + ".")
    if (references := lookup(human, "facts_stated", "references")) is not None:
        found.append(f"Texts by people state {_share(references)} of the facts.")
    return found


def _overlap(one: float | Estimate | None, other: float | Estimate | None) -> bool:
    """Returns whether two intervals overlap; False if either number has no interval."""
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return False
    return one["low"] <= other["high"] and other["low"] <= one["high"]


def _first_known(*values: float | Estimate | None) -> float | Estimate | None:
    return next((value for value in values if value is not None), None)


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _share(value: float | Estimate) -> str:
    if isinstance(value, Mapping):
        return f"{100 * value['mean']:.1f} ± {50 * (value['high'] - value['low']):.1f} %"
    return f"{100 * value:.1f} %"
