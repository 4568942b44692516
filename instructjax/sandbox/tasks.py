"""The prompts of the sandbox: ten use cases, written and parsed with the same templates.

A template such as "write a {mood} story about the {animal} ." writes a prompt when its slots are filled, and parses the
prompts that it can write. The use cases have the shares of the paper's Table 1.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping

import numpy as np

from instructjax.errors import RecordError
from instructjax.sandbox import world

USE_CASE_SHARES = {  # the paper's Table 1, in percent
    "generation": 45.6,
    "open_qa": 12.4,
    "brainstorming": 11.2,
    "chat": 8.4,
    "rewrite": 6.6,
    "summarization": 4.2,
    "classification": 3.5,
    "other": 3.5,
    "closed_qa": 2.6,
    "extract": 1.9,
}
MAX_PROMPT_WORDS = 32

SLOTS = {  # a slot name may end with a digit: {animal2} differs from {animal}
    "animal": world.ANIMALS,
    "place": world.PLACES,
    "food": world.FOODS,
    "colour": world.COLOURS,
    "skill": world.SKILLS,
    "size": world.SIZES,
    "thing": world.THINGS,
    "sight": world.SIGHTS,
    "name": world.NAMES,
    "mood": world.MOODS,
    "rude": tuple(sorted(world.RUDE)),
    "attribute": world.ATTRIBUTES,
    "count": ("two", "three"),
    "addend": world.NUMBERS[:5],
    "number": world.NUMBERS[:9],
    "fate": ("found", "lost", "won", "broke"),
    "fate2": ("found", "lost"),
    "category": ("animals", "foods", "places", "colours", "things", "names"),
}
SLOT_OF_VALUE = dict(zip(world.ATTRIBUTES, ("place", "food", "colour", "skill", "animal2", "size"), strict=True))


@dataclasses.dataclass(frozen=True)
class Template:
    """A prompt with slots to fill.

    Attributes:
      use_case: one of USE_CASE_SHARES.
      kind: the kind of answer that the prompt asks for. It decides how answers are written and scored.
      text: words and {slots}. A slot that occurs twice has the same value both times.
      attribute: the attribute of an animal that the prompt asks about; "" if it does not ask about one.
      weight: how often the template is drawn, relative to the other templates of its use case.
    """

    use_case: str
    kind: str
    text: str
    attribute: str = ""
    weight: float = 1.0

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of the slots, in order and without duplicates."""
        return tuple(dict.fromkeys(re.findall(r"\{(\w+)\}", self.text)))

    def pattern(self) -> re.Pattern[str]:
        """Returns a regular expression that matches the prompts of this template, with a group for each slot."""
        parts: list[str] = []
        seen: set[str] = set()
        for literal, slot in re.findall(r"([^{]*)(?:\{(\w+)\})?", self.text):
            parts.append(re.escape(literal))
            if slot:
                parts.append(f"(?P={slot})" if slot in seen else f"(?P<{slot}>{'|'.join(_values(slot))})")
                seen.add(slot)
        return re.compile("".join(parts))


@dataclasses.dataclass(frozen=True)
class Task:
    """A parsed prompt: its template's use case, kind and attribute, and the values of its slots.

    Attributes:
      use_case: see `Template`.
      kind: see `Template`.
      attribute: see `Template`.
      slots: the value of each slot, and the whole prompt as "text".
    """

    use_case: str
    kind: str
    attribute: str
    slots: Mapping[str, str]


def _values(slot: str) -> tuple[str, ...]:
    return SLOTS[slot] if slot in SLOTS else SLOTS[slot.rstrip("0123456789")]


def _templates() -> Iterator[Template]:
    for text, weight in (
        ("write {count} sentences about the {animal} .", 2),
        ("tell me about the {animal} in {count} sentences .", 2),
        ("write one sentence about the {animal} .", 0.5),
        ("tell me about the {animal} . do not name its {attribute} .", 3),
        ("write {count} sentences about the {animal} . use the word {sight} .", 4),
        ("tell me about the {animal} and the {animal2} .", 2),
        ("tell me about the {animal} and the {animal2} . do not name the {attribute} .", 3),
    ):
        yield Template("generation", "describe", text, weight=weight)
    for text, weight in (
        ("write a {mood} story about the {animal} .", 2),
        ("tell a story about the {animal} . use the word {sight} .", 3),
        ("write a {mood} story about the {animal} . use the word {sight} .", 3),
        ("write a {mood} story about the {animal} and the {animal2} .", 2),
        ("write a {mood} story about the {animal} and the {animal2} . use the word {sight} .", 6),
        ("write a {mood} story about the {animal} in {count} sentences . use the word {sight} .", 3),
        ("tell a {mood} story about the {animal} in {count} sentences .", 3),
        ("write a story about the {animal} and the {sight} in {count} sentences .", 2),
    ):
        yield Template("generation", "story", text, weight=weight)

    questions = {
        "home": ("where does the {animal} live ?", "what is the home of the {animal} ?"),
        "food": ("what does the {animal} eat ?", "what is the food of the {animal} ?"),
        "colour": ("what colour is the {animal} ?", "what is the colour of the {animal} ?"),
        "skill": ("what can the {animal} do ?",),
        "friend": ("who does the {animal} like ?", "who is the friend of the {animal} ?"),
        "size": ("how big is the {animal} ?",),
    }
    doubts = {
        "home": "does the {animal} live in the {place} ?",
        "food": "does the {animal} eat {food} ?",
        "colour": "is the {animal} {colour} ?",
        "skill": "can the {animal} {skill} ?",
        "friend": "does the {animal} like the {animal2} ?",
        "size": "is the {animal} {size} ?",
    }
    for attribute in world.ATTRIBUTES:
        value = "{" + SLOT_OF_VALUE[attribute].replace("animal2", "animal3") + "}"
        says = world.WORDINGS[attribute][0].format(value)
        for text in questions[attribute]:
            yield Template("open_qa", "ask", text, attribute)
            yield Template("open_qa", "ask", text + " be brief .", attribute)
        yield Template("open_qa", "doubt", doubts[attribute], attribute, 3)
        yield Template("open_qa", "which", f"who {says} , the {{animal}} or the {{animal2}} ?", attribute, 5)
        if attribute != "friend":
            claim = world.WORDINGS[attribute][0].format("{" + SLOT_OF_VALUE[attribute] + "}")
            yield Template("classification", "true_or_false", f"true or false : the {{animal}} {claim} .", attribute)

    for text, slot in (("animals", "animal"), ("foods", "food"), ("places", "place"), ("colours", "colour")):
        yield Template("brainstorming", "list", f"name {{count}} {text} . do not name {{{slot}}} .")
        yield Template("brainstorming", "list", f"name {{count}} {text} with {{{slot}}} .")
    yield Template("brainstorming", "list", "name {count} {category} .", weight=2)
    for who in ("{name}", "the {animal}"):
        yield Template("brainstorming", "list", f"give {{count}} gifts for {who} .", weight=2)
        yield Template("brainstorming", "list", f"give {{count}} gifts for {who} . do not name {{thing}} .", weight=3)
        ideas = f"what can {who} do in the {{place}} ? give {{count}} ideas ."
        yield Template("brainstorming", "list", ideas, weight=3)

    yield Template("chat", "feel", "hi , i am {name} . i am {mood} today .")
    yield Template("chat", "feel", "hello , my name is {name} and i am {mood} .")
    yield Template("chat", "pet", "hello , i am {name} . my {animal} is {mood} today .", weight=3)
    yield Template("chat", "fate", "hi , i am {name} . i {fate2} my {thing} .", weight=2)
    yield Template("chat", "like", "hello , my name is {name} . i like the {animal} .", weight=2)

    for now, slot in (("eats", "{food}"), ("sees the", "{sight}"), ("meets the", "{animal2}")):
        yield Template("rewrite", "past", f"put in the past : the {{animal}} {now} {slot} .")
    yield Template("rewrite", "swap", "change the {animal} to the {animal2} : the {animal} saw the {sight} .", weight=2)
    yield Template("rewrite", "mood", "make it {mood} : the {mood2} {animal} saw the {sight} .", weight=2)
    yield Template("rewrite", "kind", "make it kind : the {rude} {animal} saw the {sight} .")

    saw, ate, met, went = "saw the {sight}", "ate {food}", "met the {animal2}", "went to the {place}"
    for first, second, third in ((went, saw, ate), (went, ate, met), (met, saw, went), (saw, met, ate)):
        for ask in ("sum up :", "say it in one sentence :"):
            yield Template("summarization", "summary", f"{ask} the {{animal}} {first} . it {second} . it {third} .")

    yield Template("classification", "happy_or_sad", "happy or sad : {name} {fate} the {thing} .", weight=4)
    for slot in ("animal", "food", "place"):
        yield Template("classification", "category", f"animal or food or place : {{{slot}}} .", weight=0.5)

    yield Template("other", "sum", "what is {addend} and {addend2} ?", weight=1)
    yield Template("other", "next", "what comes after {number} ?", weight=0.5)
    yield Template("other", "greet", "say hello to {name} and {name2} .", weight=2)
    yield Template("other", "thank", "thank {name} for the {thing} .", weight=2)

    passage = "{name} has a {colour} {thing} . {name2} has a {colour2} {thing2} ."
    for which in ("", "2"):
        yield Template("closed_qa", "owner", f"{passage} who has the {{thing{which}}} ?")
        yield Template("closed_qa", "paint", f"{passage} what colour is the {{thing{which}}} ?")
        yield Template("closed_qa", "owned", f"{passage} what does {{name{which}}} have ?")
    for slot in ("name", "colour", "thing"):
        yield Template("extract", "find", f"find the {slot} : {{name}} saw a {{colour}} {{thing}} .")


TEMPLATES = tuple(_templates())


def _by_first_word() -> dict[str, list[tuple[Template, re.Pattern[str]]]]:
    index: dict[str, list[tuple[Template, re.Pattern[str]]]] = {}
    for template in TEMPLATES:
        first, pattern = template.text.split()[0], template.pattern()
        for word in _values(first[1:-1]) if first.startswith("{") else (first,):
            index.setdefault(word, []).append((template, pattern))
    return index


_PATTERNS = _by_first_word()


@functools.lru_cache(maxsize=1 << 16)
def parse_prompt(prompt: str) -> Task:
    """Parses a prompt.

    Args:
      prompt: a prompt of the sandbox; white space is not significant.

    Raises:
      RecordError: the prompt matches no template.
    """
    words = " ".join(prompt.split())
    for template, pattern in _PATTERNS.get(words.partition(" ")[0], ()):
        match = pattern.fullmatch(words)
        if match is not None:
            slots = match.groupdict() | {"text": words}
            return Task(template.use_case, template.kind, template.attribute, slots)
    raise RecordError(f"prompt: expected a prompt of the sandbox's world, found {prompt[:60]!r}")


@functools.cache
def _drawn_from(use_case: str) -> tuple[tuple[Template, ...], np.ndarray]:
    chosen = tuple(template for template in TEMPLATES if template.use_case == use_case)
    weights = np.array([template.weight for template in chosen])
    return chosen, np.cumsum(weights / weights.sum())


_USE_CASES = tuple(USE_CASE_SHARES)
_CUMULATED = np.cumsum(list(USE_CASE_SHARES.values())) / sum(USE_CASE_SHARES.values())


def write_prompt(rng: np.random.Generator) -> str:
    """Writes a random prompt. The probability of each use case is its share in Table 1."""
    use_case = _USE_CASES[np.searchsorted(_CUMULATED, rng.random())]
    templates, cumulated = _drawn_from(use_case)
    template = templates[np.searchsorted(cumulated, rng.random())]
    return template.text.format(**_fill(template, rng))


def _fill(template: Template, rng: np.random.Generator) -> dict[str, str]:
    slots: dict[str, str] = {}
    for slot in template.slots:
        values = [value for value in _values(slot) if value not in slots.values()]
        slots[slot] = values[rng.integers(len(values))]
    if template.kind in ("doubt", "true_or_false") and rng.random() < 0.5:  # make half of them true
        slots[SLOT_OF_VALUE[template.attribute]] = world.FACTS[slots["animal"]][template.attribute]
    if template.kind == "which":  # exactly one of the two animals must be right
        value = world.FACTS[slots["animal"]][template.attribute]
        others = [a for a in world.ANIMALS if world.FACTS[a][template.attribute] != value]
        slots["animal2"] = others[rng.integers(len(others))]
        slots[SLOT_OF_VALUE[template.attribute].replace("animal2", "animal3")] = value
        if rng.random() < 0.5:
            slots["animal"], slots["animal2"] = slots["animal2"], slots["animal"]
    return slots
