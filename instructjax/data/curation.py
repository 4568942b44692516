"""Curates prompts as in the paper's section 3.2 and appendix A, and says of each dropped record why.

In this order:

    1. records without a signal, and prompts that are too short, too long, or in other scripts, are dropped;
    2. records get a split by user, and those of the training split with personal data are dropped;
    3. of prompts that share a long prefix, one is kept;
    4. of near-duplicates, one is kept;
    5. of a user's prompts, at most `per_user` are kept.

A record that stays is chosen by a hash of its content, never by its place, so the order of records and of users does
not change what is kept. Curating what was kept drops nothing. Always: records in = kept + dropped.

The records are read twice: `decide` keeps some numbers per record but no text, and `apply` yields the records.
"""

from __future__ import annotations

import array
import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from instructjax import records
from instructjax.data import exports, near_duplicates, personal_data, selection
from instructjax.errors import RecordError
from instructjax.records import Record

# Why a record is dropped, besides `selection`'s reasons.
SHORT = "prompt too short"
LONG = "prompt too long"
SCRIPT = "prompt in other scripts"
PERSONAL = "personal data"  # followed by the kind
PREFIX = "shares its prefix with another prompt"
NEAR = "near-duplicate"
MANY = "too many prompts of one user"

SCRIPTS: Mapping[str, str] = {  # ranges of letters
    "latin": "A-Za-zªºÀ-ÖØ-öø-ʯḀ-ỿ",
    "greek": "Ͱ-Ͽἀ-῿",
    "cyrillic": "Ѐ-ԯ",
    "hebrew": "א-ת",
    "arabic": "ؠ-ۿݐ-ݿ",
    "devanagari": "ऀ-ॿ",
    "thai": "ก-๏",
    "han": "㐀-䶿一-鿿",
    "kana": "ぁ-ヿ",
    "hangul": "ᄀ-ᇿ가-힣",
}
_PATTERNS = {name: re.compile(f"[{ranges}]") for name, ranges in SCRIPTS.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """What is dropped. 0 disables a limit.

    Attributes:
      prefix: prompts are duplicates if as many first characters are the same, whatever their case and white space;
        shorter ones if they are the same.
      sign: computes signatures, to drop near-duplicates; see `near_duplicates.signer`.
      per_user: the maximum number of prompts of one user (section 3.2).
      min_prompt: the minimum number of characters of a prompt.
      max_prompt: the maximum number of characters of a prompt.
      script: a name of SCRIPTS.
      script_share: the minimum share of that script among the letters of a prompt, 0 to 1.
      find_personal: returns the kind of personal data that a text contains, or "".
      validation: the share of users in the validation split, for records without a split.
      test: the share of users in the test split.
    """

    prefix: int = 200
    sign: Callable[[str], np.ndarray] | None = None
    per_user: int = 200
    min_prompt: int = 0
    max_prompt: int = 0
    script: str = "latin"
    script_share: float = 0.0
    find_personal: Callable[[str], str] | None = personal_data.find
    validation: float = 0.05
    test: float = 0.05


@dataclasses.dataclass(frozen=True)
class Decisions:
    """What becomes of N records.

    Attributes:
      reasons: texts; the first one, "", is that of records that are kept.
      reason: the index of each record's reason, uint32 [N].
      instead_of: the index of the record that is kept instead of a duplicate, int64 [N]; -1 for all others.
      digests: of the contents, uint64 [N].
    """

    reasons: tuple[str, ...]
    reason: np.ndarray
    instead_of: np.ndarray
    digests: np.ndarray

    def counts(self) -> dict[str, int]:
        """Returns the number of records by reason; those that are kept have the reason ""."""
        found = np.bincount(self.reason, minlength=len(self.reasons))
        return {reason: int(count) for reason, count in zip(self.reasons, found, strict=True)}


@dataclasses.dataclass(frozen=True)
class Curated:
    """What became of a record.

    Attributes:
      record: the record, with its split.
      reason: why it is dropped; "" if it is kept.
      instead_of: the number, from 1, of the record that is kept instead of this duplicate; None for others.
    """

    record: Record
    reason: str
    instead_of: int | None


def decide(given: Iterable[Record], rules: Rules) -> Decisions:
    """Decides which records are kept. Memory grows with their number, not with their lengths; see docs/curation.md.

    Args:
      given: the records, of one kind. They are read once.
      rules: what is dropped.
    """
    codes: dict[str, int] = {"": 0}
    reason, digests = array.array("I"), array.array("Q")
    prefixes, users, signatures = array.array("Q"), array.array("Q"), array.array("Q")
    for record in given:
        why = _fault(record, rules)
        reason.append(codes.setdefault(why, len(codes)))
        digests.append(_hash(records.to_json(record)))
        if not why:
            prompt = _prompt(record)
            # The examples of a few-shot prompt have each other in their contexts; only the same ones are duplicates.
            is_example = exports.FEW_SHOT in record.extra
            prefixes.append(_hash(_normalize(prompt)[: None if is_example else rules.prefix]))
            users.append(_hash(record.user) if record.user else 0)
            if rules.sign:
                sign = _sign_whole if is_example else rules.sign
                signatures.frombytes(sign(prompt).tobytes())
    found, ranks = np.frombuffer(reason, np.uint32), np.frombuffer(digests, np.uint64)
    instead_of = np.full(len(found), -1, np.int64)
    places = np.flatnonzero(found == 0)  # of the candidates among the records
    left = np.arange(len(places))  # the candidates that are kept so far

    def keep_lowest(groups: np.ndarray, limit: int, why: str) -> np.ndarray:
        kept, first = lowest(groups, ranks[places[left]], limit)
        lost = places[left[~kept]]
        found[lost] = codes.setdefault(why, len(codes))
        if why != MANY:
            instead_of[lost] = places[left[first[~kept]]]
        return left[kept]

    if rules.prefix:
        left = keep_lowest(np.frombuffer(prefixes, np.uint64), 1, PREFIX)
    if rules.sign:
        bands = np.frombuffer(signatures, np.uint64).reshape(-1, near_duplicates.BANDS)
        left = keep_lowest(near_duplicates.connect(bands[left]), 1, NEAR)
    if rules.per_user:
        groups = np.frombuffer(users, np.uint64)[left]
        # A group of its own for each record without a user.
        left = keep_lowest(np.where(groups == 0, left.astype(np.uint64), groups), rules.per_user, MANY)
    return Decisions(tuple(codes), found, instead_of, ranks)


def apply(given: Iterable[Record], decisions: Decisions, rules: Rules) -> Iterator[Curated]:
    """Yields what became of each record, in the order in which they are given.

    Args:
      given: the same records in the same order as for `decide`. They are read once.
      decisions: see `decide`.
      rules: the same as for `decide`.

    Raises:
      RecordError: the records are not the same.
    """
    index = -1
    for index, record in enumerate(given):
        if index >= len(decisions.digests) or decisions.digests[index] != _hash(records.to_json(record)):
            raise RecordError(f"{record.where}: expected the record that was read before, found another")
        instead_of = int(decisions.instead_of[index])
        split = records.split_of(record, rules.validation, rules.test)
        yield Curated(
            dataclasses.replace(record, split=split),
            decisions.reasons[decisions.reason[index]],
            None if instead_of < 0 else instead_of + 1,
        )
    if index + 1 != len(decisions.digests):
        raise RecordError(f"expected the {len(decisions.digests)} records that were read before, found {index + 1}")


def lowest(groups: np.ndarray, ranks: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the `limit` members of each group that have the lowest ranks.

    Args:
      groups: the group of each member, integers [N].
      ranks: numbers [N]; of equal ones the first is lower.
      limit: the maximum number of members, at least 1.

    Returns:
      Whether each member is one of them, bool [N], and the index of the lowest member of its group, int64 [N].
    """
    if not len(groups):
        return np.zeros(0, np.bool_), np.zeros(0, np.int64)
    order = np.lexsort((ranks, groups))
    ordered = groups[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    sizes = np.diff(starts, append=len(ordered))
    kept, first = np.empty(len(order), np.bool_), np.empty(len(order), np.int64)
    kept[order] = np.arange(len(order)) - np.repeat(starts, sizes) < limit
    first[order] = np.repeat(order[starts], sizes)
    return kept, first


def script_share(text: str, script: str) -> float:
    """Returns the share of the letters of a text that belong to a script, 0 to 1; 1 if it has no letters.

    This is a share of letters, not of languages: English and French are both "latin".
    """
    letters = "".join(filter(str.isalpha, text))
    return len(_PATTERNS[script].findall(letters)) / len(letters) if letters else 1.0


def main_script(text: str) -> str:
    """Returns the script of SCRIPTS to which most letters of a text belong; "" if it has no letters, or only others."""
    if text.isascii():
        return "latin" if any(map(str.isalpha, text)) else ""
    letters = "".join(filter(str.isalpha, text))
    counts = {script: len(pattern.findall(letters)) for script, pattern in _PATTERNS.items()}
    script = max(counts, key=lambda name: counts[name])
    return script if counts[script] else ""


def _fault(record: Record, rules: Rules) -> str:
    """Returns why a record is dropped whatever the others are; "" if it is not."""
    prompt = _prompt(record)
    if reason := selection.choose_by_content(record, merge_equal_answers=False).reason:
        return reason
    if len(prompt) < rules.min_prompt:
        return SHORT
    if rules.max_prompt and len(prompt) > rules.max_prompt:
        return LONG
    if rules.script_share and script_share(prompt, rules.script) < rules.script_share:
        return SCRIPT
    if rules.find_personal and records.split_of(record, rules.validation, rules.test) == "train":
        kind = next(filter(None, map(rules.find_personal, texts(record))), "")
        return f"{PERSONAL}: {kind}" if kind else ""
    return ""


def texts(record: Record) -> list[str]:
    """Returns all texts of a record: its text or its prompt, and its responses."""
    fields: Any = record
    names = [name for name in ("text", "prompt", "response") if hasattr(record, name)]
    return [*(getattr(fields, name) for name in names), *getattr(fields, "responses", ())]


def _prompt(record: Record) -> str:
    """Returns the prompt of a record, or the text of a document."""
    return texts(record)[0]


def _sign_whole(prompt: str) -> np.ndarray:
    """Returns a signature that only the same prompt has."""
    return np.full(near_duplicates.BANDS, _hash(_normalize(prompt)), np.uint64)


def _normalize(text: str) -> str:
    return " ".join(text.casefold().split())


def _hash(text: str) -> int:
    """Returns 8 bytes of a hash, never 0."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1
