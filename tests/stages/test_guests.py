"""REINFORCE exactly as in docs/own_algorithm.md: a stage, a section, and a policy that other stages can use."""

import pathlib
import re

import jax
import pytest

from instructjax.errors import ConfigError
from instructjax.models.transformer import ScalarModel
from instructjax.runs import metrics_file
from instructjax.stages import answers
from instructjax.stages.answers import Sampling
from instructjax.stages.run import Run
from tests import fakes
from tests.recipes import changed, recipe, save_checkpoint, save_stage

GUIDE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "own_algorithm.md"


def block(title):
    """Returns the code block of the guide that begins with this docstring."""
    (code,) = re.findall(rf'```python\n("""{title}.*?)```', GUIDE.read_text(), flags=re.DOTALL)
    return code


def reinforce():
    """Returns the stage of the guide."""
    names = {"__name__": "reinforce"}
    exec(block("Trains a policy by REINFORCE"), names)  # noqa: S102
    return names["run"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns a run with two iterations of REINFORCE from random weights."""
    home = tmp_path_factory.mktemp("reinforce")
    config = changed(recipe(home), ppo__iterations=2, evaluate__batch_size=8).unlock()
    made = {}
    exec(block("REINFORCE in the sandbox"), made)  # noqa: S102
    config.reinforce = config.ppo.copy_and_resolve_references()
    config.reinforce.learning_rate = made["get_config"]("smoke").reinforce.learning_rate
    config.evaluate.guests = made["get_config"]("smoke").evaluate.guests
    config.reinforce.update(batch_size=16, minibatch_size=8)  # for eight devices
    run = Run(config.lock(), home / "run")
    tokenizer, shape = run.layout.tokenizer, run.reward_config
    save_stage(config, run.workdir, "ppo_init", tokenizer)
    save_checkpoint(config, run.workdir, "reward", tokenizer, shape, {"params": fakes.params(ScalarModel(shape))})
    (run.workdir / "reward" / "summary.json").write_text('{"steps": 1}')
    reinforce()(run)
    return run


def test_it_trains_without_a_value_network(trained):
    *_, last = metrics_file.read(trained.directory("reinforce") / "metrics.jsonl")
    assert last["step"] == 2 and last["policy_loss"] is not None
    assert not [name for name in last if name.startswith("value")]


def test_its_policy_answers(trained):
    policy, layout = trained.open_policy("reinforce")
    ((prompt, _),) = answers.answer(policy, layout, ["the fox"], jax.random.key(0), Sampling(1.0, 8))
    assert prompt == "the fox" and trained.config.evaluate.guests == ("reinforce",)


def test_its_section_is_checked(trained):
    wrong = changed(trained.config, reinforce__clip_ratio=-1)
    with pytest.raises(ConfigError, match="^reinforce.clip_ratio: expected more than 0, found -1"):
        reinforce()(Run(wrong, trained.workdir))


def test_prompts_must_divide_over_devices(trained):
    wrong = changed(trained.config, reinforce__samples_per_prompt=4)
    with pytest.raises(
        ConfigError, match="^reinforce.batch_size / reinforce.samples_per_prompt: expected a multiple of 8"
    ):
        reinforce()(Run(wrong, trained.workdir.parent / "other"))


def test_the_stage_of_dpo_is_the_one_in_the_guide():
    source = (GUIDE.parents[1] / "instructjax" / "stages" / "dpo.py").read_text()
    body = re.sub(r'    """.*?"""\n', "", source[source.index("@stage") :], flags=re.DOTALL)
    for page in ("own_algorithm.md", "architecture.md"):
        assert f"```python\n{body}```" in (GUIDE.parent / page).read_text()
