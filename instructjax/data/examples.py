"""From a record to the tokens of one row: every layout of the package, each a pure function.

The drawings use a tokenizer with one token a word, separator "\\n" (written ¶), EOS written $ and padding
written ·, for a prompt "name a colour" with the response "dark red".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from instructjax.batch import LMBatch, PromptBatch, RankingBatch
from instructjax.data.vocabulary import Vocabulary
from instructjax.errors import ConfigError, DataError
from instructjax.records import MAX_RESPONSES, Demonstration, Prompt, Ranking, Text


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a prompt and a response become tokens: the same in SFT, RM, PPO and evaluation.

        prompt tokens    encode_opening(prompt + separator)    name a colour ¶    at most max_prompt
        response tokens  encode(response) + [EOS]              dark red $         at most max_response

    Attributes:
      tokenizer: text to tokens.
      separator: text between prompt and response. End it with a line break, so that the tokens are those
        of one document; see `tokenizer.py` and `byte_pairs.py`.
      max_prompt: tokens, the separator included. The paper filters prompts over 1k tokens (appendix C).
      max_response: tokens, EOS included. The paper caps responses at 1k tokens (appendix C).
    """

    tokenizer: Vocabulary
    separator: str
    max_prompt: int
    max_response: int

    def __post_init__(self):
        for name in ("max_prompt", "max_response"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.{name}: expected at least 1 token, found {getattr(self, name)}")

    @property
    def length(self) -> int:
        """Tokens of a row with prompt and response."""
        return self.max_prompt + self.max_response

    def prompt(self, text: str, where: str = "prompt") -> list[int]:
        """The tokens of a prompt and the separator.

        Raises:
          DataError: there are more than `max_prompt`.
        """
        tokens = self.tokenizer.encode_opening(text + self.separator)
        if len(tokens) > self.max_prompt:
            raise DataError(
                f"{where}: prompt: expected at most {self.max_prompt} tokens (data.max_prompt), found {len(tokens)}"
            )
        return tokens

    def response(self, text: str, where: str = "record", field: str = "response") -> list[int]:
        """The tokens of a response and EOS.

        Raises:
          DataError: there are more than `max_response`.
        """
        tokens = [*self.tokenizer.encode(text), self.tokenizer.eos_id]
        if len(tokens) > self.max_response:
            raise DataError(
                f"{where}: {field}: expected at most {self.max_response} tokens (data.max_response),"
                f" found {len(tokens)}"
            )
        return tokens

    def capped(self, text: str) -> str:
        """A sampled response, cut at its end until it fits.

        It was sampled in `max_response` tokens, but maybe without EOS, and not in those that the tokenizer
        would choose for it.
        """
        while len(self.tokenizer.encode(text)) >= self.max_response:
            text = text[:-1]
        return text

    def check(self, record: Demonstration | Prompt | Ranking) -> None:
        """Tokenises a record only to see that it fits.

        Raises:
          DataError: "FILE:LINE: prompt: expected at most N tokens (data.max_prompt), found M", or likewise
            for a response.
        """
        self.prompt(record.prompt, record.where)
        match record:
            case Demonstration():
                self.response(record.response, record.where)
            case Ranking():
                for i, response in enumerate(record.responses):
                    self.response(response, record.where, f"responses[{i}]")


def document(record: Text, tokenizer: Vocabulary) -> np.ndarray:
    """The tokens of a document, [n] int32: its text, then EOS, which belongs to it.

    the fox runs  ->  the fox runs $
    """
    return np.array([*tokenizer.encode(record.text), tokenizer.eos_id], np.int32)


def window(tokens: np.ndarray, inside: np.ndarray, eos_id: int) -> LMBatch:
    """A row of packed documents, as GPT-3 packs them (Brown et al. 2020, appendix B), but told apart.

        tokens     b  c  $  d  e  f  $  g
        segments   1  1  1  2  2  2  2  3
        positions  0  1  2  0  1  2  3  0
        weights    0  1  1  0  1  1  1  0

    Here a document "a b c" began in the window before; its rest is a segment of its own. The first token
    of a segment sees nothing before it, so it is not predicted. EOS belongs to the document that it ends.

    Args:
      tokens: [T] int32, documents that each end with EOS; it occurs nowhere else, as no text is encoded to it.
      inside: [T] bool, False on the padding after the last of them.
      eos_id: ends a document.

    Returns:
      A row [T].
    """
    place = np.arange(len(tokens), dtype=np.int32)
    first = np.concatenate([[True], tokens[:-1] == eos_id])
    segments = np.where(inside, np.cumsum(first), 0).astype(np.int32)
    positions = np.where(inside, place - np.maximum.accumulate(np.where(first, place, 0)), 0).astype(np.int32)
    return LMBatch(tokens, segments, positions, (positions > 0).astype(np.float32))


def demonstration(record: Demonstration, layout: Layout, prompt_weight: float = 0.0) -> LMBatch:
    """A prompt with its response, padded on the right.

        tokens     name  a  colour  ¶  dark  red  $  ·  ·
        segments      1  1       1  1     1    1  1  0  0
        positions     0  1       2  3     4    5  6  0  0
        weights       0  w       w  w     1    1  1  0  0

    Args:
      record: the demonstration.
      layout: the lengths; T = layout.length.
      prompt_weight: w, the weight of predicting a token of the prompt. The paper does not say whether its
        loss covers the prompt; 0 learns responses only, 1 is the loss of pretraining.

    Returns:
      A row [T].

    Raises:
      DataError: prompt or response is too long.
    """
    prompt = layout.prompt(record.prompt, record.where)
    response = layout.response(record.response, record.where)
    tokens, segments, positions = _pad_right([*prompt, *response], layout)
    weights = np.zeros(layout.length, np.float32)
    weights[1 : len(prompt)] = prompt_weight
    weights[max(1, len(prompt)) : len(prompt) + len(response)] = 1.0
    return LMBatch(tokens, segments, positions, weights)


def ranking(record: Ranking, layout: Layout, max_responses: int = MAX_RESPONSES) -> RankingBatch:
    """A prompt with all of its responses, in one element (section 3.5).

        tokens[0]  name  a  colour  ¶  dark  red  $  ·        scores   2  1  0     valid  T  T  F
        tokens[1]  name  a  colour  ¶  a  fox  $  ·
        tokens[2]     ·  ·       ·  ·  ·    ·  ·  ·           max_responses = 3

    Args:
      record: the ranking.
      layout: the lengths; T = layout.length.
      max_responses: K, rows of the element; a ranking with fewer responses leaves the last ones empty.

    Returns:
      An element, tokens [K, T] and scores [K].

    Raises:
      DataError: prompt or a response is too long, or there are more than K responses.
    """
    check_answers(record, max_responses)
    prompt = layout.prompt(record.prompt, record.where)
    rows = [
        _pad_right([*prompt, *layout.response(response, record.where, f"responses[{i}]")], layout)
        for i, response in enumerate(record.responses)
    ]
    missing = max_responses - len(rows)
    rows += [_pad_right([], layout)] * missing
    tokens, segments, positions = (np.stack(column) for column in zip(*rows, strict=True))
    scores = np.array([*record.scores, *[0.0] * missing], np.float32)
    valid = np.arange(max_responses) < len(record.responses)
    return RankingBatch(tokens, segments, positions, scores, valid)


def check_answers(record: Ranking, max_responses: int) -> None:
    """Raises DataError for a ranking of more than `max_responses` answers."""
    if len(record.responses) > max_responses:
        raise DataError(
            f"{record.where}: responses: expected at most {max_responses} (comparisons.max_answers),"
            f" found {len(record.responses)}"
        )


def prompt(record: Prompt | Demonstration | Ranking, layout: Layout) -> PromptBatch:
    """A prompt to answer, padded on the left, so that the response begins at column P in every row.

        tokens    ·  ·  name  a  colour  ¶
        segments  0  0     1  1       1  1

    Args:
      record: anything with a prompt.
      layout: the lengths; P = layout.max_prompt.

    Returns:
      A row [P].

    Raises:
      DataError: the prompt is too long.
    """
    ids = layout.prompt(record.prompt, record.where)
    tokens = np.full(layout.max_prompt, layout.tokenizer.pad_id, np.int32)
    segments = np.zeros(layout.max_prompt, np.int32)
    start = layout.max_prompt - len(ids)
    tokens[start:] = ids
    segments[start:] = 1
    return PromptBatch(tokens, segments)


def _pad_right(ids: Sequence[int], layout: Layout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    length = layout.length
    tokens = np.full(length, layout.tokenizer.pad_id, np.int32)
    tokens[: len(ids)] = ids
    inside = np.arange(length) < len(ids)
    return tokens, inside.astype(np.int32), np.where(inside, np.arange(length), 0).astype(np.int32)
