"""Generates records with planted personal data and duplicates, and measures which of them a curation finds.

    PYTHONPATH=. python tests/data/planted.py generate planted.jsonl 20000
    PYTHONPATH=. python tests/data/planted.py measure planted.jsonl curated.dropped.jsonl

The first command writes a file of prompts, the second one measures what `curate.py` dropped of it. Each prompt has
"planted": "personal", "prefix" or "near" (with the number of its pair), or "".
The words mean nothing; a quarter of the other prompts have numbers that are not personal data.
"""

import json
import random
import sys

from instructjax.data import curation

REASONS = {"personal": curation.PERSONAL, "prefix": curation.PREFIX, "near": curation.NEAR}
BLOCK = 100_000  # records that are generated at once
PERSONAL = [
    lambda rng: f"mail me at {rng.choice('abc')}.{rng.randrange(999)}@mail-{rng.randrange(99)}.example.org, please",
    lambda rng: f"({rng.randrange(200, 999)}) {rng.randrange(200, 999)}-{rng.randrange(1000, 9999)}",
    lambda rng: f"{rng.randrange(200, 999)}.{rng.randrange(200, 999)}.{rng.randrange(1000, 9999)}",
    lambda rng: f"+49 {rng.randrange(30, 99)} {rng.randrange(10**6, 10**7)}",
    lambda rng: f"+44{rng.randrange(10**9, 10**10)}",
    lambda rng: f"tel. 0{rng.randrange(30, 99)}/{rng.randrange(10**6, 10**7)}",  # has no rule
    lambda rng: _card(rng, ""),
    lambda rng: _card(rng, " "),
    lambda rng: (
        f"{rng.randrange(1, 999)} {rng.choice(['Maple', 'Old Mill', 'St. Mary'])} {rng.choice(['Rd', 'Street'])}"
    ),
    lambda rng: f"P.O. Box {rng.randrange(1, 9999)}",
    lambda rng: f"Ahornweg {rng.randrange(1, 99)}, 10115 Berlin",  # has no rule
    lambda rng: f"81.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 256)}",
    lambda rng: f"2001:4860:{rng.randrange(1, 16**4):x}::{rng.randrange(1, 16**4):x}",
]
HARMLESS = [
    lambda rng: (
        f"{rng.randrange(1000, 2100)}-{rng.randrange(10, 13)}-{rng.randrange(10, 29)} {rng.randrange(10, 24)}:30"
    ),
    lambda rng: f"version {rng.randrange(9)}.{rng.randrange(99)}.{rng.randrange(99)}",
    lambda rng: f"192.168.{rng.randrange(256)}.{rng.randrange(256)}",
    lambda rng: f"{rng.randrange(10**6):,} people and {rng.random():.12f}",
    lambda rng: f"x = {rng.randrange(10**15, 10**16)}",  # one in ten passes the check of cards
    lambda rng: f"{rng.randrange(100, 999)} + {rng.randrange(100, 999)} - {rng.randrange(1000, 9999)}",
    lambda rng: f"call @user{rng.randrange(99)} std::vector::at on Route {rng.randrange(99)}",
    lambda rng: f"pages {rng.randrange(100, 200)}-{rng.randrange(200, 300)}, {rng.randrange(1, 99)} Dalmatians",
]


def generate(count, seed=0):
    """Returns the fields of `count` records with planted faults: 8 % personal data, 6 % of each kind of duplicates."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("bcdfgklmnprst", k=1)[0] + rng.choice("aeiou") for _ in range(3)) for _ in range(3000)]
    found = []
    while len(found) < count:
        text = rng.choices(words, k=rng.randrange(60, 120))
        draw = rng.random()
        if draw < 0.08:
            text.insert(rng.randrange(len(text)), rng.choice(PERSONAL)(rng))
            prompts, planted = [text], "personal"
        elif draw < 0.11:
            prompts, planted = [text, [*text[:40], *rng.choices(words, k=40)]], f"prefix {seed}.{len(found)}"
        elif draw < 0.14:
            copy = list(text)
            for place in (rng.randrange(25), *rng.choices(range(60), k=rng.randrange(5))):  # the first is in the prefix
                copy[place] = rng.choice(words)
            prompts, planted = [text, copy], f"near {seed}.{len(found)}"
        else:
            if draw < 0.35:
                text.insert(rng.randrange(len(text)), rng.choice(HARMLESS)(rng))
            prompts, planted = [text], ""
        for prompt in prompts:
            user = f"user-{rng.randrange(1 + count // 40)}"
            found.append({"prompt": " ".join(prompt), "user": user, "split": "train", "planted": planted})
    rng.shuffle(found)
    return found[:count]


def measure(records, reasons, kinds=tuple(REASONS)):
    """Returns {kind: (recall, precision)}.

    Args:
      records: fields from `generate`.
      reasons: of each of them; "" for those that are kept.
      kinds: keys of REASONS.
    """
    found = {}
    for kind in kinds:
        planted = [record["planted"] for record in records if record["planted"].startswith(kind)]
        whole = len(planted) if kind == "personal" else len(planted) - len(set(planted))  # one of a pair is right
        dropped = [
            record["planted"] for record, why in zip(records, reasons, strict=True) if why.startswith(REASONS[kind])
        ]
        right = [name for name in dropped if name.startswith(kind)]
        hits = len(right) if kind == "personal" else len(set(right))
        found[kind] = hits / whole, hits / len(dropped)
    return found


def _card(rng, separator):
    digits = "4" + "".join(rng.choices("0123456789", k=14))
    number = next(digits + last for last in "0123456789" if _luhn(digits + last) == 0)
    return separator.join(number[i : i + 4] for i in range(0, 16, 4))


def _luhn(number):
    total = 0
    for i, digit in enumerate(map(int, reversed(number))):
        total += digit if i % 2 == 0 else (2 * digit if digit < 5 else 2 * digit - 9)
    return total % 10


if __name__ == "__main__":
    command, path, argument = sys.argv[1:]
    if command == "generate":
        with open(path, "w") as file:
            for seed, start in enumerate(range(0, int(argument), BLOCK)):
                for fields in generate(min(BLOCK, int(argument) - start), seed):
                    file.write(json.dumps(fields) + "\n")
    else:
        given = [json.loads(line) for line in open(path)]
        why = {line["record"]: line["reason"] for line in map(json.loads, open(argument))}
        for kind, (recall, precision) in measure(given, [why.get(i + 1, "") for i in range(len(given))]).items():
            print(f"{kind}: recall {recall:.3f}, precision {precision:.3f}")
