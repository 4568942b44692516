"""Answers as people write them: with more or less care, and with flaws.

An answer is written in a manner: how full it is, whether it opens and closes
politely, and which flaws it has. The best manner gives an answer of quality near 1.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from instructjax.sandbox import world
from instructjax.sandbox.judges import COUNTS, claims_wanted, listed, sentences_asked
from instructjax.sandbox.parts import parts_of, welcome_animal
from instructjax.sandbox.quality import MAX_RESPONSE_WORDS, OPENINGS, fitting_endings
from instructjax.sandbox.tasks import Task, parse

FLAWS = ("false", "careless", "misread", "miscounted", "rude", "repeated", "opinion", "unfinished")
FLAW_WEIGHTS = np.array((0.25, 0.27, 0.10, 0.16, 0.08, 0.07, 0.03, 0.04))


@dataclasses.dataclass(frozen=True)
class Manner:
    """How an answer is written.

    Attributes:
      fullness: in [0, 1], the chance of each welcome detail.
      opens: whether it opens politely.
      closes: whether it ends with a closing phrase.
      is_wordy: whether it uses the longer wordings too.
      flaws: some of FLAWS: a false statement, a constraint ignored, another kind of
        answer than was asked for, a wrong number of sentences or items, a rude remark, a
        sentence twice, an opinion, no full stop.
    """

    fullness: float
    opens: bool
    closes: bool
    is_wordy: bool = True
    flaws: frozenset[str] = frozenset()


BEST = Manner(fullness=1.0, opens=True, closes=True, is_wordy=False)


def draw_manner(rng: np.random.Generator, care: float, flaw_rate: float) -> Manner:
    """The manner of one answer by a writer.

    Args:
      rng: source of randomness.
      care: in [0, 1], the writer's care; more care gives fuller, politer answers.
      flaw_rate: in [0, 1], the share of the writer's answers that have flaws.
    """
    care = float(np.clip(care + 0.25 * rng.standard_normal(), 0.0, 1.0))
    flaws: frozenset[str] = frozenset()
    if rng.random() < flaw_rate:
        count = 1 + int(rng.random() < 0.4) + int(rng.random() < 0.15)
        flaws = frozenset(rng.choice(FLAWS, size=count, replace=False, p=FLAW_WEIGHTS))
    return Manner(care, rng.random() < 0.8 * care, rng.random() < 0.1 + 0.8 * care, rng.random() < 0.4, flaws)


def write_answer(prompt: str, rng: np.random.Generator, manner: Manner = BEST) -> str:
    """An answer to a prompt of the sandbox, of at most MAX_RESPONSE_WORDS words.

    Raises:
      RecordError: the prompt is not one of the sandbox's.
    """
    task = parse(prompt)
    while True:
        for _ in range(6):  # other facts may be shorter
            words = _written(task, rng, manner)
            if len(words) <= MAX_RESPONSE_WORDS:
                return " ".join(words)
        manner = _shorter(manner)


def _written(task: Task, rng: np.random.Generator, manner: Manner) -> list[str]:
    sentences = _content(task, rng, manner)
    if "repeated" in manner.flaws:
        sentences.append(_one_of(sentences, rng))
    for flaw, remarks in (("rude", world.RUDE_REMARKS), ("opinion", world.OPINIONS)):
        if flaw in manner.flaws:
            animal = task.slots.get("animal", _one_of(world.ANIMALS, rng))
            sentences.append(_one_of(remarks, rng).format(animal=animal))
    answer = [_one_of(OPENINGS, rng)] if manner.opens else []
    answer += sentences
    if manner.closes and "unfinished" not in manner.flaws:
        answer.append(_one_of(fitting_endings(task.use_case), rng))
    words = " ".join(s + (" ?" if s == "how can i help" else " .") for s in answer).split()
    if "unfinished" in manner.flaws:
        words = words[: max(2, len(words) - 1 - int(rng.integers(3)))]
    return words


def _shorter(manner: Manner) -> Manner:
    """The manner next in line when an answer came out too long."""
    if manner.is_wordy:
        return dataclasses.replace(manner, is_wordy=False)
    lengthening = sorted(manner.flaws & {"rude", "opinion", "repeated", "miscounted"})
    if lengthening:
        return dataclasses.replace(manner, flaws=manner.flaws - {lengthening[0]})
    return dataclasses.replace(manner, fullness=0.8 * manner.fullness)


def _one_of(values, rng: np.random.Generator):
    return values[rng.integers(len(values))]


def _misread(task: Task, rng: np.random.Generator) -> Task:
    """Takes a story for a description, and anything else for a story."""
    slots = {"animal": _one_of(world.ANIMALS, rng), **task.slots}
    return dataclasses.replace(task, kind="describe" if task.kind == "story" else "story", slots=slots)


def _content(task: Task, rng: np.random.Generator, manner: Manner) -> list[str]:
    # Without such answers among those that are ranked, the reward model does not learn to tell a
    # story from a description, and PPO finds the one that it rates higher and tells it always.
    if "misread" in manner.flaws:
        task = _misread(task, rng)
    if task.kind == "describe":
        return _join(_described(task, rng, manner), _number_of_sentences(task, rng, manner), rng, manner, task)
    if task.kind == "story":
        return _join(_told(task, rng, manner), _number_of_sentences(task, rng, manner), rng, manner, task)
    if task.kind == "list":
        return [_listed(task, rng, manner)]
    if task.kind == "summary":
        return _summed_up(task, rng, manner)
    return _answered(task, rng, manner)


def _number_of_sentences(task: Task, rng: np.random.Generator, manner: Manner) -> int:
    asked = sentences_asked(task)
    count = asked or 2
    if asked is None and rng.random() > 0.3 + manner.fullness:
        count = 1
    if "miscounted" in manner.flaws:
        count += _one_of((-1, 1), rng) if count > 1 else 1
    return count


def _how_many(task: Task, rng: np.random.Generator, manner: Manner) -> int:
    return 1 + int(rng.binomial(claims_wanted(task) - 1, manner.fullness))


def _fact(animal: str, kind: str, rng: np.random.Generator, lie: bool = False) -> world.Claim:
    truth = world.FACTS[animal][kind]
    others = [value for value in world.VALUES[kind] if value not in (truth, animal)]
    return world.Claim(animal, kind, _one_of(others, rng) if lie else truth)


def _described(task: Task, rng: np.random.Generator, manner: Manner) -> list[world.Claim]:
    """The claims of a description, in order."""
    animal, careless = task.slots["animal"], "careless" in manner.flaws
    kinds = [str(kind) for kind in rng.permutation(world.ATTRIBUTES)]
    if "attribute" in task.slots:
        kinds.remove(task.slots["attribute"])
        if careless:
            kinds.insert(0, task.slots["attribute"])
    claims = [_fact(animal, kind, rng) for kind in kinds[: max(4, _how_many(task, rng, manner))]]
    claims = claims[: max(_how_many(task, rng, manner), sentences_asked(task) or 1)]
    if "animal2" in task.slots and not careless:
        claims = claims[:2] + [_fact(task.slots["animal2"], kinds[3], rng)]
    if "sight" in task.slots and not careless:
        claims = claims[:2]
        claims.insert(int(rng.integers(len(claims) + 1)), world.Claim(animal, "sees", task.slots["sight"]))
    if "false" in manner.flaws:
        i = next(i for i in rng.permutation(len(claims)) if claims[i].kind != "sees" or len(claims) == 1)
        kind = kinds[0] if claims[i].kind == "sees" else claims[i].kind
        claims[i] = _fact(claims[i].animal, kind, rng, lie=True)
    return claims


def _told(task: Task, rng: np.random.Generator, manner: Manner) -> list[world.Claim]:
    """The claims of a story, in order; a feeling comes first."""
    animal, careless = task.slots["animal"], "careless" in manner.flaws
    others = [other for other in world.ANIMALS if other != animal]
    made = {
        "felt": task.slots.get("mood", _one_of(world.MOODS, rng)),
        "went": _one_of(world.PLACES, rng),
        "saw": _one_of(world.SIGHTS, rng),
        "met": task.slots.get("animal2", _one_of(others, rng)),
        "ate": world.FACTS[animal]["food"],
    }
    if "sight" in task.slots:
        made["saw"] = task.slots["sight"]
    needed = {kind for slot, kind in (("mood", "felt"), ("sight", "saw"), ("animal2", "met")) if slot in task.slots}
    if careless and needed:
        dropped = _one_of(sorted(needed), rng)
        needed.remove(dropped)
        made.pop(dropped)
    if "false" in manner.flaws:
        made["ate"] = _one_of([food for food in world.FOODS if food != made["ate"]], rng)
        needed.add("ate")
    wanted = max(_how_many(task, rng, manner), sentences_asked(task) or 1, len(needed))
    for kind in map(str, rng.permutation(sorted(made))):
        if len(needed) < wanted:
            needed.add(kind)
    return [world.Claim(animal, kind, value) for kind, value in made.items() if kind in needed]


def _join(claims: list[world.Claim], count: int, rng: np.random.Generator, manner: Manner, task: Task) -> list[str]:
    """Puts claims into so many sentences, as far as they go, two at most in one."""
    is_story = task.kind == "story"
    mood = ""
    if is_story and claims[0].kind == "felt" and len(claims) > max(count, 1):
        mood, claims = claims[0].value + " ", claims[1:]
    groups = [[claim] for claim in claims]
    while len(groups) > max(count, 1):  # merge neighbours about the same animal
        pairs = [
            i
            for i in range(len(groups) - 1)
            if len(groups[i]) + len(groups[i + 1]) == 2 and groups[i][0].animal == groups[i + 1][0].animal
        ]
        if not pairs:
            break
        i = _one_of(pairs, rng)
        groups[i : i + 2] = [groups[i] + groups[i + 1]]
    groups = groups[: count + 1] if count < 3 else groups
    if sentences_asked(task) or "miscounted" in manner.flaws:
        groups = groups[:count]
    sentences, subject = [], None
    for group in groups:
        named = group[0].animal != subject or (manner.is_wordy and rng.random() < 0.3)
        start = f"the {mood}{group[0].animal}" if named else "it"
        if is_story and subject is None and manner.is_wordy and rng.random() < 0.6:
            start = f"one day {start}"
        subject, mood = group[0].animal, ""
        sentences.append(f"{start} {' and '.join(_predicate(claim, rng, manner) for claim in group)}")
    return sentences


def _predicate(claim: world.Claim, rng: np.random.Generator, manner: Manner) -> str:
    if claim.kind in world.EVENTS:
        return world.EVENTS[claim.kind][0].format(claim.value)
    says = world.SAYS[claim.kind]
    return (_one_of(says, rng) if manner.is_wordy else says[0]).format(claim.value)


def _listed(task: Task, rng: np.random.Generator, manner: Manner) -> str:
    nouns, intro = listed(task)
    text, count = task.slots["text"], COUNTS[task.slots["count"]]
    careless = "careless" in manner.flaws
    special = next((w for slot, w in task.slots.items() if slot not in ("text", "count") and w in nouns), None)
    items = [str(noun) for noun in rng.permutation(nouns) if noun != special]
    if special is not None and ("do not" in text) == careless:
        items.insert(0, special)
    if "miscounted" in manner.flaws:
        count += _one_of((-1, 1), rng)
    items = items[:count]
    if "false" in manner.flaws:
        items[-1] = _one_of(world.PLACES if nouns is not world.PLACES else world.FOODS, rng)
    items = [str(item) for item in rng.permutation(items)]
    joined = " and ".join(filter(None, (" , ".join(items[:-1]), items[-1])))
    return f"{intro} {joined}" if rng.random() < manner.fullness else joined


def _summed_up(task: Task, rng: np.random.Generator, manner: Manner) -> list[str]:
    passage = [sentence.strip() for sentence in task.slots["text"].split(" : ")[1].split(" .")[:-1]]
    if "careless" in manner.flaws or "miscounted" in manner.flaws:
        return passage[: 2 + int(rng.random() < 0.3)]
    events = [(claim.kind, claim.value) for sentence in passage for claim in world.claims(sentence)]
    chosen = sorted(rng.permutation(3)[: 1 + int(rng.random() < manner.fullness)])
    events = [events[i] for i in chosen]
    if "false" in manner.flaws:
        kind, value = events[-1]
        events[-1] = (kind, _one_of([other for other in world.EVENTS[kind][1] if other != value], rng))
    return [f"the {task.slots['animal']} " + " and ".join(world.EVENTS[kind][0].format(v) for kind, v in events)]


def _answered(task: Task, rng: np.random.Generator, manner: Manner) -> list[str]:
    sentences = []
    for part in parts_of(task.slots["text"]):
        right = 1.0
        if "false" in manner.flaws and min(truth for truth, _ in part.values()) < 1:
            right = 0.0
        if task.use_case == "rewrite":
            right = 0.0 if manner.flaws & {"false", "careless"} else 1.0
        usable = [(s, fullness) for s, (truth, fullness) in part.items() if (truth == 1.0) == (right == 1.0)]
        full = rng.random() < manner.fullness
        best = max(fullness for _, fullness in usable)
        fitting = [s for s, fullness in usable if (fullness == best) == full]
        sentences.append(_one_of(fitting or [s for s, _ in usable], rng))
    careless = manner.flaws & {"careless", "miscounted"}
    if careless and len(sentences) > 1:
        sentences.pop(int(rng.integers(2)))
    welcome = welcome_animal(task)
    if welcome is None and careless and "animal" in task.slots and task.use_case == "open_qa":
        welcome = task.slots["animal"]  # asked to be brief, and is not
    elif rng.random() > manner.fullness or careless:
        welcome = None
    if welcome is not None:
        kinds = [kind for kind in world.ATTRIBUTES if kind != task.attribute]
        kind = str(_one_of(kinds, rng))
        sentences.append(f"it {_predicate(_fact(welcome, kind, rng), rng, manner)}")
    return sentences
