"""Work outside of training has bars, which count every answer. Samplers and reward models are fakes."""

import types
import weakref

import numpy as np
import pytest

from instructjax.records import Prompt
from instructjax.rollout import samplers
from instructjax.runs import progress
from instructjax.stages import comparisons, evaluate, few_shot
from instructjax.stages.rewards import Rewards
from instructjax.stages.run import Run
from tests.recipes import changed, recipe


class Counted:
    """A bar that remembers what it counted."""

    def __init__(self, label, total, unit):
        self.label, self.total, self.unit, self.n = label, total, unit, 0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def add(self, n):
        self.n += n

    over = progress.Bar.over


@pytest.fixture
def bars(monkeypatch):
    """All bars that are opened."""
    opened = []

    def bar(*arguments):
        opened.append(Counted(*arguments))
        return opened[-1]

    monkeypatch.setattr(progress, "Bar", bar)
    return opened


ZEROS = Rewards(
    of_episodes=lambda prompts, episodes, texts: np.zeros(len(texts)),
    of_texts=lambda prompts, answered: np.zeros((len(prompts), 2)),
    of_rankings=lambda rankings: [],
)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with four prompts to a batch, whose models answer each prompt with "a"."""

    def make_sampler(model, layout, *, batch_size, **sampling):
        def sampler(params, prompts, key):
            for first in range(0, len(prompts), batch_size):
                count = len(prompts[first : first + batch_size])
                yield types.SimpleNamespace(response_mask=np.ones((batch_size, 3))), ["a"] * count

        return sampler

    monkeypatch.setattr(samplers, "make_sampler", make_sampler)
    monkeypatch.setattr(samplers, "make_divergence", lambda model, *_: lambda *arguments: np.zeros(4))
    config = changed(recipe(tmp_path), model__max_length=64, evaluate__few_shot_candidates=2)
    config = changed(config, evaluate__few_shot_prompts=4, evaluate__batch_size=4)
    run = Run(config, tmp_path / "run")
    assert run.layout  # records are prepared before bars are counted
    return run


def model(run):
    network = types.SimpleNamespace(config=run.policy_config)
    return types.SimpleNamespace(model=network, params=None, tokenizer=run.layout.tokenizer)


def test_comparisons_count_the_answers(run, bars):
    prompts = [Prompt(prompt="the fox")] * 5
    answered = list(comparisons.sample_answers(run, [lambda: (model(run), run.layout)], prompts, seed=0))
    assert [prompt for prompt, _ in answered] == ["the fox"] * 5
    (bar,) = bars
    assert bar.label == "comparisons: answer"
    assert bar.n == bar.total == sum(len(texts) for _, texts in answered)


def test_the_search_for_a_prefix_counts_the_answers(run, bars):
    assert few_shot.choose_prefix(run, model(run), ZEROS)
    assert [(bar.label, bar.n, bar.total) for bar in bars] == [("evaluate: few-shot prefixes", 8, 8)]


def test_the_evaluation_counts_the_answers_of_a_model(run):
    bar, prompts = Counted("answers", 10, "answer"), [Prompt(prompt="the fox")] * 10
    found = evaluate.sample_answers(run, model(run), ZEROS, model(run), prompts, 0, bar)
    assert bar.n == len(found.texts) == 10


def test_one_policy_after_the_other_is_in_memory(run, monkeypatch):
    class Weights:
        pass

    alive, counts = weakref.WeakSet(), []

    def load_policy(self, stage, step=None):
        policy = model(run)
        policy.params = Weights()
        alive.add(policy.params)
        counts.append(len(alive))
        return policy

    monkeypatch.setattr(Run, "load_policy", load_policy)
    for name in ("check_policy", "load_start", "validation_text"):
        monkeypatch.setattr(Run, name, lambda *_: None)
    monkeypatch.setattr(evaluate, "held_out_loss", lambda model: lambda params, text: 0.5)
    steps = {"gpt": None, "sft": 3, "ppo": None}
    found, losses, prefix = evaluate._answer_all(run, steps, ZEROS, [Prompt(prompt="the fox")] * 3)
    assert counts == [1, 1, 1]
    assert list(found) == ["gpt", "gpt_prompted", "sft", evaluate.AGAIN, "ppo"] and prefix
    assert losses == dict.fromkeys(["gpt", "gpt_prompted", "sft", "ppo"], 0.5)
