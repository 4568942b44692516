"""Tests that the report on the records has pictures if there are enough records, and is drawn once."""

import numpy as np
import pytest
from etils import epath

from instructjax.reporting import data_figures, data_report


def entry(count):
    """Returns what a summary has about a split with this many records."""
    statistics = [count, 9.0, 2.0, 0.0, 4.0, 8.0, 16.0, 99.0]
    return {
        "given": count,
        "used": count,
        "left_out": {},
        "changed": {},
        "users": {},
        "use_cases": {"Generation": count - 1, "fables": 1},
        "sources": {},
        "annotations": {},
        "table9": {"prompt": statistics},
        "table10": {},
        "table11": {},
    }


@pytest.mark.parametrize(("count", "pictures"), [(99, []), (100, ["lengths.png", "use_cases.png"])])
def test_enough_records_are_drawn(tmp_path, count, pictures):
    folder = epath.Path(tmp_path)
    summary = {"prompts": {"train": entry(count)}, "rankings": {"test": entry(5)}}
    data_report.write(folder, summary, "a recipe", {}, {"prompts": {}, "shared": []})
    assert sorted(path.name for path in folder.glob("*.png")) == pictures
    text = (folder / "report.md").read_text()
    assert all(f"![{picture}]({picture})" in text for picture in pictures)
    for picture in folder.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
        picture.unlink()
    data_report.write(folder, summary, "a recipe", {}, {"prompts": {}, "shared": []})
    assert not list(folder.glob("*.png"))  # nothing has changed


def test_prompts_in_two_sets_are_counted_by_set_and_split():
    overlap = {
        "prompts": {"demonstrations": {"train": 40}, "rankings": {"train": 30, "test": 9}},
        "shared": [["demonstrations", "train", "rankings", "train", 10]],
    }
    text = data_report.markdown({}, "a recipe", {}, overlap)
    assert "## Prompts in two sets" in text
    assert text.endswith("| demonstrations | train | 40 | rankings | train | 10 | 25.0 |\n")
    assert "Prompts in two sets" not in data_report.markdown({}, "a recipe", {}, overlap | {"shared": []})


def test_the_boxes_are_ours_and_the_papers():
    figure = data_figures.lengths({"prompts": {"train": entry(200), "test": entry(50)}}, 100)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["prompts, train", "the paper's"]
    assert [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches] == [(4, 16), (19, 179)]


def test_the_bars_are_shares():
    figure = data_figures.use_cases({"prompts": {"train": entry(200)}}, 100)
    (axes,) = figure.axes
    widths = [bar.get_width() for bar in axes.patches]
    assert 99.5 in widths and 45.6 in widths and np.isclose(sum(widths), 199.8, atol=0.3)
