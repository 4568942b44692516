"""Tests that any file of any format, and any export of a labeling tool, gives records or an InputError."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax import records
from instructjax.data import formats, shapes
from instructjax.records import Demonstration, Prompt, Ranking, Text
from tests.data import test_exports
from tests.data.test_formats import FILES
from tests.fuzz import tries

EXPORTS = {
    "tree": test_exports.TREE,
    "argilla": test_exports.ARGILLA,
    "hub": test_exports.HUB,
    "few-shot": test_exports.FEW_SHOT,
    "label studio": test_exports.label_studio(test_exports.RANKER, test_exports.PAIRWISE),
}
NAMES = "prompt=instruction, score=responses.*.value, note={id}: {status}, pair=first+second"


def read(path, kind, names=""):
    return list(records.valid(formats.read(path, kind, shapes.parse_names(names, "files.fields"))))


@pytest.mark.parametrize("name", [name for name in FILES if not name.lower().endswith((".gz", ".zst"))])
@tries.tries
@given(data=st.data())
def test_files_of_any_bytes(tmp_path, name, data):
    (tmp_path / name).write_bytes(data.draw(tries.any_bytes(FILES[name])))
    with tries.only_input_errors():
        assert read(tmp_path / name, Ranking)


@pytest.mark.parametrize("name", EXPORTS)
@tries.tries
@given(data=st.data())
def test_changed_exports(tmp_path, name, data):
    (tmp_path / "a.jsonl").write_bytes(tries.as_json(data.draw(tries.changed_json(EXPORTS[name]))))
    with tries.only_input_errors():
        kind = data.draw(st.sampled_from([Text, Demonstration, Prompt, Ranking]))
        assert read(tmp_path / "a.jsonl", kind, data.draw(st.sampled_from(["", NAMES]))) is not None
