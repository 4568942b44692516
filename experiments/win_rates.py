"""Compares models by judged answers: win rates, Likert scores, flags, and the labelers' agreement.

    python experiments/win_rates.py --judged=judged.jsonl --baseline=sft [--json=PATH]

A line of the file is {"prompt": ..., "responses": [...], "models": [...], "scores": [...]}, and may have "labeler" and
"metadata". With --field=rewards, the file is the output of score.py, and the reward model is the judge.
"""

from collections.abc import Mapping
from typing import Any

import command_line
from absl import flags

from instructjax import files
from instructjax.evaluation import comparison
from instructjax.stages.run import Run

_JUDGED = flags.DEFINE_string("judged", None, "The file, .jsonl or .jsonl.gz.", required=True)
_BASELINE = flags.DEFINE_string("baseline", None, "The model with which the others are compared.", required=True)
_FIELD = flags.DEFINE_enum("field", "scores", ["scores", "rewards"], "The field that holds the scores.")
_JSON = flags.DEFINE_string("json", None, "A file to write the results to.")


def main(_: Run) -> None:
    """Prints the comparison."""
    judged = comparison.read(files.parse(_JUDGED.value, "--judged"), _FIELD.value)
    results = {
        "baseline": _BASELINE.value,
        "models": comparison.compare(judged, _BASELINE.value),
        "ratings": comparison.ratings(judged),
        "agreement": comparison.labeler_agreement(judged),
    }
    if _JSON.value:
        files.write_json(files.parse(_JSON.value, "--json"), results)
    print("\n".join(lines(results)))


def lines(results: Mapping[str, Any]) -> list[str]:
    """Returns the lines to print."""
    found = [f"{'model':20}{'win rate':>17} {'length-controlled':>18} {'wins':>6} {'ties':>6} {'losses':>6}"]
    for model, one in results["models"].items():
        controlled = f"{one['length_controlled']:.3f}"
        counts = " ".join(f"{one[name]:6}" for name in ("wins", "ties", "losses"))
        found.append(f"{model:20}{_interval(one['win_rate']):>17} {controlled:>18} {counts}")
    for model, fields in results["ratings"].items():
        found += [f"{model}: {field} {_interval(estimate)}" for field, estimate in fields.items()]
    agreement = results["agreement"]
    if agreement["alpha"] is not None:
        found.append(f"labelers: Krippendorff's alpha {agreement['alpha']:.3f}")
    if agreement["pairwise"]:
        found.append(f"labelers: pairwise agreement {_interval(agreement['pairwise'])}")
        found += [f"  {name}: {one['agreement']:.3f} (n {one['n']})" for name, one in agreement["labelers"].items()]
    return found


def _interval(estimate: Mapping[str, float]) -> str:
    return f"{estimate['mean']:.3f} ± {(estimate['high'] - estimate['low']) / 2:.3f}"


if __name__ == "__main__":
    command_line.read(main)
