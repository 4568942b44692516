"""Merges comparisons of two answers to one prompt into rankings of K answers.

The paper trains on all comparisons of a prompt at once, because they overfit if they are shuffled (section 3.5).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence

from instructjax.records import MAX_RESPONSES, Ranking


def merge_pairs(rankings: Iterable[Ranking]) -> list[Ranking]:
    """Merges the pairs of each prompt and split into one ranking, if it states the same preferences as the pairs.

    The scores of the merged ranking are levels. It is kept only if each preference in it follows from the pairs; an
    answer of a higher level that was never compared with one of a lower level, even through others, or preferences that
    contradict each other, leave the pairs as they are. Rankings of other than two answers are not changed. User and
    labeler are kept if all pairs have the same.

    Returns:
      The rankings, merged ones at the place of their first pair.
    """
    groups: dict[object, list[Ranking]] = collections.defaultdict(list)
    for number, ranking in enumerate(rankings):
        is_pair = len(ranking.responses) == 2 and ranking.metadata is None
        key = (ranking.prompt, ranking.split)
        groups[key if is_pair else number].append(ranking)
    return [merged for group in groups.values() for merged in _merge(group)]


def _merge(group: Sequence[Ranking]) -> Sequence[Ranking]:
    answers = list(dict.fromkeys(response for ranking in group for response in ranking.responses))
    if len(group) == 1 or not 2 < len(answers) <= MAX_RESPONSES:
        return group
    number = {answer: i for i, answer in enumerate(answers)}
    better: list[set[int]] = [set() for _ in answers]  # by answer, those that it is preferred to
    for ranking in group:
        (first, second), (a, b) = ranking.scores, map(number.__getitem__, ranking.responses)
        if first != second:
            better[a if first > second else b].add(b if first > second else a)
    for middle in range(len(answers)):  # Warshall's transitive closure
        for above in better:
            if middle in above:
                above |= better[middle]
    if any(i in above for i, above in enumerate(better)):
        return group
    levels = _levels(better)
    implied = all(j in better[i] for i in range(len(answers)) for j in range(len(answers)) if levels[i] > levels[j])
    if not implied:
        return group
    users, labelers = {ranking.user for ranking in group}, {ranking.labeler for ranking in group}
    return [
        dataclasses.replace(
            group[0],
            responses=tuple(answers),
            scores=tuple(map(float, levels)),
            user=group[0].user if len(users) == 1 else None,
            labeler=group[0].labeler if len(labelers) == 1 else None,
        )
    ]


def _levels(better: Sequence[set[int]]) -> list[int]:
    """Returns 1 for answers that are preferred to none, and one more than the highest below for the others."""
    levels = [0] * len(better)
    for i in sorted(range(len(better)), key=lambda i: len(better[i])):  # a closure below another is smaller
        levels[i] = 1 + max((levels[j] for j in better[i]), default=0)
    return levels
