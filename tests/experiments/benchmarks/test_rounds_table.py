"""The table of experiments/benchmarks/rounds.py: which rounds are compared, and intervals over seeds."""

import json

from benchmarks import rounds


def write(folder, qualities):
    folder.mkdir(parents=True)
    found = [{"true_quality": {"mean": quality}} for quality in qualities]
    (folder / "rounds.json").write_text(json.dumps({"rounds": found}))


def test_rounds_are_compared_with_as_many_comparisons_at_once(tmp_path):
    for name, qualities in {"rounds": [0.1, 0.2, 0.4], "once-2000": [0.3], "once-3000": [0.5]}.items():
        write(tmp_path / name, qualities)
    assert rounds.read(tmp_path) == ([0.1, 0.2, 0.4], [0.1, 0.3, 0.5])
    names = [flag.partition("=")[2] for flags in rounds.arms() for flag in flags if flag.startswith("--folder")]
    assert names == ["once-2000", "once-3000"]


def test_the_table_has_intervals_over_seeds():
    _, _, first, second = rounds.table([[0.1, 0.4], [0.1, 0.6], [0.1, 0.8]], [[0.1, 0.3], [0.1, 0.3], [0.1, 0.6]])
    assert first == "| 1000 | 1: 0.100 ± 0.000 | 0.100 ± 0.000 | – |"
    # Student's t with 2 degrees of freedom is 4.303; the standard errors are 0.2 / sqrt(3), 0.1 and sqrt(1 / 300).
    assert second == "| 2000 | 2: 0.600 ± 0.497 | 0.400 ± 0.430 | +0.200 ± 0.248 |"
