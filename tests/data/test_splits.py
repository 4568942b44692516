"""Tests that no prompt is in two splits, over all sets, with users and without."""

import collections

from hypothesis import given
from hypothesis import strategies as st

from instructjax.data import splits
from instructjax.records import SPLITS, Demonstration, Prompt, Ranking, Text, split_of

PROMPTS = [f"say {i} things" for i in range(12)]
SHARES = 0.3, 0.3


@st.composite
def records_of_some_kind(draw):
    prompt = draw(st.sampled_from(PROMPTS))
    prompt = draw(st.sampled_from([prompt, f" {prompt.upper()}", prompt.replace(" ", "\n")]))
    fields = {
        "prompt": prompt,
        "user": draw(st.sampled_from([None, *(f"user {i}" for i in range(8))])),
        "split": draw(st.sampled_from([None, None, None, *SPLITS])),
    }
    kind = draw(st.sampled_from([Prompt, Demonstration, Ranking]))
    more = {Prompt: {}, Demonstration: {"response": "r"}, Ranking: {"responses": ("a", "b"), "scores": (1.0, 0.0)}}
    return kind(**fields, **more[kind])


@given(st.lists(records_of_some_kind(), max_size=40))
def test_no_prompt_is_used_in_two_splits(drawn):
    known = splits.prompt_splits(drawn, *SHARES)
    places = [(record, *splits.place(record, known, *SHARES)) for record in drawn]
    used = collections.defaultdict(set)
    for record, split, reason in places:
        if not reason:
            used[" ".join(record.prompt.casefold().split())].add(split)
    assert all(len(found) == 1 for found in used.values())
    assert used.keys() == {" ".join(record.prompt.casefold().split()) for record in drawn}  # no prompt is lost


@given(st.lists(records_of_some_kind(), max_size=40))
def test_users_decide_unless_those_of_other_splits_sent_the_same(drawn):
    known = splits.prompt_splits(drawn, *SHARES)
    wanted = collections.defaultdict(set)  # by prompt, the splits of records with a user or a split
    for record in drawn:
        if record.user or record.split:
            wanted[splits.prompt_key(record)].add(split_of(record, *SHARES))
    for record in drawn:
        split, reason = splits.place(record, known, *SHARES)
        assert not reason or record.split == split
        if len(found := wanted[splits.prompt_key(record)]) == 1:
            assert {split} == found and not reason


@given(st.permutations([Prompt(prompt=p, user=u) for p in PROMPTS[:4] for u in ("u", "v", "w")]))
def test_the_order_of_records_does_not_matter(drawn):
    assert splits.prompt_splits(drawn, *SHARES) == splits.prompt_splits(sorted(drawn, key=str), *SHARES)


def test_texts_have_no_prompt():
    known = splits.prompt_splits([Text(text="a", split="test"), Prompt(prompt="a", split="test")], 0, 0)
    assert splits.place(Text(text="a"), known, 0, 0) == ("train", "")
    assert splits.place(Prompt(prompt="a", split="train"), known, 0, 0) == ("train", "prompt of the test split")
    assert splits.place(Prompt(prompt="A "), known, 0, 0) == ("test", "")
