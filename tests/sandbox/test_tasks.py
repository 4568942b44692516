"""Tests that prompts have the shares of Table 1 and are parsed into the tasks that they were written for."""

import collections

import numpy as np
import pytest

from instructjax.errors import RecordError
from instructjax.sandbox import tasks, world
from instructjax.sandbox.tasks import MAX_PROMPT_WORDS, TEMPLATES, USE_CASE_SHARES, parse_prompt, write_prompt


def _prompts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [write_prompt(rng) for _ in range(count)]


def test_use_cases_have_the_shares_of_table_1():
    count = 5000
    counted = collections.Counter(parse_prompt(prompt).use_case for prompt in _prompts(count))
    for use_case, share in USE_CASE_SHARES.items():
        p = share / sum(USE_CASE_SHARES.values())
        assert abs(counted[use_case] / count - p) < 4 * np.sqrt(p * (1 - p) / count), use_case


def test_every_template_is_drawn_and_parses_its_own_prompts():
    drawn = {(parse_prompt(p).kind, parse_prompt(p).attribute) for p in _prompts(5000)}
    assert drawn == {(t.kind, t.attribute) for t in TEMPLATES}
    rng = np.random.default_rng(1)
    for template in TEMPLATES:
        slots = tasks._fill(template, rng)
        task = parse_prompt(template.text.format(**slots))
        assert (task.use_case, task.kind, task.attribute) == (template.use_case, template.kind, template.attribute)
        assert {slot: task.slots[slot] for slot in slots} == slots


def test_prompts_are_short():
    assert max(len(prompt.split()) for prompt in _prompts(3000)) <= MAX_PROMPT_WORDS


def test_white_space_in_a_prompt_is_ignored():
    prompt = "what does the owl eat ?"
    assert parse_prompt(f"  {prompt.replace(' ', '  ')} ") == parse_prompt(prompt)


def test_exactly_one_of_two_animals_is_right():
    for prompt in _prompts(3000):
        task = parse_prompt(prompt)
        if task.kind == "which":
            values = [value for slot, value in task.slots.items() if slot not in ("animal", "animal2", "text")]
            animals = (task.slots["animal"], task.slots["animal2"])
            assert sum(world.FACTS[animal][task.attribute] in values for animal in animals) == 1, prompt


def test_about_half_of_the_doubted_statements_are_true():
    right = [
        world.FACTS[task.slots["animal"]][task.attribute] in [v for s, v in task.slots.items() if s != "animal"]
        for task in map(parse_prompt, _prompts(5000))
        if task.kind in ("doubt", "true_or_false")
    ]
    assert 0.45 < np.mean(right) < 0.75


def test_a_prompt_outside_the_world_is_rejected():
    with pytest.raises(RecordError, match="prompt: expected a prompt of the sandbox's world, found 'write an essay'"):
        parse_prompt("write an essay")
    with pytest.raises(RecordError):
        parse_prompt("change the fox to the owl : the bear saw the moon .")  # the repeated slot has two values
