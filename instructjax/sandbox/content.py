"""Scores the content of an answer against its task and the facts of the world.

There is one scoring function per kind of task. The content is the answer without its opening and closing phrases, which
`quality.parse_answer` splits off.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from instructjax.sandbox import world
from instructjax.sandbox.parts import answer_parts, bonus_fact_animal, rewrite_target
from instructjax.sandbox.tasks import Task

COUNTS = {"one": 1, "two": 2, "three": 3}
LISTED = {
    "animals": world.ANIMALS,
    "foods": world.FOODS,
    "places": world.PLACES,
    "colours": world.COLOURS,
    "things": world.THINGS,
    "names": world.NAMES,
    "gifts": world.THINGS,
    "ideas": world.SKILLS,
}
_NOUNS = frozenset(noun for nouns in LISTED.values() for noun in nouns)


@dataclasses.dataclass(frozen=True)
class ContentScores:
    """The scores of an answer's content. Every number is in [0, 1].

    Attributes:
      task: how much of the task the answer attempts.
      grammar: share of the sentences that follow the world's grammar.
      variety: share of the units (sentences, claims, list items) that are not repetitions.
      brevity: below 1 if the answer is much longer than the prompt asks for.
      truth: share of the statements that are true.
      constraint: share of the prompt's explicit constraints that the answer satisfies. A constraint can be satisfied
        in part. NaN if the prompt has no constraint.
      detail: how detailed the answer is.
      length: how close the number of sentences (or list items) is to the fitting one.
      is_false: whether the answer makes a false statement.
    """

    task: float
    grammar: float
    variety: float
    brevity: float
    truth: float
    constraint: float
    detail: float
    length: float
    is_false: bool


NO_CONTENT = ContentScores(0, 0, 0, 0, 0, math.nan, 0, 0, False)


def score_content(task: Task, sentences: Sequence[str]) -> ContentScores:
    """Scores the content sentences of an answer. An answer without any scores 0."""
    if not sentences:
        return NO_CONTENT
    if task.kind in ("describe", "story"):
        return _score_prose(task, sentences)
    if task.kind == "list":
        return _score_list(task, sentences)
    if task.kind == "summary":
        return _score_summary(task, sentences)
    return _score_parts(task, sentences)


def requested_sentences(task: Task) -> int | None:
    """Returns the number of sentences that the prompt asks for, or None if it does not say."""
    if task.kind not in ("describe", "story"):
        return None
    return 1 if "one sentence" in task.slots["text"] else COUNTS.get(task.slots.get("count", ""))


def claims_for_full_detail(task: Task) -> int:
    """Returns the number of distinct claims at which a description or story gets full marks for detail."""
    if task.kind == "story":
        return 4
    return 2 if requested_sentences(task) == 1 else 3


def list_options(task: Task) -> tuple[tuple[str, ...], str]:
    """Returns the items that a list may contain, and the words that introduce it."""
    text = task.slots["text"]
    category = next(word for word in LISTED if word in text.split())
    if category == "gifts":
        return LISTED[category], "good gifts are"
    if category == "ideas":
        who = task.slots.get("name") or f"the {task.slots['animal']}"
        return LISTED[category], f"{who} can"
    return LISTED[category], f"some {category} are"


def _closeness(count: int, low: int, high: int) -> float:
    return max(0.0, 1 - 0.5 * max(low - count, count - high, 0))


def _brevity(count: int, high: int) -> float:
    return 1 / (1 + 0.5 * max(0, count - high - 1))


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else math.nan


def _share_new(units: Sequence[object]) -> float:
    return len(set(units)) / len(units) if units else 1.0


def _score_prose(task: Task, sentences: Sequence[str]) -> ContentScores:
    """Scores a description (facts) or a story (events) about one or two animals."""
    is_story = task.kind == "story"
    topics = [task.slots[slot] for slot in ("animal", "animal2") if slot in task.slots]
    fitting = (set(world.EVENTS) - {"sees"}) if is_story else ({*world.ATTRIBUTES, "sees"})
    subject, made, fits, grammatical = topics[0], [], [], []
    for sentence in sentences:
        found = world.parse_claims(sentence)
        grammatical.append(bool(found) or world.is_remark(sentence))
        subject = next((claim.animal for claim in found if claim.animal), subject)
        made += [(subject, claim) for claim in found]
        on_kind = _mean([1.0 if claim.kind in fitting else 0.4 for claim in found]) if found else 0.0
        fits.append(on_kind * (subject in topics))
    said = [(animal, claim.kind, claim.value) for animal, claim in made]
    checked = [world.is_true(animal, claim) for animal, claim in made if claim.kind in (*world.ATTRIBUTES, "ate")]
    true_kinds = {
        (animal, claim.kind)
        for animal, claim in made
        if animal in topics and claim.kind in fitting and world.is_true(animal, claim)
    }
    asked = requested_sentences(task)
    low, high = (asked, asked) if asked else (2, 3)
    count = len(set(sentences))
    kept = [] if asked is None else [_closeness(count, asked, asked)]
    if "sight" in task.slots:
        kept.append(float(any(value == task.slots["sight"] for _, _, value in said)))
    if "mood" in task.slots:
        felt = {value for animal, kind, value in said if kind == "felt" and animal in topics}
        kept.append(float(felt == {task.slots["mood"]}))
    if "animal2" in task.slots:
        named = {animal for animal, _, _ in said} | {value for _, kind, value in said if kind == "met"}
        kept.append(float(set(topics) <= named))
    if "attribute" in task.slots:
        kept.append(float(bool(said) and all(kind != task.slots["attribute"] for _, kind, _ in said)))
    return ContentScores(
        task=_mean(fits),
        grammar=_mean(grammatical),
        variety=min(_share_new(sentences), _share_new(said)),
        brevity=_brevity(len(sentences), high),
        truth=_mean(checked) if checked else float(bool(said)),
        constraint=_mean(kept),
        detail=min(1.0, len(true_kinds) / claims_for_full_detail(task)),
        length=_closeness(count, low, high),
        is_false=not all(checked),
    )


def _score_list(task: Task, sentences: Sequence[str]) -> ContentScores:
    """Scores a sentence that lists the requested number of items of a category."""
    nouns, intro = list_options(task)
    wanted = COUNTS[task.slots["count"]]
    first = sentences[0].removeprefix(intro + " ")
    items = first.replace(" and ", " , ").split(" , ")
    valid = [item for item in items if item in nouns]
    grammatical = [all(item in _NOUNS for item in items)] + [world.is_remark(sentence) for sentence in sentences[1:]]
    kept = [_closeness(len(set(valid)), wanted, wanted)]
    text = task.slots["text"]
    named = text.split("name ")[-1].split(" .")[0] if "do not" in text else None
    if named:
        kept.append(float(bool(valid) and named not in items))
    elif " with " in text:
        kept.append(float(text.split(" with ")[1].split()[0] in items))
    has_intro = first != sentences[0]
    return ContentScores(
        task=len(valid) / len(items) / len(sentences),
        grammar=_mean(grammatical),
        variety=_share_new(items),
        brevity=_brevity(len(items), wanted),
        truth=len(valid) / len(items),
        constraint=_mean(kept),
        detail=0.5 * min(1.0, len(set(valid)) / wanted) + 0.5 * has_intro,
        length=_closeness(len(items), wanted, wanted),
        is_false=has_intro and len(valid) < len(items),
    )


def _score_summary(task: Task, sentences: Sequence[str]) -> ContentScores:
    """Scores a one-sentence summary. Full marks for detail need two of the three events of the passage."""
    passage = task.slots["text"].split(" : ")[1].split(" .")
    events = {(claim.kind, claim.value) for sentence in passage for claim in world.parse_claims(sentence.strip())}
    found = [claim for sentence in sentences for claim in world.parse_claims(sentence)]
    is_about = any(claim.animal == task.slots["animal"] for claim in found)
    said = [(claim.kind, claim.value) for claim in found]
    right = [pair in events for pair in said]
    return ContentScores(
        task=(0.4 + 0.6 * is_about) * any(right) / len(sentences) ** 2,
        grammar=_mean([bool(world.parse_claims(sentence)) or world.is_remark(sentence) for sentence in sentences]),
        variety=_share_new(said),
        brevity=_brevity(len(sentences), 1),
        truth=_mean(right) if right else 0.0,
        constraint=float(len(sentences) == 1) if "one sentence" in task.slots["text"] else math.nan,
        detail=min(1.0, len(set(said) & events) / 2),
        length=_closeness(len(sentences), 1, 1),
        is_false=not all(right),
    )


def _score_parts(task: Task, sentences: Sequence[str]) -> ContentScores:
    """Scores an answer in one or two parts. For some prompts, one additional fact is a bonus."""
    parts, bonus = list(answer_parts(task.slots["text"])), bonus_fact_animal(task)
    unfilled, filled, extras, grammatical = parts[:], [], [], []
    subject = task.slots.get("animal")
    for sentence in sentences:
        part = next((part for part in unfilled if sentence in part), None)
        found = world.parse_claims(sentence.removeprefix("yes , ").removeprefix("no , "))
        subject = next((claim.animal for claim in found if claim.animal), subject)
        grammatical.append(part is not None or bool(found) or world.is_remark(sentence))
        if part is not None:
            filled.append(part[sentence])
            unfilled.remove(part)
        elif task.kind in ("past", "swap", "mood", "kind") and found and unfilled:
            likeness = _likeness(sentence, rewrite_target(task))
            filled.append((likeness**2, likeness))
            unfilled.remove(unfilled[0])
        else:
            extras += [(subject, claim) for claim in found]
    facts = [(animal, claim) for animal, claim in extras if animal and claim.kind in world.ATTRIBUTES]
    checked = [world.is_true(animal, claim) for animal, claim in facts]
    is_richer = any(
        animal == bonus and claim.kind != task.attribute and world.is_true(animal, claim) for animal, claim in facts
    )
    first_part = any(sentences[0] in part for part in parts) or task.use_case == "rewrite"
    attempt = len(filled) / len(parts)
    if not filled and any(animal == task.slots.get("animal") for animal, _ in facts):
        attempt = 0.2  # about the right animal, but does not answer the question
    if task.use_case == "rewrite" and filled and filled[0] == (0.0, 0.3):
        attempt = 0.3  # copies the source
    truth = _mean([truth for truth, _ in filled]) if filled else 0.0
    fullness = sum(fullness for _, fullness in filled) / len(parts)
    is_brief = "be brief" in task.slots["text"]
    high = len(parts) + (bonus is not None)
    return ContentScores(
        task=attempt * (1.0 if first_part else 0.6),
        grammar=_mean(grammatical),
        variety=_share_new(sentences),
        brevity=_brevity(len(sentences), high),
        truth=0.75 * truth + 0.25 * _mean(checked) if checked else truth,
        constraint=float(len(sentences) == 1) if is_brief else math.nan,
        detail=fullness if bonus is None else 0.6 * fullness + 0.4 * is_richer,
        length=_closeness(len(sentences), len(parts), high),
        is_false=not all(checked) or (task.use_case != "rewrite" and any(truth < 1 for truth, _ in filled)),
    )


def _likeness(sentence: str, target: str) -> float:
    """Computes 2 LCS(a, b) / (len(a) + len(b)), with LCS the length of the longest common subsequence of words."""
    a, b = sentence.split(), target.split()
    row = [0] * (len(b) + 1)
    for word in a:
        above = row[:]
        for j, other in enumerate(b):
            row[j + 1] = above[j] + 1 if word == other else max(row[j], above[j + 1])
    return 2 * row[-1] / (len(a) + len(b))
