"""Prompts are understood as they were meant, in the shares of Table 1."""

import collections

import numpy as np
import pytest

from instructjax.errors import RecordError
from instructjax.sandbox import tasks, world
from instructjax.sandbox.tasks import MAX_PROMPT_WORDS, SHARES, TEMPLATES, parse, write_prompt


def _prompts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [write_prompt(rng) for _ in range(count)]


def test_use_cases_come_in_the_shares_of_table_1():
    count = 5000
    counted = collections.Counter(parse(prompt).use_case for prompt in _prompts(count))
    for use_case, share in SHARES.items():
        p = share / sum(SHARES.values())
        assert abs(counted[use_case] / count - p) < 4 * np.sqrt(p * (1 - p) / count), use_case


def test_every_template_is_drawn_and_recognises_its_own_prompts():
    drawn = {(parse(p).kind, parse(p).attribute) for p in _prompts(5000)}
    assert drawn == {(t.kind, t.attribute) for t in TEMPLATES}
    rng = np.random.default_rng(1)
    for template in TEMPLATES:
        slots = tasks._fill(template, rng)
        task = parse(template.text.format(**slots))
        assert (task.use_case, task.kind, task.attribute) == (template.use_case, template.kind, template.attribute)
        assert {slot: task.slots[slot] for slot in slots} == slots


def test_prompts_are_short():
    assert max(len(prompt.split()) for prompt in _prompts(3000)) <= MAX_PROMPT_WORDS


def test_white_space_of_a_prompt_does_not_matter():
    prompt = "what does the owl eat ?"
    assert parse(f"  {prompt.replace(' ', '  ')} ") == parse(prompt)


def test_of_two_animals_exactly_one_is_right():
    for prompt in _prompts(3000):
        task = parse(prompt)
        if task.kind == "which":
            values = [value for slot, value in task.slots.items() if slot not in ("animal", "animal2", "text")]
            animals = (task.slots["animal"], task.slots["animal2"])
            assert sum(world.FACTS[animal][task.attribute] in values for animal in animals) == 1, prompt


def test_about_half_of_the_doubts_are_right():
    right = [
        world.FACTS[task.slots["animal"]][task.attribute] in [v for s, v in task.slots.items() if s != "animal"]
        for task in map(parse, _prompts(5000))
        if task.kind in ("doubt", "true_or_false")
    ]
    assert 0.45 < np.mean(right) < 0.75


def test_a_prompt_from_outside_the_world_is_refused():
    with pytest.raises(RecordError, match="prompt: expected a prompt of the sandbox's world, found 'write an essay'"):
        parse("write an essay")
    with pytest.raises(RecordError):
        parse("change the fox to the owl : the bear saw the moon .")  # the slot that comes twice differs
