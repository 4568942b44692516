"""Tests that the prompts that the sets of a run have in common are counted, by set and split, and once."""

import json

import pytest

from instructjax.data import checked
from instructjax.stages.run import Run
from tests import recipes


def demonstrated(prompt, split, response="a fox"):
    return json.dumps({"prompt": prompt, "response": response, "split": split})


def asked(prompt, split):
    return json.dumps({"prompt": prompt, "split": split})


DEMONSTRATIONS = [
    demonstrated("the red fox", "train"),
    demonstrated("The  red FOX", "train"),  # the same prompt
    demonstrated("the owl", "train"),
    demonstrated("a forest", "train", response="night " * 20),  # too long, so it is not used
    demonstrated("by night", "validation"),
    demonstrated("an owl", "test"),
]
PROMPTS = [
    asked("the red fox", "train"),
    asked("a forest", "train"),
    asked("by night", "train"),
    asked("the owl and the fox", "validation"),
    asked("an owl", "test"),
    asked("a fox", "test"),
]


@pytest.mark.parametrize("shared_prompts", ["keep", "leave out"])
def test_prompts_of_two_sets_are_counted_where_they_are_used(tmp_path, monkeypatch, shared_prompts):
    config = recipes.changed(
        recipes.recipe(tmp_path, demonstrations=DEMONSTRATIONS, prompts=PROMPTS),
        data__shared_prompts=shared_prompts,
        data__strict=False,
        files__rankings="",
    )
    run = Run(config, tmp_path / "run")
    _ = run.layout
    found = json.loads((run.data_folder / "overlap.json").read_text())
    leaks = [["demonstrations", "validation", "prompts", "train", 1]] if shared_prompts == "keep" else []
    assert found["shared"] == [
        ["demonstrations", "train", "prompts", "train", 1],
        *leaks,
        ["demonstrations", "test", "prompts", "test", 1],
    ]
    assert found["prompts"]["demonstrations"] == {"train": 2, "validation": 1, "test": 1}
    lines = ["| demonstrations | train | 2 | prompts | train | 1 | 50.0 |"]
    lines += ["| demonstrations | validation | 1 | prompts | train | 1 | 100.0 |"] if leaks else []
    assert "\n".join(lines) in (run.data_folder / "report.md").read_text()

    monkeypatch.setattr("instructjax.data.overlap._prompts", None)  # it is counted already
    _ = Run(config, run.workdir).layout
    assert checked.read(run.data_folder / "checked.json").keys() == {"text", "demonstrations", "prompts"}
