"""`reproduce.py` runs the stages in the paper's order, below one bar over all of them."""

import types

import ml_collections
import pytest
import reproduce

from instructjax.runs import progress

FUNCTIONS = {
    "pretrain": ("pretrain", "run"),
    "sft": ("sft", "run"),
    "comparisons": ("comparisons", "collect"),
    "reward": ("reward", "run"),
    "select": ("selection", "select"),
    "ppo_init": ("ppo_init", "run"),
    "ppo": ("ppo", "run"),
    "ppo_ptx": ("ppo", "run_with_text"),
    "tasks": ("public_tasks", "measure"),
    "evaluate": ("evaluate", "evaluate"),
}
STAGES = list(FUNCTIONS)


def without(*names):
    return [name for name in STAGES if name not in names]


class Names(list):
    """The names of stages, without a bar."""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass


@pytest.mark.parametrize(
    ("reward_from", "tasks", "left_out", "expected"),
    [
        ("", "", None, without("tasks")),
        ("", "", "ppo", without("tasks", "ppo")),
        ("another/run", "", None, without("tasks", "comparisons", "reward")),
        ("", "data", None, STAGES),
    ],
)
def test_stages_in_order(monkeypatch, tmp_path, reward_from, tasks, left_out, expected):
    called, named = [], []

    def opened(names, at_least):
        assert at_least == ({} if left_out else {"ppo_ptx": "ppo"})
        named.extend(names)
        return Names(names)

    # Modules are replaced as a whole: `ppo` has two stages.
    modules = {module: types.SimpleNamespace() for module, _ in FUNCTIONS.values()}
    for name, (module, function) in FUNCTIONS.items():
        setattr(modules[module], function, lambda run, name=name: called.append(name))
    for module, fake in modules.items():
        monkeypatch.setattr(reproduce, module, fake)
    checked = []
    modules["public_tasks"].check = lambda run: checked.append(list(called))
    monkeypatch.setattr(progress, "Stages", opened)
    monkeypatch.setattr(reproduce, "_WITHOUT", types.SimpleNamespace(value=left_out))
    config = ml_collections.ConfigDict(
        {"ppo": {"reward_from": reward_from, "reward_function": ""}, "evaluate": {"tasks": tasks}}
    )
    required = []
    fake = types.SimpleNamespace(config=config, workdir=tmp_path, require=lambda *stages: required.extend(stages))
    reproduce.main(fake)
    assert called == named == required == expected
    assert checked == ([[]] if tasks else [])  # before the first stage
