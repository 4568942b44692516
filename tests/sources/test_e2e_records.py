import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax import records
from instructjax.errors import DataError, RecordError
from instructjax.evaluation.agreement import length_rewards, pairwise_agreement, reward_accuracy
from instructjax.sources import e2e_records
from tests import local_data

PLACES = ["Aromi", "Cotto", "The Mill"]
FOODS = [f"food {i}" for i in range(30)]


def write(path, rows):
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def rating(item, rater, mr, scores, responses=None):
    responses = responses or [f"{mr} {k}" for k in range(len(scores))]
    fields = {"item": item, "rater": rater, "mr": mr, "responses": responses, "scores": scores}
    return {"prompt": f"Describe this.\n\n{mr}", **fields}


def reference(mr, response):
    return {"prompt": f"Describe this.\n\n{mr}", "mr": mr, "response": response}


@pytest.fixture
def folder(tmp_path):
    """Writes a small E2E folder: 30 foods, ranked for three places each, and 30 with references only."""
    ranked = [f"name[{place}], food[{food}]" for food in FOODS for place in PLACES]
    others = [f"name[{place}], food[{food}], area[riverside]" for food in FOODS for place in PLACES]
    write(tmp_path / "dev_references.jsonl.gz", [reference(mr, "A place.") for mr in others for _ in range(2)])
    write(tmp_path / "test_references.jsonl.gz", [reference(mr, "A place.") for mr in ranked])
    quality = []
    for i, mr in enumerate(ranked):
        quality += [rating(i, 0, mr, [1, 2, 3]), rating(i, 1, mr, [10, 10, 9000]), rating(i, 2, mr, [5, 5, 5])]
    write(tmp_path / "quality.jsonl.gz", quality)
    write(tmp_path / "naturalness.jsonl.gz", [rating(i, 0, mr, [3, 2, 1]) for i, mr in enumerate(ranked)])
    return tmp_path


def test_no_pattern_is_in_two_splits(folder):
    data = e2e_records.load(folder, ("quality", "naturalness"))
    splits = {}
    for record in (*data.demonstrations, *data.rankings, *data.averaged, *data.prompts):
        splits.setdefault(e2e_records.pattern(record.prompt), set()).add(record.split)
    assert all(len(found) == 1 for found in splits.values())
    assert set.union(*splits.values()) == {"train", "validation", "test"}
    ranked = {e2e_records.pattern(ranking.prompt) for ranking in data.rankings}
    assert {pattern for pattern, found in splits.items() if found == {"test"}} <= ranked


def test_all_records_are_read_and_tied_rankings_are_counted(folder):
    data = e2e_records.load(folder)
    assert len(data.demonstrations) == 3 * len(FOODS) * 3
    assert len(data.prompts) == len({prompt.prompt for prompt in data.prompts}) == 2 * len(FOODS) * 3
    assert len(data.rankings) == 2 * len(FOODS) * 3
    assert data.tied == len(FOODS) * 3
    assert data.rankings[0].prompt == f"name[Aromi], food[{FOODS[0]}]"
    assert data.rankings[0].labeler == "quality-0"


def test_records_are_the_same_after_writing_and_reading(folder):
    data = e2e_records.load(folder)
    for name in ("demonstrations", "rankings", "averaged", "prompts"):
        written = getattr(data, name)
        records.write(folder / f"{name}.jsonl", written)
        assert records.read(folder / f"{name}.jsonl", type(written[0])) == list(written)


def test_ranks_are_averaged_and_not_scores(folder):
    averaged = e2e_records.load(folder).averaged
    assert len(averaged) == len(FOODS) * 3
    assert {ranking.scores for ranking in averaged} == {((1 + 1.5) / 2, (2 + 1.5) / 2, 3.0)}
    assert {ranking.extra["raters"] for ranking in averaged} == {2}


@given(st.lists(st.permutations([1.0, 1.0, 2.0, 3.0, 4.0]), min_size=2, max_size=4), st.floats(0.5, 100))
def test_the_average_does_not_depend_on_a_raters_scale(scores, scale):
    def ranking(s):
        extra = {"aspect": "quality", "item": "1"}
        return records.Ranking(prompt="p", responses=tuple("abcde"), scores=tuple(s), extra=extra)

    plain = e2e_records.average([ranking(s) for s in scores])
    scaled = e2e_records.average([ranking(np.multiply(s, scale) if i == 0 else s) for i, s in enumerate(scores)])
    assert [r.scores for r in plain] == [r.scores for r in scaled]


def test_answers_that_tie_on_average_have_equal_scores():
    extra = {"aspect": "quality", "item": "1"}
    three = [(1.0, 2.0, 3.0), (2.0, 1.0, 3.0), (1.0, 1.0, 3.0)]
    rankings = [records.Ranking(prompt="p", responses=tuple("abc"), scores=s, extra=extra) for s in three]
    (averaged,) = e2e_records.average(rankings)
    assert averaged.scores[0] == averaged.scores[1] < averaged.scores[2]


def test_identical_answers_tie(folder):
    mr = "name[Aromi], food[Thai]"
    write(
        folder / "quality.jsonl.gz",
        [rating(0, 0, mr, [1, 3, 9], ["x", "x", "y"]), rating(1, 0, mr, [1, 2], ["x", "x"])],
    )
    data = e2e_records.load(folder, validation=0.0, test=0.0)
    assert [ranking.scores for ranking in data.rankings] == [(2.0, 2.0, 9.0)]
    assert data.tied == 1


def test_slots_and_pattern():
    assert e2e_records.slots("name[The Mill], priceRange[£20-25], customer rating[1 out of 5]") == {
        "name": "The Mill",
        "priceRange": "£20-25",
        "customer rating": "1 out of 5",
    }
    mill = e2e_records.pattern("name[The Mill], near[Ranch], area[riverside]")
    assert mill == e2e_records.pattern("area[riverside], near[The Vaults], name[Aromi]")
    assert mill != e2e_records.pattern("name[The Mill], area[riverside]")
    with pytest.raises(DataError, match="expected slot"):
        e2e_records.slots("The Mill is a pub.")


def test_a_missing_folder_or_file_is_rejected(folder):
    with pytest.raises(DataError, match=r"nowhere: expected the E2E files dev_references.*found no dev_references"):
        e2e_records.load(folder / "nowhere")
    (folder / "quality.jsonl.gz").unlink()
    with pytest.raises(DataError, match=r"found no quality.jsonl.gz"):
        e2e_records.load(folder)
    with pytest.raises(DataError, match="aspects: expected some of quality, naturalness, found 'beauty'"):
        e2e_records.load(folder, ("beauty",))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "mr": "name[A]"}, r"quality.jsonl.gz:1: item: expected in a rating"),
        (rating(0, 0, "no slots", [1, 2]), r"quality.jsonl.gz:1: mr: expected slot"),
        (rating(0, 0, "name[A]", [1, 2], ["x", "y", "z"]), r"quality.jsonl.gz:1: scores: expected 3 numbers"),
        (rating(0, 0, "name[A]", ["good", "good"]), r"quality.jsonl.gz:1: scores\[0\]: expected a finite number"),
        (rating(0, 0, "name[A]", "12", ["x", "y"]), r"quality.jsonl.gz:1: scores: expected 2 numbers"),
    ],
)
def test_an_invalid_rating_is_rejected(folder, row, message):
    write(folder / "quality.jsonl.gz", [row])
    with pytest.raises(RecordError, match=message):
        e2e_records.load(folder)


@pytest.mark.skipif(not local_data.E2E.is_dir(), reason=local_data.ABSENT)
def test_raters_agree_as_often_as_the_authors_report():
    quality, naturalness = (e2e_records.load(local_data.E2E, (aspect,)) for aspect in e2e_records.ASPECTS)
    assert pairwise_agreement(quality.rankings).mean == pytest.approx(0.67, abs=0.01)
    assert pairwise_agreement(naturalness.rankings).mean == pytest.approx(0.63, abs=0.01)
    train = [ranking for ranking in quality.rankings if ranking.split == "train"]
    assert reward_accuracy(quality.averaged, length_rewards(train, quality.averaged)[0]).mean == pytest.approx(
        0.61, abs=0.01
    )
