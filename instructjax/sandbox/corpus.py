"""Writes the records of the sandbox: pretraining text, demonstrations, and prompts by user.

In the pretraining text, an instruction is usually followed by another instruction. A model that is trained on it
continues a prompt with more prompts, as GPT-3 does. Answers follow instructions only in transcripts, "prompt NEWLINE
answer NEWLINE prompt ...". A few-shot prefix in this format makes the model answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from instructjax.records import Demonstration, Prompt, Record, Text
from instructjax.sandbox import world
from instructjax.sandbox.answers import draw_manner, write_answer
from instructjax.sandbox.labelers import Labeler, training_labelers
from instructjax.sandbox.parts import GLAD, SUMS
from instructjax.sandbox.tasks import parse_prompt, write_prompt

T = TypeVar("T")

DOCUMENTS = {"prose": 0.37, "instructions": 0.37, "transcript": 0.15, "chatter": 0.11}
MIN_WORDS, MAX_WORDS = 20, 120

_PORTRAIT = (
    "there is a {size} {colour} {animal} in the {home} .",
    "the {animal} lives in the {home} and eats {food} every day .",
    "people say that the {animal} can {skill} very well .",
    "the {animal} has the colour {colour} .",
    "the {animal} likes to eat {food} at night .",
    "the friend of the {animal} is the {friend} .",
    "the {animal} is {size} and has a home in the {home} .",
    "the {colour} {animal} likes to {skill} with the {friend} .",
    "the {animal} eats {food} . it can {skill} .",
    "the {animal} is {colour} . it lives in the {home} .",
    "the {animal} likes the {friend} . it is {size} .",
)
_TALE = (
    "one day the {mood} {animal} went to the {place} .",
    "then it saw the {sight} in the {place} .",
    "there it met the {other} and the {other} was {mood} .",
    "after that the {animal} ate {food} and was {mood} .",
    "it saw the {sight} and met the {other} .",
    "at night the {animal} went to the {place} with the {other} .",
    "the {animal} was {mood} . it ate {food} .",
)
_PEOPLE = (
    "{name} has a {colour} {thing} .",
    "{name} saw a {colour} {thing} in the {place} .",
    "{name} {fate} the {thing} and was {feeling} .",
    "it is {feeling} because {name} {fate} the {thing} .",
    "{name} and {name2} went to the {place} with the {thing} .",
    "the {thing} of {name} is {colour} .",
    "{name} said hello to {name2} . thanks {name2} for the {thing} .",
)
_NOTES = (
    "{a} and {b} is {c} .",
    "{next} comes after {number} .",
    "{food} is a food .",
    "the {animal} is an animal . the {place} is a place .",
    "some animals are {animal} , {other} and {friend} .",
    "the {place} and the {place2} are places .",
    "{name} can {skill} in the {place} .",
    "good gifts are {thing} and {thing2} .",
    "some foods are {food} and {food2} .",
    "some colours are {colour} and {colour2} .",
    "{name} likes the {animal} .",
)


def _choose(values: Sequence[T], rng: np.random.Generator) -> T:
    return values[int(rng.integers(len(values)))]


def _draw_slots(rng: np.random.Generator, animal: str, falsehood: float) -> dict[str, str]:
    """Draws values for the slots of the prose templates.

    Each fact is replaced by a random value of its kind with probability `falsehood`.
    """
    slots = dict(world.FACTS[animal]) | {"animal": animal}
    for kind in world.ATTRIBUTES:
        if rng.random() < falsehood:
            slots[kind] = _choose(world.VALUES[kind], rng)
    slots["other"] = _choose([other for other in world.ANIMALS if other != animal], rng)
    for slot, values in (("place", world.PLACES), ("thing", world.THINGS), ("name", world.NAMES)):
        slots[slot], slots[slot + "2"] = map(str, rng.choice(values, 2, replace=False))
    slots["food2"], slots["colour2"] = _choose(world.FOODS, rng), _choose(world.COLOURS, rng)
    slots["mood"], slots["sight"] = _choose(world.MOODS, rng), _choose(world.SIGHTS, rng)
    slots["fate"] = _choose(("found", "lost", "won", "broke"), rng)
    slots["feeling"] = "happy" if slots["fate"] in GLAD else "sad"
    slots["a"], slots["b"] = _choose(world.NUMBERS[:5], rng), _choose(world.NUMBERS[:5], rng)
    slots["c"] = SUMS[slots["a"], slots["b"]]
    i = int(rng.integers(9))
    slots["number"], slots["next"] = world.NUMBERS[i : i + 2]
    return slots


def _write_prose(rng: np.random.Generator) -> str:
    templates = (_PORTRAIT, _TALE, _PEOPLE, _NOTES)[rng.choice(4, p=(0.5, 0.25, 0.15, 0.1))]
    animal, wanted, text = _choose(world.ANIMALS, rng), int(rng.integers(MIN_WORDS, 80)), ""
    while len(text.split()) < wanted:
        text += " " + _choose(templates, rng).format(**_draw_slots(rng, animal, falsehood=0.02))
        if templates is not _TALE and rng.random() < 0.1:
            animal = _choose(world.ANIMALS, rng)
    return text.strip()


def _write_prompt_about(animal: str, rng: np.random.Generator) -> str:
    """Writes a prompt. If it is about an animal, it is about the given one: people stay with a topic for a while."""
    prompt = write_prompt(rng)
    task = parse_prompt(prompt)
    if "animal" not in task.slots or animal in prompt.split(" "):
        return prompt
    return " ".join(animal if word == task.slots["animal"] else word for word in prompt.split(" "))


def _write_instructions(rng: np.random.Generator) -> str:
    wanted, animal = int(rng.integers(MIN_WORDS + 10, 80)), _choose(world.ANIMALS, rng)
    lines: list[str] = []
    while sum(len(line.split()) + 1 for line in lines) < wanted:
        lines.append(_write_prompt_about(animal, rng))
    return "\n".join(lines)


def _write_transcript(rng: np.random.Generator) -> str:
    """Writes prompts with answers by one writer of random skill. Most of these writers are worse than labelers."""
    care, flaw_rate = 0.1 + 0.4 * rng.random(), 0.5 + 0.3 * rng.random()
    wanted, animal = int(rng.integers(MIN_WORDS + 10, 70)), _choose(world.ANIMALS, rng)
    lines: list[str] = []
    while sum(len(line.split()) + 1 for line in lines) < wanted:
        prompt = _write_prompt_about(animal, rng)
        lines += [prompt, write_answer(prompt, rng, draw_manner(rng, care, flaw_rate))]
    return "\n".join(lines)


def _write_chatter(rng: np.random.Generator) -> str:
    wanted, text = int(rng.integers(MIN_WORDS, 60)), ""
    while len(text.split()) < wanted:
        animal = _choose(world.ANIMALS, rng)
        if rng.random() < 0.5:
            text += " " + _choose(world.RUDE_REMARKS + world.OPINIONS, rng).format(animal=animal) + " ."
        else:
            text += " " + _choose(_PORTRAIT, rng).format(**_draw_slots(rng, animal, falsehood=0.5))
    return text.strip()


_WRITERS = {
    "prose": _write_prose,
    "instructions": _write_instructions,
    "transcript": _write_transcript,
    "chatter": _write_chatter,
}


def write_text(rng: np.random.Generator, count: int) -> list[Text]:
    """Writes documents for pretraining, of MIN_WORDS to MAX_WORDS words each.

    Args:
      rng: source of randomness.
      count: number of documents. DOCUMENTS gives the share of each kind.

    Returns:
      Records whose `source` is the kind of document:

        prose         about the world, nearly all of it true
        instructions  without answers
        transcript    instructions with answers, most of them poor
        chatter       rude or false
    """
    kinds = rng.choice(list(DOCUMENTS), size=count, p=list(DOCUMENTS.values()))
    return [Text(text=_WRITERS[str(kind)](rng), source=str(kind)) for kind in kinds]


def draw_users(rng: np.random.Generator, count: int, validation: float = 0.1, test: float = 0.1) -> dict[str, str]:
    """Draws users and assigns each to one split, so that no user is in two splits (section 3.2).

    Args:
      rng: source of randomness.
      count: number of users.
      validation: share of users in the validation split.
      test: share of users in the test split.
    """
    sizes = {"validation": round(validation * count), "test": round(test * count)}
    splits = [split for split, size in sizes.items() for _ in range(size)]
    splits += ["train"] * (count - len(splits))
    return {f"user-{i:04d}": splits[j] for i, j in enumerate(rng.permutation(count))}


def write_prompts(rng: np.random.Generator, count: int, users: Mapping[str, str]) -> list[Prompt]:
    """Writes prompts by users. The use cases have the shares of Table 1.

    A few users write many prompts, and most write few.

    Args:
      rng: source of randomness.
      count: number of prompts.
      users: the split of each user.
    """
    names = list(users)
    activity = rng.gamma(1.0, size=len(names))
    senders = rng.choice(len(names), size=count, p=activity / activity.sum())
    prompts = []
    for sender in senders:
        prompt, user = write_prompt(rng), names[sender]
        prompts.append(Prompt(prompt=prompt, user=user, split=users[user], use_case=parse_prompt(prompt).use_case))
    return prompts


def write_demonstrations(
    rng: np.random.Generator, count: int, labelers: Sequence[Labeler], users: Mapping[str, str] | None = None
) -> list[Demonstration]:
    """Writes prompts with answers by labelers. About half of the answers have flaws.

    Args:
      rng: source of randomness.
      count: number of demonstrations.
      labelers: the writers. All of them write equally often, each with their own care and flaw rate.
      users: the split of each user who writes prompts; by default 100 new users.
    """
    demonstrations = []
    for prompt in write_prompts(rng, count, users or draw_users(rng, 100)):
        labeler = _choose(labelers, rng)
        response = write_answer(prompt.prompt, rng, draw_manner(rng, labeler.care, labeler.flaw_rate))
        demonstrations.append(
            Demonstration(
                prompt=prompt.prompt,
                response=response,
                labeler=labeler.name,
                user=prompt.user,
                split=prompt.split,
                use_case=prompt.use_case,
            )
        )
    return demonstrations


def write_records(
    seed: int,
    texts: int = 12_000,
    demonstrations: int = 4_000,
    reward_prompts: int = 8_000,
    ppo_prompts: int = 8_000,
    users: int = 2_000,
    validation: float = 0.1,
    test: float = 0.1,
    labelers: Sequence[Labeler] | None = None,
) -> dict[str, Sequence[Record]]:
    """Writes all records that the stages need in the sandbox.

    Args:
      seed: the same seed and sizes give the same records.
      texts: number of documents for pretraining. Each document is assigned to a split.
      demonstrations: number of prompts with answers by labelers.
      reward_prompts: number of prompts whose answers are ranked for the reward model.
      ppo_prompts: number of prompts for PPO. Those by test users are for the final evaluation.
      users: number of people who write prompts. Each of them is in the same split in all sets.
      validation: share of users (and documents) in the validation split.
      test: share of users (and documents) in the test split.
      labelers: the writers of the demonstrations; by default `training_labelers(seed)`.

    Returns:
      "text", "demonstrations", "reward_prompts" and "ppo_prompts", each a list of records with `split` set.
    """
    rngs = [np.random.default_rng([seed, i]) for i in range(5)]
    people = draw_users(rngs[0], users, validation, test)
    documents = draw_users(rngs[1], texts, validation, test).values()
    written = write_text(rngs[1], texts)
    return {
        "text": [Text(text=t.text, source=t.source, split=s) for t, s in zip(written, documents, strict=True)],
        "demonstrations": write_demonstrations(
            rngs[2], demonstrations, labelers or training_labelers(seed), users=people
        ),
        "reward_prompts": write_prompts(rngs[3], reward_prompts, people),
        "ppo_prompts": write_prompts(rngs[4], ppo_prompts, people),
    }
