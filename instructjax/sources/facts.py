"""Finds by rule which facts of a meaning representation a text states.

No model of the E2E task (`sources/e2e_records.py`) is trained on this measure. The rules cover
the usual ways to state each fact ("child friendly", "5 stars", "by the river"), but not all of
them, and people leave facts out. Human references therefore score less than 1: 0.93 on the E2E
references, and 0.29 if the references are shuffled. Compare a policy's share with theirs. A text
that says the opposite of a fact does not state it, but made-up facts are not penalized.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence

from instructjax.errors import DataError
from instructjax.evaluation.intervals import Estimate, clustered_mean
from instructjax.sources import e2e_records

# Values that writers use interchangeably: "more than £30" is often written as "expensive".
_LEVELS = {
    "priceRange": {
        "cheap": "low",
        "less than £20": "low",
        "moderate": "middle",
        "£20-25": "middle",
        "high": "top",
        "more than £30": "top",
    },
    "customer rating": {
        "low": "low",
        "1 out of 5": "low",
        "average": "middle",
        "3 out of 5": "middle",
        "high": "top",
        "5 out of 5": "top",
    },
}
_NOUNS = {
    "priceRange": r"(?:pric\w*|costs?|costing|costed|range|budget)",
    "customer rating": r"(?:rat(?:ed?|es|ings?)|reviews?|reviewed|stars?|customers?|scor\w+|feedback|satisfaction)",
}
_ADJECTIVES = {
    "priceRange": {
        "low": r"(?:low|lower|cheap|small|good|great|affordable)",
        "middle": r"(?:moderate|moderately|average|averagely|medium|mid|middle|fair|fairly|reasonable|reasonably)",
        "top": r"(?:high|higher|highly|upper|top|steep|expensive)",
    },
    "customer rating": {
        "low": r"(?:low|lowly|lower|poor|poorly|bad|badly|below average)",
        "middle": r"(?:(?<!below )(?<!above )average|averagely|moderate|moderately|decent|mediocre|mid"
        r"|medium|fair|ok|okay)",
        "top": r"(?:high|highly|higher|excellent|exceptional|great|good|top|best|well|perfect|superb|outstanding)",
    },
}
_PHRASES = {
    "priceRange": {
        "low": r"\bcheap(?:er|ly)?\b|\binexpensive|\baffordabl|\bbudget\b|\bbargain|\blow cost|\bnot expensive"
        r"|\b(?:less|under|below|lower|cheaper|up to|maximum|within)\b(?: \w+){0,2} (?:£ ?)?(?:20|twenty)\b",
        "middle": r"(?<!\d)(?:20|twenty) ?(?:£|pounds?|euros?)? ?(?:to|and|through)? ?(?:£ ?)?(?:25|twenty five)\b"
        r"|\bmid ?(?:range )?price|\bmid range|\breasonabl|\bmoderately expensive",
        "top": r"(?<!not )(?<!moderately )\bexpensive|\bpric(?:e)?y\b|\bcostly|\bupscale|\bup ?market|\bhigh end"
        r"|\bpremium|\b(?:more|over|above|excess|starting|upwards|exceed\w*|least|greater|higher)\b(?: \w+){0,2}"
        r" (?:£ ?)?(?:30|thirty)\b"
        r"|\b(?:30|thirty)(?: pounds?)? ?(?:\+|plus|or more|and (?:up|over|above))",
    },
    "customer rating": {
        "low": r"\b(?:1|one) ?(?:star|(?:out )?(?:of )?(?:a )?(?:possible )?(?:5|five)\b|/ ?5)",
        "middle": r"\b(?:3|three) ?(?:star|(?:out )?(?:of )?(?:a )?(?:possible )?(?:5|five)\b|/ ?5)"
        r"|(?<!below )(?<!above )\baverage\b(?! (?:pric|cost))",
        "top": r"(?<!out of )(?<!\d of )(?<!one of )(?<!three of )(?<!out )(?<!/)(?<!/ )\b(?:5|five)"
        r" ?(?:star|(?:out )?(?:of )?(?:a )?(?:possible )?(?:5|five)\b|/ ?5)"
        r"|\bhighly (?:recommended|regarded|praised)|\bwell (?:regarded|liked)",
    },
}
_WORDS = {
    ("eatType", "coffee shop"): r"\bcoffee|\bcafe",
    ("eatType", "pub"): r"\bpubs?\b|\bbars?\b|\btavern|\bpublic house",
    ("eatType", "restaurant"): r"\brestaurant|\beater(?:y|ies)|\bdiner\b|\bbistro|\bplace to eat|\bdining",
    ("food", "English"): r"\benglish|\bbritish(?! pound)|\bfish and chips",
    ("food", "Italian"): r"\bitalian|\bpasta\b|\bpizza",
    ("food", "Japanese"): r"\bjapan|\bsushi",
    ("food", "Indian"): r"\bindian?\b|\bcurr(?:y|ies)",
    ("food", "French"): r"\bfrench|\bfrance",
    ("food", "Chinese"): r"\bchinese|\bchina\b",
    ("food", "Fast food"): r"\bfast ?food|\bburgers?\b",
    ("area", "riverside"): r"\briver|\bwater(?:side|front)|\bby the water",
    ("area", "city centre"): r"\b(?:city|town)s? ?cent(?:re|er)|\bcent(?:re|er)\b|\bcentral|\bdowntown"
    r"|\b(?:heart|middle) of|\bin (?:the )?city\b",
}
_FAMILY = r"\b(?:famil(?:y|ies)|kids?|child(?:ren)?s?|all ages|youngsters|young)\b"
_NO = (
    r"(?:\b(?:not|no|non|nor|never|neither|without|unfriendly|unsuitable|inappropriate|isnt|doesnt|arent|dont|cannot|free"
    r"|avoid|discourag\w*|prohibit\w*|un|lacks?|leave|except)\b|n't\b)"
)
_ADULTS = r"\badults?(?: only| oriented|s? friendly)?\b|\bgrown ?ups?\b"


def facts_stated(mr: str, text: str) -> tuple[int, int]:
    """Counts the facts of a meaning representation that a text states.

    Prices and ratings are compared by level: "cheap" states `less than £20`, and "5 out of 5"
    states `high`. A value without a rule is stated if its own words occur in the text.

    Args:
      mr: such as `name[Blue Spice], food[Chinese], familyFriendly[no]`.
      text: any text; it may be empty.

    Returns:
      (stated, total), the number of facts that the text states and the number of facts in `mr`.

    Raises:
      DataError: `mr` is not a list of slot[value].
    """
    stated = slots_stated(mr, text)
    return sum(stated.values()), len(stated)


def slots_stated(mr: str, text: str) -> dict[str, bool]:
    """Returns for each slot of a meaning representation whether the text states its value; see `facts_stated`."""
    facts = e2e_records.slots(mr)
    plain = _plain(text)
    stated = {}
    # Names are removed first: "near Raja Indian Cuisine" says nothing about the food.
    for slot in ("name", "near"):
        if slot in facts:
            name = r"\b(?:the )?" + re.escape(re.sub(r"^the ", "", _plain(facts[slot]))) + r"(?:'s)?\b"
            plain, count = re.subn(name, " NAME ", plain)
            stated[slot] = count > 0
    return {slot: stated[slot] if slot in stated else _states(slot, value, plain) for slot, value in facts.items()}


def share_of_facts(mrs: Sequence[str], texts: Sequence[str]) -> Estimate:
    """Computes the mean share of facts that texts state.

    Args:
      mrs: [n] meaning representations.
      texts: [n], one text per meaning representation.

    Returns:
      The mean over texts of stated / total, in [0, 1], clustered by meaning representation.

    Raises:
      DataError: lengths differ, or there are fewer than two meaning representations.
    """
    if len(mrs) != len(texts):
        raise DataError(f"facts stated: expected one text for each of {len(mrs)} prompts, found {len(texts)} texts")
    counts = [facts_stated(mr, text) for mr, text in zip(mrs, texts, strict=True)]
    return clustered_mean([stated / total for stated, total in counts], mrs)


def _plain(text: str) -> str:
    """Returns a text in lower case without accents and hyphens, with single spaces. Punctuation is kept."""
    decomposed = unicodedata.normalize("NFKD", text.replace("’", "'")).lower()
    letters = "".join(c for c in decomposed if not unicodedata.combining(c))
    return re.sub(r"\s+", " ", re.sub(r"[-‐-―_]", " ", letters)).strip()


def _states(slot: str, value: str, plain: str) -> bool:
    if slot == "familyFriendly" and value in ("yes", "no"):
        return _welcomes_families(plain) is (value == "yes")
    level = _LEVELS.get(slot, {}).get(value)
    if level is not None:
        return _scale(slot, level).search(plain) is not None
    rule = _WORDS.get((slot, value)) or r"\b" + re.escape(_plain(value)) + r"\b"
    return re.search(rule, plain) is not None


@functools.cache
def _scale(slot: str, level: str) -> re.Pattern[str]:
    """Returns the pattern of a level: "high customer rating", "rating is high", or a phrase such as "5 stars"."""
    noun, adjective = _NOUNS[slot], _ADJECTIVES[slot][level]
    (other,) = (_NOUNS[name] for name in _NOUNS if name != slot)
    between = rf"(?: (?!(?:and|but|with|while|{other})\b)\w+){{0,2}}"
    link = r"(?: (?:is|are|was|of|as|a|an|the|at|in|being|very|quite|customers?|has|been|only|it|range|ratings?|from))*"
    before = rf"\b{adjective}{between} {noun}\b"
    after = rf"\b{noun}{link} {adjective}\b(?! (?:customer )?{other})"
    return re.compile(f"{_PHRASES[slot][level]}|{before}|{after}")


def _welcomes_families(plain: str) -> bool | None:
    """Returns whether a text calls a place family friendly, or None if it does not mention families."""
    said = None
    for sentence in re.split(r"[.;!?]", plain):
        mention = re.search(_FAMILY, sentence)
        if mention is None:
            if re.search(_ADULTS, sentence):
                said = False
            continue
        before = " ".join(sentence[: mention.start()].split()[-6:])
        after = " ".join(sentence[mention.end() :].split()[:5])
        negated = re.search(_NO, before) or re.search(_NO, after) or re.search(_ADULTS, sentence)
        said = not negated
    return said
