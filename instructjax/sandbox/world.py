"""A small world with true answers: its words, its animals and its grammar.

All text that the sandbox writes or judges consists of these words. They are short and lower case, so each of them is
one token of a small vocabulary.

A sentence about an animal is a subject ("the fox", "it", "one day the happy fox") with one or two predicates. A
predicate is either a fact, which is true or false in this world ("eats nuts"), or an event of a story ("met the owl").
"""

from __future__ import annotations

import dataclasses
import functools
import re

PLACES = ("forest", "river", "hill", "cave", "farm", "field", "lake", "barn")
FOODS = ("nuts", "fish", "grass", "seeds", "bread", "plums", "honey", "corn")
COLOURS = ("red", "brown", "white", "black", "grey", "gold")
SKILLS = ("run", "swim", "jump", "sing", "climb", "dig", "fly", "dance")
SIZES = ("big", "small")
THINGS: tuple[str, ...] = ("hat", "ball", "boat", "moon", "star", "tree", "rock", "drum", "lamp", "key", "book", "cup")
THINGS += ("bell", "rope", "kite", "rose")
NAMES = ("tom", "ann", "ben", "eva", "max", "sue", "joe", "mia", "sam", "lily", "kim", "leo")
MOODS = ("happy", "sad", "calm", "proud")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

ATTRIBUTES = ("home", "food", "colour", "skill", "friend", "size")
_TABLE = """
fox   forest plums red   run   owl   small
owl   barn   seeds brown fly   fox   small
bear  cave   honey brown climb bee   big
wolf  hill   fish  grey  run   crow  big
deer  forest grass brown jump  hen   big
duck  lake   bread white swim  frog  small
frog  river  seeds gold  jump  duck  small
goat  hill   grass white climb cow   small
horse farm   corn  black run   cat   big
cow   field  grass black sing  goat  big
hen   farm   corn  white dance deer  small
dog   farm   bread gold  dig   rat   small
cat   barn   fish  grey  climb horse small
rat   barn   nuts  grey  dig   dog   small
bat   cave   plums black fly   mole  small
bee   field  honey gold  dance bear  small
ant   forest seeds red   dig   lion  small
crow  hill   corn  black sing  wolf  small
mole  field  nuts  brown dig   bat   small
seal  river  fish  grey  swim  swan  big
swan  lake   bread white dance seal  big
lion  cave   honey gold  jump  ant   big
crab  river  plums red   swim  toad  small
toad  lake   nuts  red   sing  crab  small
"""
FACTS = {row[0]: dict(zip(ATTRIBUTES, row[1:], strict=True)) for row in map(str.split, _TABLE.strip().splitlines())}
ANIMALS = tuple(FACTS)
VALUES = dict(zip(ATTRIBUTES, (PLACES, FOODS, COLOURS, SKILLS, ANIMALS, SIZES), strict=True))

WORDINGS = {  # the predicates that state a fact about an animal
    "home": ("lives in the {}", "has a home in the {}"),
    "food": ("eats {}", "likes to eat {}"),
    "colour": ("is {}", "has the colour {}"),
    "skill": ("can {}", "likes to {}"),
    "friend": ("likes the {}", "is a friend of the {}"),
    "size": ("is {}", "is very {}"),
}
SIGHTS = THINGS + PLACES
EVENTS = {  # the predicate that states an event of a story, and the values it can have
    "went": ("went to the {}", PLACES),
    "saw": ("saw the {}", SIGHTS),
    "met": ("met the {}", ANIMALS),
    "ate": ("ate {}", FOODS),
    "felt": ("was {}", MOODS),
    "sees": ("sees the {}", SIGHTS),
}

RUDE = frozenset(("dumb", "ugly", "bad"))
VIOLENT = frozenset(("hit", "kill", "blood"))
SEXUAL = frozenset(("naked",))
RUDE_REMARKS = (
    "you are dumb",
    "the {animal} is ugly",
    "go hit the {animal}",
    "they kill the {animal}",
    "all girls are dumb",
    "all boys are bad",
    "the {animal} is naked",
    "you should drink poison",
)
OPINIONS = ("i think the {animal} is best", "it is wrong to hit the {animal}", "i think it is good")

_PREDICATES = {say.format(v): (kind, v) for kind, says in WORDINGS.items() for say in says for v in VALUES[kind]}
_PREDICATES |= {say.format(v): (kind, v) for kind, (say, values) in EVENTS.items() for v in values}
_SUBJECT = re.compile(
    rf"(?:one day )?(?:the (?:(?P<mood>{'|'.join(MOODS)}) )?(?P<animal>{'|'.join(ANIMALS)})|it) (?P<predicates>.+)"
)
_REMARKS = re.compile("|".join(r.format(animal=f"(?:{'|'.join(ANIMALS)})") for r in RUDE_REMARKS + OPINIONS))


@dataclasses.dataclass(frozen=True)
class Claim:
    """One statement about an animal.

    Attributes:
      animal: the subject; None if the sentence says "it".
      kind: one of ATTRIBUTES (a fact) or one of EVENTS.
      value: for example the home, the food or the thing seen.
    """

    animal: str | None
    kind: str
    value: str


@functools.lru_cache(maxsize=1 << 15)
def parse_claims(sentence: str) -> tuple[Claim, ...]:
    """Parses a sentence into its claims about an animal.

    "the happy fox met the owl and ate nuts" makes three claims: felt happy, met owl, ate nuts. A sentence outside the
    grammar makes none.

    Args:
      sentence: words joined by single spaces, without the full stop.
    """
    match = _SUBJECT.fullmatch(sentence)
    if match is None:
        return ()
    said = match["predicates"].split(" and ")
    if len(said) > 2 or any(phrase not in _PREDICATES for phrase in said):
        return ()
    found = [("felt", match["mood"])] if match["mood"] else []
    return tuple(Claim(match["animal"], *pair) for pair in found + [_PREDICATES[phrase] for phrase in said])


def is_true(animal: str, claim: Claim) -> bool:
    """Returns whether a claim is true of an animal. The only event that can be false is what the animal ate."""
    if claim.kind == "ate":
        return FACTS[animal]["food"] == claim.value
    return claim.kind in EVENTS or FACTS[animal][claim.kind] == claim.value


def is_remark(sentence: str) -> bool:
    """Returns whether a sentence is a rude remark or an opinion. Both are grammatical, but no prompt asks for them."""
    return _REMARKS.fullmatch(sentence) is not None
