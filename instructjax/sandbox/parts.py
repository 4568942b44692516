"""All answers to short questions: every wording, with its truth and its fullness.

Questions, classifications, extractions, rewrites and chat are answered in one or two parts. A part is the set of its
possible sentences, right and wrong. An answer has one sentence from each part, in order.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from instructjax.sandbox import world
from instructjax.sandbox.tasks import Task, parse_prompt

# sentence -> (truth, fullness), both in [0, 1]
Part = Mapping[str, tuple[float, float]]
_Sentences = dict[str, tuple[float, float]]  # a Part that is being built

GLAD = ("happy", "proud", "found", "won")
SUMS = {(a, b): world.NUMBERS[i + j + 1] for i, a in enumerate(world.NUMBERS[:5]) for j, b in
        enumerate(world.NUMBERS[:5])}  # fmt: skip
PAST = {"eats": "ate", "sees": "saw", "meets": "met"}


@functools.lru_cache(maxsize=1 << 14)
def answer_parts(prompt: str) -> tuple[Part, ...]:
    """Returns the parts of the answer to a prompt, in order. Prompts that need a long answer have none."""
    task = parse_prompt(prompt)
    make_parts = _PARTS_BY_KIND.get(task.kind)
    return () if make_parts is None else tuple(part for part in make_parts(task) if part)


def bonus_fact_animal(task: Task) -> str | None:
    """Returns the animal about which one additional true fact improves the answer, or None."""
    if "be brief" in task.slots["text"] or task.kind not in ("ask", "doubt", "which", "like"):
        return None
    if task.kind == "which":
        return _right_animal(task)
    return task.slots["animal"]


def _right_animal(task: Task) -> str:
    value = _asked_value(task)
    first, second = task.slots["animal"], task.slots["animal2"]
    return first if world.FACTS[first][task.attribute] == value else second


def _asked_value(task: Task) -> str:
    """Returns the value that a prompt names, such as "red" for "who is red , the fox or the owl ?"."""
    values = world.VALUES[task.attribute]
    named = {slot: value for slot, value in task.slots.items() if slot not in ("text", "animal")}
    if task.kind == "which":
        named.pop("animal2")
    return next(value for value in named.values() if value in values)


def _ask(task: Task) -> list[Part]:
    animal, truth = task.slots["animal"], world.FACTS[task.slots["animal"]][task.attribute]
    part: _Sentences = {}
    for value in world.VALUES[task.attribute]:
        right = float(value == truth)
        part |= {form: (right, 0.3) for form in (value, f"the {value}", f"in the {value}")}
        for says in world.WORDINGS[task.attribute]:
            part[f"it {says.format(value)}"] = (right, 0.9)
            part[f"the {animal} {says.format(value)}"] = (right, 1.0)
    return [part]


def _doubt(task: Task) -> list[Part]:
    animal, asked = task.slots["animal"], _asked_value(task)
    truth = world.FACTS[animal][task.attribute]
    agree = "yes" if asked == truth else "no"
    part = {word: (float(word == agree), 0.3) for word in ("yes", "no")}
    for word in ("yes", "no"):
        for value in world.VALUES[task.attribute]:
            right = 0.5 * (word == agree) + 0.5 * (value == truth) if word == agree else 0.0
            for says in world.WORDINGS[task.attribute]:
                part[f"{word} , the {animal} {says.format(value)}"] = (right, 1.0)
                part[f"{word} , it {says.format(value)}"] = (right, 0.9)
    return [part]


def _which(task: Task) -> list[Part]:
    right, value = _right_animal(task), _asked_value(task)
    part: _Sentences = {}
    for animal in (task.slots["animal"], task.slots["animal2"]):
        truth = float(animal == right)
        part[f"the {animal}"] = part[animal] = (truth, 0.3)
        part |= {f"the {animal} {says.format(value)}": (truth, 1.0) for says in world.WORDINGS[task.attribute]}
    return [part]


def _true_or_false(task: Task) -> list[Part]:
    animal, asked = task.slots["animal"], _asked_value(task)
    truth = world.FACTS[animal][task.attribute]
    label = "true" if asked == truth else "false"
    part: _Sentences = {}
    for word in ("true", "false"):
        right = float(word == label)
        part |= {word: (right, 0.3), f"it is {word}": (right, 0.6)}
        for value in world.VALUES[task.attribute]:
            because = f"it is {word} because the {animal} {world.WORDINGS[task.attribute][0].format(value)}"
            part[because] = (right * (0.5 + 0.5 * (value == truth)), 1.0)
    return [part]


def _labels(right: str, labels: Mapping[str, str], because: str = "") -> list[Part]:
    """Returns the part of a classification. If there is a reason, only sentences that state it are full.

    Args:
      right: the right label.
      labels: the article of each label.
      because: the reason, if any.
    """
    part: _Sentences = {}
    for label, article in labels.items():
        truth = float(label == right)
        part |= {label: (truth, 0.3), f"it is {article}{label}": (truth, 0.6 if because else 1.0)}
        if because:
            part[f"it is {article}{label} because {because}"] = (truth, 1.0)
    return [part]


def _happy_or_sad(task: Task) -> list[Part]:
    name, fate, thing = (task.slots[slot] for slot in ("name", "fate", "thing"))
    right = "happy" if fate in GLAD else "sad"
    return _labels(right, {"happy": "", "sad": ""}, f"{name} {fate} the {thing}")


def _category(task: Task) -> list[Part]:
    right = next(slot for slot in task.slots if slot != "text")
    return _labels(right, {"animal": "an ", "food": "a ", "place": "a "})


def _choices(values: tuple[str, ...], right: str, full: str) -> list[Part]:
    part: _Sentences = {}
    for value in values:
        part[value] = (float(value == right), 0.3)
        part[full.format(value)] = (float(value == right), 1.0)
    return [part]


def _sum(task: Task) -> list[Part]:
    a, b = task.slots["addend"], task.slots["addend2"]
    return _choices(world.NUMBERS, SUMS[a, b], f"{a} and {b} is {{}}")


def _next(task: Task) -> list[Part]:
    number = task.slots["number"]
    right = world.NUMBERS[world.NUMBERS.index(number) + 1]
    return _choices(world.NUMBERS, right, f"{{}} comes after {number}")


def _greet(task: Task) -> list[Part]:
    a, b = task.slots["name"], task.slots["name2"]
    part = {f"hello {name}": (0.3, 0.3) for name in world.NAMES}
    part |= {f"hello {c} and {d}": (len({c, d} & {a, b}) / 2, 1.0) for c in world.NAMES for d in world.NAMES if c != d}
    return [part]


def _thank(task: Task) -> list[Part]:
    part: _Sentences = {}
    for name in world.NAMES:
        right = 0.5 * (name == task.slots["name"])
        part[f"thanks {name}"] = (2 * right, 0.4)
        for thing in world.THINGS:
            part[f"thanks {name} for the {thing}"] = (right + 0.5 * (thing == task.slots["thing"]), 1.0)
    return [part]


def _people(task: Task) -> list[dict[str, str]]:
    return [{slot: task.slots[slot + i] for slot in ("name", "colour", "thing")} for i in ("", "2")]


def _asked_person(task: Task, slot: str) -> dict[str, str]:
    question = task.slots["text"].rsplit(".", 1)[1].split()
    return next(person for person in _people(task) if person[slot] in question)


def _owner(task: Task) -> list[Part]:
    owner = _asked_person(task, "thing")
    part: _Sentences = {}
    for person in _people(task):
        truth = float(person is owner or person["name"] == owner["name"])
        part |= {person["name"]: (truth, 0.3), f"{person['name']} has it": (truth, 0.7)}
        part[f"{person['name']} has the {owner['thing']}"] = (truth, 1.0)
    return [part]


def _paint(task: Task) -> list[Part]:
    thing = _asked_person(task, "thing")
    part: _Sentences = {}
    for colour in world.COLOURS:
        truth = float(colour == thing["colour"])
        part |= {colour: (truth, 0.3), f"it is {colour}": (truth, 0.8)}
        part[f"the {thing['thing']} is {colour}"] = (truth, 1.0)
    return [part]


def _owned(task: Task) -> list[Part]:
    owner = _asked_person(task, "name")
    part: _Sentences = {}
    for thing in world.THINGS:
        right = 0.5 * (thing == owner["thing"])
        part |= {f"a {thing}": (2 * right, 0.3), f"{owner['name']} has a {thing}": (2 * right, 0.7)}
        for colour in world.COLOURS:
            truth = right + (0.5 if right and colour == owner["colour"] else 0.0)
            part[f"{owner['name']} has a {colour} {thing}"] = (truth, 1.0)
    return [part]


def _find(task: Task) -> list[Part]:
    slot = task.slots["text"].split()[2]
    values = {"name": world.NAMES, "colour": world.COLOURS, "thing": world.THINGS}[slot]
    return _choices(values, task.slots[slot], f"the {slot} is {{}}")


def _rewrite(task: Task) -> list[Part]:
    source = task.slots["text"].split(" : ")[1].removesuffix(" .")
    return [{source: (0.0, 0.3), rewrite_target(task): (1.0, 1.0)}]


def rewrite_target(task: Task) -> str:
    """Returns the sentence that a rewriting prompt asks for."""
    words = task.slots["text"].split(" : ")[1].removesuffix(" .").split()
    if task.kind == "past":
        words[2] = PAST[words[2]]
    elif task.kind == "swap":
        words[1] = task.slots["animal2"]
    elif task.kind == "mood":
        words[1] = task.slots["mood"]
    else:
        del words[1]
    return " ".join(words)


def _hello(task: Task) -> Part:
    part: _Sentences = {}
    for hello in ("hello", "hi"):
        part[hello] = (1.0, 0.4)
        part |= {f"{hello} {name}": (float(name == task.slots["name"]), 1.0) for name in world.NAMES}
    return part


def _feelings(cause: str, is_glad: bool) -> Part:
    part: _Sentences = {}
    for feeling, truth in (("glad", float(is_glad)), ("sorry", float(not is_glad))):
        part |= {f"i am {feeling}": (truth, 0.5), f"i am {feeling} {cause}": (truth, 1.0)}
    return part


def _feel(task: Task) -> list[Part]:
    mood = task.slots["mood"]
    return [_hello(task), _feelings(f"you are {mood}", mood != "sad")]


def _pet(task: Task) -> list[Part]:
    animal, mood = task.slots["animal"], task.slots["mood"]
    return [_hello(task), _feelings(f"the {animal} is {mood}", mood != "sad")]


def _fate(task: Task) -> list[Part]:
    fate = task.slots["fate2"]
    return [_hello(task), _feelings(f"you {fate} the {task.slots['thing']}", fate in GLAD)]


def _like(task: Task) -> list[Part]:
    likes = {f"i like the {animal} too": (float(animal == task.slots["animal"]), 1.0) for animal in world.ANIMALS}
    return [_hello(task), likes | {"i like it too": (1.0, 0.6)}]


_PARTS_BY_KIND = {
    "ask": _ask,
    "doubt": _doubt,
    "which": _which,
    "true_or_false": _true_or_false,
    "happy_or_sad": _happy_or_sad,
    "category": _category,
    "sum": _sum,
    "next": _next,
    "greet": _greet,
    "thank": _thank,
    "owner": _owner,
    "paint": _paint,
    "owned": _owned,
    "find": _find,
    "past": _rewrite,
    "swap": _rewrite,
    "mood": _rewrite,
    "kind": _rewrite,
    "feel": _feel,
    "pet": _pet,
    "fate": _fate,
    "like": _like,
}
