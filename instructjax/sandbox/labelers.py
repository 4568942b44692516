"""Simulated labelers, with individual tastes and noise.

A labeler perceives the quality of an answer under weights that are close to the common ones, plus Gaussian noise for
each judgment. Answers of nearly equal perceived quality tie, and identical answers always do.

With the default noise, two labelers agree on about 73% of the pairs of SFT-like answers that neither of them ties. The
paper reports 72.6% for its training labelers (section 3.4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from instructjax.records import TABLE3_FLAGS, Ranking
from instructjax.sandbox.quality import ASPECTS, COMMON_WEIGHTS, assess, table3_fields
from instructjax.sandbox.tasks import parse_prompt

NOISE = 0.21
TIE_THRESHOLD = 0.05


@dataclasses.dataclass(frozen=True)
class Labeler:
    """A simulated labeler.

    Attributes:
      name: unique among all labelers.
      weights: float[6], the labeler's weights of the ASPECTS of an answer.
      noise: standard deviation of one judgment, on the scale of quality, [0, 1].
      tie_threshold: two answers tie if their perceived qualities differ by less than this.
      leniency: added to the perceived quality before it becomes a Likert score.
      flag_error: probability that one binary field of Table 3 is set wrongly.
      care: in [0, 1], how full and polite the labeler's demonstrations are.
      flaw_rate: share of the labeler's demonstrations with a flaw.
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
    """Draws the labelers who write demonstrations and rank answers for training (section 3.4).

    Args:
      seed: the seed of their tastes.
      count: number of labelers.
      noise: mean standard deviation of one judgment, on the scale of quality.
      tie_threshold: two answers tie if their perceived qualities differ by less than this.
    """
    rng = np.random.default_rng([seed, 1])
    return [_draw_labeler(rng, f"training-{i:02d}", 0.25, noise, tie_threshold) for i in range(count)]


def heldout_labelers(
    seed: int = 0, count: int = 20, noise: float = NOISE, tie_threshold: float = TIE_THRESHOLD
) -> list[Labeler]:
    """Draws held-out labelers, who make no training data. Their tastes vary a little more; see `training_labelers`."""
    rng = np.random.default_rng([seed, 2])
    return [_draw_labeler(rng, f"heldout-{i:02d}", 0.35, noise, tie_threshold) for i in range(count)]


def _draw_labeler(rng: np.random.Generator, name: str, spread: float, noise: float, tie_threshold: float) -> Labeler:
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
    """Samples a labeler's perceived quality of each response.

    Args:
      prompt: a prompt of the sandbox.
      responses: K texts. Texts that differ only in white space are judged once.
      labeler: the labeler, whose weights and noise are used.
      rng: source of the noise of each judgment.

    Returns:
      float[K], on the scale of quality. Identical texts get the same value.

    Raises:
      RecordError: the prompt is not one of the sandbox's.
    """
    texts = [_normalize_spaces(response) for response in responses]
    distinct = dict.fromkeys(texts)
    for text, error in zip(distinct, labeler.noise * rng.standard_normal(len(distinct)), strict=True):
        distinct[text] = assess(prompt, text).quality(labeler.weights) + error
    return np.array([distinct[text] for text in texts])


def compare(prompt: str, a: str, b: str, labeler: Labeler, rng: np.random.Generator) -> float:
    """Returns which of two responses a labeler prefers: 1.0 for `a`, 0.0 for `b`, 0.5 for a tie.

    Raises:
      RecordError: the prompt is not one of the sandbox's.
    """
    first, second = perceive(prompt, (a, b), labeler, rng)
    if _normalize_spaces(a) == _normalize_spaces(b) or abs(first - second) < labeler.tie_threshold:
        return 0.5
    return float(first > second)


def levels(prompt: str, responses: Sequence[str], labeler: Labeler, rng: np.random.Generator) -> np.ndarray:
    """Divides K responses into levels as `rank` does, and returns them: float[K], 1 for the lowest, equal for ties.

    Raises:
      RecordError: the prompt is not one of the sandbox's.
    """
    return _tie_levels(perceive(prompt, responses, labeler, rng), labeler.tie_threshold)


def rank(prompt: str, responses: Sequence[str], labeler: Labeler, rng: np.random.Generator) -> Ranking | None:
    """Ranks K responses, and gives each a Likert score and flags (section 3.4, Table 3).

    The responses are divided into levels, from the worst to the best. A response joins the current level if its
    perceived quality is less than the tie threshold above the lowest one of that level.

    Args:
      prompt: a prompt of the sandbox.
      responses: 2 to 9 texts.
      labeler: who ranks.
      rng: source of the noise of the judgments.

    Returns:
      A record whose scores are the levels, 1 for the lowest. Its metadata has "overall_quality" (1 to 7) and the eleven
      flags of Table 3 for each response. None if all responses tie.

    Raises:
      RecordError: the prompt is not one of the sandbox's.
    """
    perceived = perceive(prompt, responses, labeler, rng)
    scores = _tie_levels(perceived, labeler.tie_threshold)
    if scores.max() == scores.min():
        return None
    likert = np.clip(np.rint(1 + 6 * (perceived + labeler.leniency)), 1, 7).astype(int)
    flags = _draw_flags(prompt, responses, labeler, rng)
    return Ranking(
        prompt=prompt,
        responses=tuple(responses),
        scores=tuple(map(float, scores)),
        metadata=tuple({"overall_quality": int(score)} | flags[i] for i, score in enumerate(likert)),
        labeler=labeler.name,
        use_case=parse_prompt(prompt).use_case,
    )


def rate(prompt: str, response: str, labeler: Labeler, rng: np.random.Generator) -> dict[str, int | bool]:
    """Returns the fields of Table 3 for one response: "overall_quality" (1 to 7) and the eleven flags.

    Raises:
      RecordError: the prompt is not one of the sandbox's.
    """
    (perceived,) = perceive(prompt, (response,), labeler, rng)
    likert = int(np.clip(np.rint(1 + 6 * (perceived + labeler.leniency)), 1, 7))
    return {"overall_quality": likert} | _draw_flags(prompt, (response,), labeler, rng)[0]


def _normalize_spaces(text: str) -> str:
    return "\n".join(" ".join(line.split()) for line in text.strip().split("\n"))


def _tie_levels(perceived: np.ndarray, tie_threshold: float) -> np.ndarray:
    levels = np.zeros(len(perceived))
    level, lowest = 0, -np.inf
    for i in np.argsort(perceived, kind="stable"):
        # The second condition makes identical texts tie at any threshold, also at 0.
        if perceived[i] - lowest >= tie_threshold and perceived[i] > lowest:
            level, lowest = level + 1, perceived[i]
        levels[i] = level
    return levels


def _draw_flags(
    prompt: str, responses: Sequence[str], labeler: Labeler, rng: np.random.Generator
) -> list[dict[str, bool]]:
    wrong = rng.random((len(responses), len(TABLE3_FLAGS))) < labeler.flag_error
    fields = [table3_fields(prompt, response) for response in responses]
    return [
        {name: bool(value) != bool(wrong[i, j]) for j, (name, value) in enumerate(entry.items())}
        for i, entry in enumerate(fields)
    ]
