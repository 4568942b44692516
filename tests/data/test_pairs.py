"""Tests that pairs of one prompt become one ranking only if it says what they say."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from instructjax.data import pairs
from instructjax.records import Ranking


def pair(better, worse, prompt="p", **fields):
    return Ranking(prompt=prompt, responses=(better, worse), scores=(1.0, 0.0), **fields)


def preferences(rankings):
    """Returns the preferences of rankings and what follows from them: {(prompt, better, worse)}."""
    found = {
        (ranking.prompt, a, b)
        for ranking in rankings
        for (a, x), (b, y) in itertools.permutations(zip(ranking.responses, ranking.scores, strict=True), 2)
        if x > y
    }
    while more := {(p, a, d) for (p, a, b), (q, c, d) in itertools.product(found, found) if (p, b) == (q, c)} - found:
        found |= more
    return found


def test_all_pairs_of_a_ranking_become_this_ranking():
    given_pairs = [pair(a, b, user=f"u{a}", source="s") for a, b in itertools.combinations("abcd", 2)]
    (found,) = pairs.merge_pairs(given_pairs)
    assert found == Ranking(prompt="p", responses=tuple("abcd"), scores=(4, 3, 2, 1), source="s")


def test_ties_are_no_preferences():
    tie = Ranking(prompt="p", responses=("a", "b"), scores=(1.0, 1.0))
    (found,) = pairs.merge_pairs([tie, pair("a", "c"), pair("b", "c")])
    assert (found.responses, found.scores) == (("a", "b", "c"), (2, 2, 1))


def test_pairs_that_no_ranking_says_are_kept():
    for kept in (
        [pair("a", "b"), pair("c", "d"), pair("d", "e")],  # a was never compared with d
        [pair("a", "b"), pair("b", "c"), pair("c", "a")],  # a contradiction
        [pair("a", "b"), pair("a", "b")],
        [pair("a", "b"), pair("c", "d", prompt="q")],
        [pair("a", "b", split="train"), pair("b", "c", split="test")],
        [Ranking(prompt="p", responses=("a", "b", "c"), scores=(1, 2, 3)), pair("a", "d")],
    ):
        assert pairs.merge_pairs(kept) == kept


@given(
    st.lists(
        st.tuples(st.sampled_from("pq"), st.sampled_from("abcde"), st.sampled_from("abcde")).filter(
            lambda drawn: drawn[1] != drawn[2]
        ),
        max_size=9,
    )
)
def test_merging_adds_and_loses_no_preference(drawn):
    given_pairs = [pair(better, worse, prompt) for prompt, better, worse in drawn]
    merged = pairs.merge_pairs(given_pairs)
    assert preferences(merged) == preferences(given_pairs)
    assert len(merged) <= len(given_pairs)
