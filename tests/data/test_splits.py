"""Tests that no prompt is in two splits, over all sets, with users and without."""

import collections
import contextlib
import tempfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instructjax import records
from instructjax.data import preparation, prepared, splits
from instructjax.errors import DataError
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


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.lists(records_of_some_kind(), min_size=1, max_size=40))
def test_prepared_sets_have_no_prompt_in_two_splits(tmp_path, drawn):
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        shares = {"validation": SHARES[0], "test": SHARES[1]}
        given_files = {}
        for kind in (Prompt, Demonstration, Ranking):
            if found := [record for record in drawn if isinstance(record, kind)]:
                given_files[kind] = [f"{folder}/{kind.__name__}.jsonl"]
                records.write(given_files[kind][0], found)
        shared = preparation.shared_prompts(given_files, folder, names={}, **shares)
        used = collections.defaultdict(set)
        for kind, paths in given_files.items():
            name = prepared.SET_NAMES[kind]
            with contextlib.suppress(DataError):  # all records of this set are left out
                preparation.prepare(kind, paths, folder, name=name, shared=shared, **shares)
                for split in prepared.split_sizes(folder, name):
                    for record in prepared.load(folder, name, kind, split):
                        used[" ".join(record.prompt.casefold().split())].add(split)
        assert all(len(splits_of_prompt) == 1 for splits_of_prompt in used.values())


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
