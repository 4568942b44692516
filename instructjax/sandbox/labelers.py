"""Simulated people: labelers with tastes of their own, who judge with noise.

A labeler perceives the worth of an answer under weights near the common ones, plus
Gaussian noise for each judgement. Near-equal answers tie, and identical ones always
do. The default noise makes two labelers agree on about 73 % of the pairs of SFT-like
answers that neither of them ties (section 3.4 reports 72.6 % for training labelers).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from instructjax.records import Ranking
from instructjax.sandbox.quality import ASPECTS, COMMON_WEIGHTS, TABLE3_FLAGS, assess, table3_fields
from instructjax.sandbox.tasks import parse

NOISE = 0.21
TIE_THRESHOLD = 0.05


@dataclasses.dataclass(frozen=True)
class Labeler:
    """One simulated person.

    Attributes:
      name: unique among all labelers.
      weights: float[6], what the ASPECTS of an answer are worth to them.
      noise: standard deviation of one judgement, on the scale of quality, [0, 1].
      tie_threshold: answers whose perceived worth differs by less are tied.
      leniency: added to the perceived worth before it becomes a Likert score.
      flag_error: chance that one binary field of Table 3 is set wrongly.
      care: in [0, 1], the fullness and politeness of the demonstrations they write.
      flaw_rate: share of their demonstrations that have a flaw.
    """

    name: str
    weights: np.ndarray
    noise: float
    tie_threshold: float
    leniency: float
    flag_error: float
    care: float
    flaw_rate: float


def training_labelers(
    seed: int = 0, count: int = 40, noise: float = NOISE, tie_threshold: float = TIE_THRESHOLD
) -> list[Labeler]:
    """The labelers who write demonstrations and rank for training (section 3.4).

    Args:
      seed: of their tastes.
      count: number of labelers.
      noise: mean standard deviation of one judgement, on the scale of quality.
      tie_threshold: difference in perceived worth below which answers are tied.
    """
    rng = np.random.default_rng([seed, 1])
    return [_draw(rng, f"training-{i:02d}", 0.25, noise, tie_threshold) for i in range(count)]


def heldout_labelers(
    seed: int = 0, count: int = 20, noise: float = NOISE, tie_threshold: float = TIE_THRESHOLD
) -> list[Labeler]:
    """Labelers who make no training data; their tastes vary a little more. See `training_labelers`."""
    rng = np.random.default_rng([seed, 2])
    return [_draw(rng, f"heldout-{i:02d}", 0.35, noise, tie_threshold) for i in range(count)]


def _draw(rng: np.random.Generator, name: str, spread: float, noise: float, tie_threshold: float) -> Labeler:
    weights = COMMON_WEIGHTS * np.exp(spread * rng.standard_normal(len(ASPECTS)))
    return Labeler(
        name=name,
        weights=weights / weights.sum(),
        noise=noise * float(np.exp(0.15 * rng.standard_normal())),
        tie_threshold=tie_threshold,
        leniency=0.05 * float(rng.standard_normal()),
        flag_error=0.02 * float(rng.random()),
        care=float(np.clip(0.38 + 0.12 * rng.standard_normal(), 0.0, 1.0)),
        flaw_rate=float(np.clip(0.5 + 0.15 * rng.standard_normal(), 0.1, 0.9)),
    )


def perceive(prompt: str, responses: Sequence[str], labeler: Labeler, rng: np.random.Generator) -> np.ndarray:
    """How a labeler perceives the worth of responses, each judged once.

    Args:
      prompt: a prompt of the sandbox.
      responses: K texts; those that differ only in white space count as one text.
      labeler: whose tastes and noise.
      rng: source of the noise of each judgement.

    Returns:
      float[K], on the scale of quality; identical texts are perceived alike.

    Raises:
      RecordError: the prompt is not one of the sandbox's.
    """
    texts = [_normal(response) for response in responses]
    distinct = dict.fromkeys(texts)
    for text, error in zip(distinct, labeler.noise * rng.standard_normal(len(distinct)), strict=True):
        distinct[text] = assess(prompt, text).worth(labeler.weights) + error
    return np.array([distinct[text] for text in texts])


def compare(prompt: str, a: str, b: str, labeler: Labeler, rng: np.random.Generator) -> float:
    """Which of two responses a labeler prefers: 1.0 is `a`, 0.0 is `b`, 0.5 a tie.

    Raises:
      RecordError: the prompt is not one of the sandbox's.
    """
    first, second = perceive(prompt, (a, b), labeler, rng)
    if _normal(a) == _normal(b) or abs(first - second) < labeler.tie_threshold:
        return 0.5
    return float(first > second)


def rank(prompt: str, responses: Sequence[str], labeler: Labeler, rng: np.random.Generator) -> Ranking | None:
    """Ranks K responses, after a Likert score and flags for each (section 3.4, Table 3).

    Going up from the worst, a response that is perceived less than the tie threshold
    above the lowest of its level joins that level.

    Args:
      prompt: a prompt of the sandbox.
      responses: 2 to 9 texts.
      labeler: who ranks.
      rng: source of the noise of the judgements.

    Returns:
      A record whose scores are the levels, 1 for the lowest, and whose metadata has
      for each response "overall_quality" (1 to 7) and the eleven flags of Table 3.
      None if all are tied.

    Raises:
      RecordError: the prompt is not one of the sandbox's.
    """
    perceived = perceive(prompt, responses, labeler, rng)
    scores = _levels(perceived, labeler.tie_threshold)
    if scores.max() == scores.min():
        return None
    likert = np.clip(np.rint(1 + 6 * (perceived + labeler.leniency)), 1, 7).astype(int)
    flags = _flag(prompt, responses, labeler, rng)
    return Ranking(
        prompt=prompt,
        responses=tuple(responses),
        scores=tuple(map(float, scores)),
        metadata=tuple({"overall_quality": int(score)} | flags[i] for i, score in enumerate(likert)),
        labeler=labeler.name,
        use_case=parse(prompt).use_case,
    )


def rate(prompt: str, response: str, labeler: Labeler, rng: np.random.Generator) -> dict[str, int | bool]:
    """The fields of Table 3 for one response: "overall_quality" (1 to 7) and the eleven flags.

    Raises:
      RecordError: the prompt is not one of the sandbox's.
    """
    (perceived,) = perceive(prompt, (response,), labeler, rng)
    likert = int(np.clip(np.rint(1 + 6 * (perceived + labeler.leniency)), 1, 7))
    return {"overall_quality": likert} | _flag(prompt, (response,), labeler, rng)[0]


def _normal(text: str) -> str:
    return "\n".join(" ".join(line.split()) for line in text.strip().split("\n"))


def _levels(perceived: np.ndarray, tie_threshold: float) -> np.ndarray:
    levels = np.zeros(len(perceived))
    level, lowest = 0, -np.inf
    for i in np.argsort(perceived, kind="stable"):
        # Identical texts are perceived exactly alike: they tie at any threshold.
        if perceived[i] - lowest >= tie_threshold and perceived[i] > lowest:
            level, lowest = level + 1, perceived[i]
        levels[i] = level
    return levels


def _flag(prompt: str, responses: Sequence[str], labeler: Labeler, rng: np.random.Generator) -> list[dict[str, bool]]:
    wrong = rng.random((len(responses), len(TABLE3_FLAGS))) < labeler.flag_error
    fields = [table3_fields(prompt, response) for response in responses]
    return [
        {name: bool(value) != bool(wrong[i, j]) for j, (name, value) in enumerate(entry.items())}
        for i, entry in enumerate(fields)
    ]
