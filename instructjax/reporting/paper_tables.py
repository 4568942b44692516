"""The paper's Tables 1 and 6 to 11: what its records are like."""

from __future__ import annotations

from collections.abc import Mapping

Statistics = tuple[float, ...]  # as `checked.STATISTICS`

SIZES: Mapping[str, Mapping[str, int]] = {  # Table 6, and Table 9 for the test set
    "demonstrations": {"train": 12_725, "validation": 1_653},
    "rankings": {"train": 33_207, "validation": 17_887},
    "prompts": {"train": 31_144, "validation": 16_185, "test": 3_196},
}
PER_USER: Mapping[str, Mapping[str, float]] = {  # Table 8
    "demonstrations": {"train": 1.65, "validation": 1.87},
    "rankings": {"train": 5.35, "validation": 27.96},
    "prompts": {"train": 6.01, "validation": 31.55, "test": 1.81},
}
USE_CASES: Mapping[str, float] = {  # Table 1, in percent
    "generation": 45.6,
    "open qa": 12.4,
    "brainstorming": 11.2,
    "chat": 8.4,
    "rewrite": 6.6,
    "summarization": 4.2,
    "classification": 3.5,
    "other": 3.5,
    "closed qa": 2.6,
    "extract": 1.9,
}
# Table 7, in percent: of the test prompts, of rankings and of demonstrations; None is not annotated.
_ANNOTATED = (
    ("prompts", "test"),
    ("rankings", "train"),
    ("rankings", "validation"),
    ("demonstrations", "train"),
    ("demonstrations", "validation"),
)
_ANNOTATIONS: Mapping[str, tuple[float | None, ...]] = {
    "ambiguous": (None, 7.9, 8.0, 5.1, 6.4),
    "sensitive content": (None, 6.9, 5.3, 0.9, 1.0),
    "identity dependent": (None, None, None, 0.9, 0.3),
    "closed domain": (11.8, 19.4, 22.9, 27.4, 40.6),
    "continuation style": (None, 15.5, 16.2, 17.9, 21.6),
    "requests opinion": (11.2, 7.7, 7.5, 8.6, 3.4),
    "requests advice": (3.9, None, None, None, None),
    "requests moral judgment": (0.8, 1.1, 0.3, 0.3, 0.0),
    "explicit safety constraint": (None, 0.4, 0.4, 0.3, 0.0),
    "other explicit constraint": (None, 26.3, 28.9, 25.6, 20.7),
    "intent unclear": (7.9, None, None, None, None),
}
LENGTHS: Mapping[tuple[str, str], Statistics] = {  # Table 9
    ("demonstrations", "train"): (12725, 408, 433, 1, 37, 283, 632, 2048),
    ("demonstrations", "validation"): (1653, 401, 433, 4, 41, 234, 631, 2048),
    ("rankings", "train"): (33207, 199, 334, 1, 20, 64, 203, 2032),
    ("rankings", "validation"): (17887, 209, 327, 1, 26, 77, 229, 2039),
    ("prompts", "train"): (31144, 166, 278, 2, 19, 62, 179, 2044),
    ("prompts", "validation"): (16185, 186, 292, 1, 24, 71, 213, 2039),
    ("prompts", "test"): (3196, 115, 194, 1, 17, 49, 127, 1836),
}
LENGTHS_BY_USE_CASE: Mapping[str, Statistics] = {  # Table 10, over all sets
    "brainstorming": (5245, 83, 149, 4, 17, 36, 85, 1795),
    "chat": (3911, 386, 376, 1, 119, 240, 516, 1985),
    "classification": (1615, 223, 318, 6, 68, 124, 205, 2039),
    "extract": (971, 304, 373, 3, 74, 149, 390, 1937),
    "generation": (21684, 130, 223, 1, 20, 52, 130, 1999),
    "closed qa": (1398, 325, 426, 5, 68, 166, 346, 2032),
    "open qa": (6262, 89, 193, 1, 10, 18, 77, 1935),
    "rewrite": (3168, 183, 237, 4, 52, 99, 213, 1887),
    "summarization": (1962, 424, 395, 6, 136, 284, 607, 1954),
    "other": (1767, 180, 286, 1, 20, 72, 188, 1937),
}
LENGTHS_BY_WRITER: Mapping[tuple[str, str], Statistics] = {  # Table 11, of demonstrations
    ("labeler", "prompt"): (12845, 437, 441, 5, 42, 324, 673, 2048),
    ("labeler", "response"): (12845, 38, 76, 1, 9, 18, 41, 2048),
    ("customer", "prompt"): (1533, 153, 232, 1, 19, 67, 186, 1937),
    ("customer", "response"): (1533, 88, 179, 0, 15, 39, 88, 2048),
}


def annotation(name: str, records: str, split: str) -> float | None:
    """Returns the paper's share of an annotation in percent, for a set and a split; None if it has none (Table 7)."""
    row = _ANNOTATIONS.get(name.lower())
    return row[_ANNOTATED.index((records, split))] if row and (records, split) in _ANNOTATED else None
