"""Writes answers as people do: with more or less care, and with flaws.

A `Manner` decides how full an answer is, whether it opens and closes politely, and which flaws it has. Answers in the
best manner have a quality close to 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from instructjax.sandbox import world
from instructjax.sandbox.content import COUNTS, claims_for_full_detail, list_options, requested_sentences
from instructjax.sandbox.parts import answer_parts, bonus_fact_animal
from instructjax.sandbox.quality import MAX_RESPONSE_WORDS, OPENINGS, fitting_endings
from instructjax.sandbox.tasks import Task, parse_prompt

T = TypeVar("T")

FLAWS = ("false", "careless", "misread", "miscounted", "rude", "repeated", "opinion", "unfinished")
FLAW_WEIGHTS = np.array((0.25, 0.27, 0.10, 0.16, 0.08, 0.07, 0.03, 0.04))


@dataclasses.dataclass(frozen=True)
class Manner:
    """How an answer is written.

    Attributes:
      fullness: in [0, 1], the probability of each additional detail.
      opens: whether the answer opens politely.
      closes: whether the answer ends with a closing phrase.
      is_wordy: whether the answer may use the longer wordings.
      flaws: a subset of FLAWS:

        false       a false statement
        careless    a constraint is ignored
        misread     another kind of answer than the prompt asks for
        miscounted  a wrong number of sentences or items
        rude        a rude remark
        repeated    a sentence that occurs twice
        opinion     an opinion
        unfinished  no full stop at the end
    """

    fullness: float
    opens: bool
    closes: bool
    is_wordy: bool = True
    flaws: frozenset[str] = frozenset()


BEST = Manner(fullness=1.0, opens=True, closes=True, is_wordy=False)


def draw_manner(rng: np.random.Generator, care: float, flaw_rate: float) -> Manner:
    """Draws the manner of one answer by a writer.

    Args:
      rng: source of randomness.
      care: in [0, 1], the writer's care. More care gives fuller and more polite answers.
      flaw_rate: in [0, 1], the share of the writer's answers that have flaws.
    """
    care = float(np.clip(care + 0.25 * rng.standard_normal(), 0.0, 1.0))
    flaws: frozenset[str] = frozenset()
    if rng.random() < flaw_rate:
        count = 1 + int(rng.random() < 0.4) + int(rng.random() < 0.15)
        flaws = frozenset(rng.choice(FLAWS, size=count, replace=False, p=FLAW_WEIGHTS))
    return Manner(care, rng.random() < 0.8 * care, rng.random() < 0.1 + 0.8 * care, rng.random() < 0.4, flaws)


def write_answer(prompt: str, rng: np.random.Generator, manner: Manner = BEST) -> str:
    """Writes an answer of at most MAX_RESPONSE_WORDS words to a prompt of the sandbox.

    Raises:
      RecordError: the prompt is not one of the sandbox's.
    """
    task = parse_prompt(prompt)
    while True:
        for _ in range(6):  # an answer with other facts may be shorter
            words = _draft(task, rng, manner)
            if len(words) <= MAX_RESPONSE_WORDS:
                return " ".join(words)
        manner = _shorten(manner)


def _draft(task: Task, rng: np.random.Generator, manner: Manner) -> list[str]:
    sentences = _content_sentences(task, rng, manner)
    if "repeated" in manner.flaws:
        sentences.append(_choose(sentences, rng))
    for flaw, remarks in (("rude", world.RUDE_REMARKS), ("opinion", world.OPINIONS)):
        if flaw in manner.flaws:
            animal = task.slots.get("animal", _choose(world.ANIMALS, rng))
            sentences.append(_choose(remarks, rng).format(animal=animal))
    answer = [_choose(OPENINGS, rng)] if manner.opens else []
    answer += sentences
    if manner.closes and "unfinished" not in manner.flaws:
        answer.append(_choose(fitting_endings(task.use_case), rng))
    words = " ".join(s + (" ?" if s == "how can i help" else " .") for s in answer).split()
    if "unfinished" in manner.flaws:
        words = words[: max(2, len(words) - 1 - int(rng.integers(3)))]
    return words


def _shorten(manner: Manner) -> Manner:
    """Returns a manner that tends to give shorter answers."""
    if manner.is_wordy:
        return dataclasses.replace(manner, is_wordy=False)
    lengthening = sorted(manner.flaws & {"rude", "opinion", "repeated", "miscounted"})
    if lengthening:
        return dataclasses.replace(manner, flaws=manner.flaws - {lengthening[0]})
    return dataclasses.replace(manner, fullness=0.8 * manner.fullness)


def _choose(values: Sequence[T], rng: np.random.Generator) -> T:
    return values[int(rng.integers(len(values)))]


def _misread(task: Task, rng: np.random.Generator) -> Task:
    """Mistakes a story for a description, and any other task for a story."""
    slots = {"animal": _choose(world.ANIMALS, rng), **task.slots}
    return dataclasses.replace(task, kind="describe" if task.kind == "story" else "story", slots=slots)


def _content_sentences(task: Task, rng: np.random.Generator, manner: Manner) -> list[str]:
    # The rankings must contain such answers. Otherwise the reward model does not learn to distinguish stories from
    # descriptions, and PPO converges to the kind that it rates higher.
    if "misread" in manner.flaws:
        task = _misread(task, rng)
    if task.kind == "describe":
        return _join_claims(
            _description_claims(task, rng, manner), _sentence_count(task, rng, manner), rng, manner, task
        )
    if task.kind == "story":
        return _join_claims(_story_claims(task, rng, manner), _sentence_count(task, rng, manner), rng, manner, task)
    if task.kind == "list":
        return [_list_sentence(task, rng, manner)]
    if task.kind == "summary":
        return _summary_sentences(task, rng, manner)
    return _short_sentences(task, rng, manner)


def _sentence_count(task: Task, rng: np.random.Generator, manner: Manner) -> int:
    asked = requested_sentences(task)
    count = asked or 2
    if asked is None and rng.random() > 0.3 + manner.fullness:
        count = 1
    if "miscounted" in manner.flaws:
        count += _choose((-1, 1), rng) if count > 1 else 1
    return count


def _claim_count(task: Task, rng: np.random.Generator, manner: Manner) -> int:
    return 1 + int(rng.binomial(claims_for_full_detail(task) - 1, manner.fullness))


def _make_claim(animal: str, kind: str, rng: np.random.Generator, lie: bool = False) -> world.Claim:
    truth = world.FACTS[animal][kind]
    others = [value for value in world.VALUES[kind] if value not in (truth, animal)]
    return world.Claim(animal, kind, _choose(others, rng) if lie else truth)


def _description_claims(task: Task, rng: np.random.Generator, manner: Manner) -> list[world.Claim]:
    """Draws the claims of a description, in order."""
    animal, careless = task.slots["animal"], "careless" in manner.flaws
    kinds = [str(kind) for kind in rng.permutation(world.ATTRIBUTES)]
    if "attribute" in task.slots:
        kinds.remove(task.slots["attribute"])
        if careless:
            kinds.insert(0, task.slots["attribute"])
    claims = [_make_claim(animal, kind, rng) for kind in kinds[: max(4, _claim_count(task, rng, manner))]]
    claims = claims[: max(_claim_count(task, rng, manner), requested_sentences(task) or 1)]
    if "animal2" in task.slots and not careless:
        claims = claims[:2] + [_make_claim(task.slots["animal2"], kinds[3], rng)]
    if "sight" in task.slots and not careless:
        claims = claims[:2]
        claims.insert(int(rng.integers(len(claims) + 1)), world.Claim(animal, "sees", task.slots["sight"]))
    if "false" in manner.flaws:
        i = next(i for i in rng.permutation(len(claims)) if claims[i].kind != "sees" or len(claims) == 1)
        kind = kinds[0] if claims[i].kind == "sees" else claims[i].kind
        claims[i] = _make_claim(claims[i].animal, kind, rng, lie=True)
    return claims


def _story_claims(task: Task, rng: np.random.Generator, manner: Manner) -> list[world.Claim]:
    """Draws the claims of a story, in order. A feeling comes first."""
    animal, careless = task.slots["animal"], "careless" in manner.flaws
    others = [other for other in world.ANIMALS if other != animal]
    made = {
        "felt": task.slots.get("mood", _choose(world.MOODS, rng)),
        "went": _choose(world.PLACES, rng),
        "saw": _choose(world.SIGHTS, rng),
        "met": task.slots.get("animal2", _choose(others, rng)),
        "ate": world.FACTS[animal]["food"],
    }
    if "sight" in task.slots:
        made["saw"] = task.slots["sight"]
    needed = {kind for slot, kind in (("mood", "felt"), ("sight", "saw"), ("animal2", "met")) if slot in task.slots}
    if careless and needed:
        dropped = _choose(sorted(needed), rng)
        needed.remove(dropped)
        made.pop(dropped)
    if "false" in manner.flaws:
        made["ate"] = _choose([food for food in world.FOODS if food != made["ate"]], rng)
        needed.add("ate")
    wanted = max(_claim_count(task, rng, manner), requested_sentences(task) or 1, len(needed))
    for kind in map(str, rng.permutation(sorted(made))):
        if len(needed) < wanted:
            needed.add(kind)
    return [world.Claim(animal, kind, value) for kind, value in made.items() if kind in needed]


def _join_claims(
    claims: list[world.Claim], count: int, rng: np.random.Generator, manner: Manner, task: Task
) -> list[str]:
    """Joins claims into up to `count` sentences, with at most two claims per sentence."""
    is_story = task.kind == "story"
    mood = ""
    if is_story and claims[0].kind == "felt" and len(claims) > max(count, 1):
        mood, claims = claims[0].value + " ", claims[1:]
    groups = [[claim] for claim in claims]
    while len(groups) > max(count, 1):  # merge neighbors about the same animal
        pairs = [
            i
            for i in range(len(groups) - 1)
            if len(groups[i]) + len(groups[i + 1]) == 2 and groups[i][0].animal == groups[i + 1][0].animal
        ]
        if not pairs:
            break
        i = _choose(pairs, rng)
        groups[i : i + 2] = [groups[i] + groups[i + 1]]
    groups = groups[: count + 1] if count < 3 else groups
    if requested_sentences(task) or "miscounted" in manner.flaws:
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
    says = world.WORDINGS[claim.kind]
    return (_choose(says, rng) if manner.is_wordy else says[0]).format(claim.value)


def _list_sentence(task: Task, rng: np.random.Generator, manner: Manner) -> str:
    nouns, intro = list_options(task)
    text, count = task.slots["text"], COUNTS[task.slots["count"]]
    careless = "careless" in manner.flaws
    special = next((w for slot, w in task.slots.items() if slot not in ("text", "count") and w in nouns), None)
    items = [str(noun) for noun in rng.permutation(nouns) if noun != special]
    if special is not None and ("do not" in text) == careless:
        items.insert(0, special)
    if "miscounted" in manner.flaws:
        count += _choose((-1, 1), rng)
    items = items[:count]
    if "false" in manner.flaws:
        items[-1] = _choose(world.PLACES if nouns is not world.PLACES else world.FOODS, rng)
    items = [str(item) for item in rng.permutation(items)]
    joined = " and ".join(filter(None, (" , ".join(items[:-1]), items[-1])))
    return f"{intro} {joined}" if rng.random() < manner.fullness else joined


def _summary_sentences(task: Task, rng: np.random.Generator, manner: Manner) -> list[str]:
    passage = [sentence.strip() for sentence in task.slots["text"].split(" : ")[1].split(" .")[:-1]]
    if "careless" in manner.flaws or "miscounted" in manner.flaws:
        return passage[: 2 + int(rng.random() < 0.3)]
    events = [(claim.kind, claim.value) for sentence in passage for claim in world.parse_claims(sentence)]
    chosen = sorted(rng.permutation(3)[: 1 + int(rng.random() < manner.fullness)])
    events = [events[i] for i in chosen]
    if "false" in manner.flaws:
        kind, value = events[-1]
        events[-1] = (kind, _choose([other for other in world.EVENTS[kind][1] if other != value], rng))
    return [f"the {task.slots['animal']} " + " and ".join(world.EVENTS[kind][0].format(v) for kind, v in events)]


def _short_sentences(task: Task, rng: np.random.Generator, manner: Manner) -> list[str]:
    sentences = []
    for part in answer_parts(task.slots["text"]):
        right = 1.0
        if "false" in manner.flaws and min(truth for truth, _ in part.values()) < 1:
            right = 0.0
        if task.use_case == "rewrite":
            right = 0.0 if manner.flaws & {"false", "careless"} else 1.0
        usable = [(s, fullness) for s, (truth, fullness) in part.items() if (truth == 1.0) == (right == 1.0)]
        full = rng.random() < manner.fullness
        best = max(fullness for _, fullness in usable)
        fitting = [s for s, fullness in usable if (fullness == best) == full]
        sentences.append(_choose(fitting or [s for s, _ in usable], rng))
    careless = manner.flaws & {"careless", "miscounted"}
    if careless and len(sentences) > 1:
        sentences.pop(int(rng.integers(2)))
    bonus = bonus_fact_animal(task)
    if bonus is None and careless and "animal" in task.slots and task.use_case == "open_qa":
        bonus = task.slots["animal"]  # the prompt asks for a brief answer, and this one is not
    elif rng.random() > manner.fullness or careless:
        bonus = None
    if bonus is not None:
        kinds = [kind for kind in world.ATTRIBUTES if kind != task.attribute]
        kind = str(_choose(kinds, rng))
        sentences.append(f"it {_predicate(_make_claim(bonus, kind, rng), rng, manner)}")
    return sentences
