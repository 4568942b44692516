"""Lays out records as the tokens of one row. Every layout of the package is here, each a pure function.

The drawings show the prompt "name a color" with the response "dark red", with one token per word. ¶ is the separator
"\\n", $ is EOS, and · is padding.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from instructjax.batch import LMBatch, PromptBatch, RankingBatch
from instructjax.errors import ConfigError, DataError
from instructjax.records import Demonstration, Prompt, Ranking, Text
from instructjax.text.templates import CHAT, SEPARATOR, ChatTemplate, PromptTokens, SeparatorTemplate, Template
from instructjax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Layout:
    """Turns prompts and responses into tokens, in the same way for SFT, RM, PPO and evaluation.

        prompt tokens    template.encode(prompt)     name a color ¶    at most max_prompt
        response tokens  encode(response) + [EOS]    dark red $        at most max_response

    Prompt and response are tokenized apart; see `text/templates.py`.

    Attributes:
      tokenizer: encodes the text.
      separator: text between prompt and response. It should end with a line break, so that prompt and response have the
        same tokens separately as in one document; see `sentencepiece.py` and `huggingface.py`. A chat template does not
        use it.
      max_prompt: the maximum number of tokens of a prompt, including the separator. The paper filters out prompts over
        1k tokens (appendix C).
      max_response: the maximum number of tokens of a response, including EOS. The paper caps responses at 1k tokens
        (appendix C).
      cut_prompts: whether a longer prompt loses its first tokens, instead of being an error.
      kind: "separator" or "chat", the template that came with the tokenizer.
      every_answer: whether demonstrations teach earlier answers in their prompts too.
    """

    tokenizer: Tokenizer
    separator: str
    max_prompt: int
    max_response: int
    cut_prompts: bool = False
    kind: str = SEPARATOR
    every_answer: bool = False

    def __post_init__(self) -> None:
        for name in ("max_prompt", "max_response"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.{name}: expected at least 1 token, found {getattr(self, name)}")

    @functools.cached_property
    def template(self) -> Template:
        """Turns a prompt into tokens.

        Raises:
          ConfigError: it is to be a chat template, and the tokenizer has none that can be used.
        """
        if self.kind != CHAT:
            return SeparatorTemplate(self.tokenizer, self.separator)
        template = ChatTemplate(self.tokenizer)
        if self.every_answer:
            template.check_earlier_answers()
        return template

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end a sampled response, first the one that ends those that are learned from."""
        return tuple(dict.fromkeys((self.template.eos_id, *self.tokenizer.eos_ids)))

    @property
    def length(self) -> int:
        """The number of tokens of a row with a prompt and a response."""
        return self.max_prompt + self.max_response

    def encode_prompt(self, text: str, where: str = "prompt") -> list[int]:
        """Encodes a prompt up to where its response begins; see `tokenize_prompt`."""
        return self.tokenize_prompt(text, where).tokens

    def tokenize_prompt(self, text: str, where: str = "prompt") -> PromptTokens:
        """Encodes a prompt up to where its response begins, and tells which tokens are of earlier answers.

        Args:
          text: the prompt, a text or a `Conversation`.
          where: the place to name in an error, such as "data.jsonl:17".

        Raises:
          DataError: there are more than `max_prompt` tokens, unless `cut_prompts`; or it has a character without a
            token, or messages that the template cannot write.
        """
        self._check_text(text, where, "prompt")
        try:
            tokens, answered = self.template.encode(text)
        except DataError as error:
            raise DataError(f"{where}: prompt: {error}") from None
        if len(tokens) > self.max_prompt and self.cut_prompts:
            return PromptTokens(tokens[-self.max_prompt :], answered[-self.max_prompt :])
        if len(tokens) > self.max_prompt:
            raise DataError(
                f"{where}: prompt: expected at most {self.max_prompt} tokens (data.max_prompt), found {len(tokens)}"
            )
        return PromptTokens(tokens, answered)

    def encode_response(self, text: str, where: str = "record", field: str = "response") -> list[int]:
        """Encodes a response and EOS.

        Args:
          text: the response.
          where: the place to name in an error, such as "data.jsonl:17".
          field: the field to name in an error.

        Raises:
          DataError: there are more than `max_response` tokens, or a character without a token.
        """
        self._check_text(text, where, field)
        tokens = [*self.tokenizer.encode(text), self.template.eos_id]
        if len(tokens) > self.max_response:
            raise DataError(
                f"{where}: {field}: expected at most {self.max_response} tokens (data.max_response),"
                f" found {len(tokens)}"
            )
        return tokens

    def truncate(self, text: str) -> str:
        """Truncates a sampled response until it fits.

        A response of `max_response` sampled tokens can have no EOS. The tokenizer can also need more tokens for the
        same text than the policy sampled.
        """
        while len(self.tokenizer.encode(text)) >= self.max_response:
            text = text[:-1]
        return text

    def count_prompt(self, text: str) -> int:
        """Returns the number of tokens of a prompt up to its response, which `max_prompt` limits.

        Raises:
          DataError: the template cannot write its messages.
        """
        return len(self.template.encode(text).tokens)

    def count_response(self, text: str) -> int:
        """Returns the number of tokens of a response and EOS, which `max_response` limits."""
        return len(self.tokenizer.encode(text)) + 1

    def decode(self, response: Sequence[int]) -> str:
        """Decodes a response, without EOS."""
        return self.tokenizer.decode([token for token in response if token not in self.eos_ids])

    def _check_text(self, text: str, where: str, field: str) -> None:
        if char := self.tokenizer.lost(text):
            raise DataError(lost_fault(where, field, char))


def lost_fault(where: str, field: str, char: str) -> str:
    """Returns the text of an error: the tokenizer would leave out a character."""
    return f"{where}: {field}: expected characters that the tokenizer has tokens for, found {char!a}"


def document_tokens(record: Text, tokenizer: Tokenizer) -> np.ndarray:
    """Encodes a document as [n] int32: BOS, if the tokenizer has one, its text, EOS. Both are part of the document.

    the fox runs  ->  the fox runs $
    """
    return np.array([*tokenizer.bos, *tokenizer.encode(record.text), tokenizer.eos_id], np.int32)


def window_row(tokens: np.ndarray, inside: np.ndarray, eos_id: int) -> LMBatch:
    """Lays out a window of packed documents.

    Documents are packed as in GPT-3 (Brown et al. 2020, appendix B), except that each is its own segment.

        tokens     b  c  $  d  e  f  $  g
        segments   1  1  1  2  2  2  2  3
        positions  0  1  2  0  1  2  3  0
        weights    0  1  1  0  1  1  1  0

    In this example, the document "a b c" began in the previous window, and its rest is its own segment. The first
    token of a segment is not predicted, because it has no context. EOS belongs to the document that it ends.

    Args:
      tokens: [T] int32, documents that each end with EOS. EOS occurs nowhere else, because no text is encoded to it.
      inside: [T] bool, False on the padding at the end.
      eos_id: the token that ends a document.

    Returns:
      A row [T].
    """
    place = np.arange(len(tokens), dtype=np.int32)
    first = np.concatenate([[True], tokens[:-1] == eos_id])
    segments = np.where(inside, np.cumsum(first), 0).astype(np.int32)
    positions = np.where(inside, place - np.maximum.accumulate(np.where(first, place, 0)), 0).astype(np.int32)
    return LMBatch(tokens, segments, positions, (positions > 0).astype(np.float32))


def demonstration_row(records: Sequence[Demonstration], layout: Layout, prompt_weight: float = 0.0) -> LMBatch:
    """Lays out prompts with their responses. Each pair is a segment, and the row is padded on the right.

        tokens     name  a   color  ¶  dark  red  $  hi  ¶  hello  $  ·
        segments      1  1       1  1     1    1  1   2  2      2  2  0
        positions     0  1       2  3     4    5  6   0  1      2  3  0
        weights       0  w       w  w     1    1  1   0  w      1  1  0

    If the layout has `every_answer`, earlier answers in a prompt have weight 1 as well.

    Args:
      records: the demonstrations of the row, possibly none. Their lengths add up to at most T.
      layout: the lengths; T = layout.length.
      prompt_weight: w, the weight of predicting a token of the prompt. With 0, only responses are learned; with 1, the
        loss is that of pretraining. The paper does not say whether its loss covers the prompt.

    Returns:
      A row [T].

    Raises:
      DataError: a prompt or a response is too long.
    """
    tokens = np.full(layout.length, layout.tokenizer.pad_id, np.int32)
    segments, positions = np.zeros((2, layout.length), np.int32)
    weights = np.zeros(layout.length, np.float32)
    start = 0
    for number, record in enumerate(records):
        prompt, earlier = layout.tokenize_prompt(record.prompt, record.where)
        response = layout.encode_response(record.response, record.where)
        answered, end = start + len(prompt), start + len(prompt) + len(response)
        tokens[start:end] = [*prompt, *response]
        segments[start:end] = number + 1
        positions[start:end] = np.arange(end - start)
        weights[start + 1 : answered] = prompt_weight
        if layout.every_answer:
            weights[start:answered][np.array(earlier, bool)] = 1.0
        weights[answered:end] = 1.0
        weights[start] = 0.0  # it has no context, also if it is of an answer whose beginning was cut
        start = end
    return LMBatch(tokens, segments, positions, weights)


@dataclasses.dataclass(frozen=True)
class TokenizedRanking:
    """A prompt with all of its responses, as tokens.

    Attributes:
      prompt: the tokens of the prompt, including the separator.
      responses: the tokens of each response, including its EOS if it has one.
      scores: one per response; empty if a reward model is to compute them.
    """

    prompt: Sequence[int]
    responses: Sequence[Sequence[int]]
    scores: Sequence[float] = ()

    def __len__(self) -> int:
        """Returns the number of tokens. Those of the prompt are counted once."""
        return len(self.prompt) + sum(map(len, self.responses))


def tokenize_ranking(record: Ranking, layout: Layout) -> TokenizedRanking:
    """Tokenizes a ranking. Its scores become ranks from 1, so that scores that float32 cannot tell apart differ.

    Raises:
      DataError: the prompt or a response is too long.
    """
    responses = [
        layout.encode_response(text, record.where, f"responses[{i}]") for i, text in enumerate(record.responses)
    ]
    ranks = np.unique(record.scores, return_inverse=True)[1] + 1
    return TokenizedRanking(layout.encode_prompt(record.prompt, record.where), responses, ranks.tolist())


def ranking_row(
    rankings: Sequence[TokenizedRanking], *, length: int, max_prompts: int, max_responses: int, pad_id: int
) -> RankingBatch:
    """Lays out prompts, each followed by all of its responses (section 3.5).

        tokens     name  a   color  ¶  dark  red  $  a  fox  $  ·       ends    [[6  9  0]]
        segments      1  1       1  1     1    1  1  1    1  1  0       scores  [[2  1  0]]
        branches      0  0       0  0     1    1  1  2    2  2  0       valid   [[T  T  F]]
        positions     0  1       2  3     4    5  6  4    5  6  0       max_prompts = 1, max_responses = 3

    Args:
      rankings: the rankings of the row, possibly none. Their lengths add up to at most T.
      length: T, tokens of the row.
      max_prompts: S, the maximum number of rankings in a row.
      max_responses: K, the maximum number of responses in a ranking.
      pad_id: the padding token.

    Returns:
      A row, with tokens [T] and scores [S, K].
    """
    tokens = np.full(length, pad_id, np.int32)
    segments, branches, positions = np.zeros((3, length), np.int32)
    ends = np.zeros((max_prompts, max_responses), np.int32)
    scores = np.zeros((max_prompts, max_responses), np.float32)
    valid = np.zeros((max_prompts, max_responses), bool)
    start = 0
    for number, ranking in enumerate(rankings):
        for branch, part in enumerate((ranking.prompt, *ranking.responses)):
            inside = slice(start, start + len(part))
            tokens[inside], segments[inside], branches[inside] = part, number + 1, branch
            positions[inside] = np.arange(len(part)) + (len(ranking.prompt) if branch else 0)
            start += len(part)
            if branch:
                ends[number, branch - 1] = start - 1
        scores[number, : len(ranking.scores)] = ranking.scores
        valid[number, : len(ranking.responses)] = True
    return RankingBatch(tokens, segments, branches, positions, ends, scores, valid)


def prompt_row(record: Prompt | Demonstration | Ranking, layout: Layout) -> PromptBatch:
    """Lays out a prompt to answer, padded on the left. The response then begins at column P in every row.

        tokens    ·  ·  name  a   color  ¶
        segments  0  0     1  1       1  1

    Args:
      record: a record with a prompt.
      layout: the lengths; P = layout.max_prompt.

    Returns:
      A row [P].

    Raises:
      DataError: the prompt is too long.
    """
    ids = layout.encode_prompt(record.prompt, record.where)
    tokens = np.full(layout.max_prompt, layout.tokenizer.pad_id, np.int32)
    segments = np.zeros(layout.max_prompt, np.int32)
    start = layout.max_prompt - len(ids)
    tokens[start:] = ids
    segments[start:] = 1
    return PromptBatch(tokens, segments)
