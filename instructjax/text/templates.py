"""Turns conversations into tokens, up to where a response begins.

Two templates do it: the separator of a recipe, and the chat template that came with a model. Drawn with one token per
word, for the prompt "name a color":

    SeparatorTemplate    name a color ¶                                      ¶ is the separator
    ChatTemplate         <|im_start|> user ¶ name a color <|im_end|> ¶ <|im_start|> assistant ¶

A response is encoded apart from its prompt, and is followed by the template's EOS. So are earlier answers in a prompt:
the tokens of a conversation are those that were sampled in it, and may be learned.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from instructjax import conversation
from instructjax.conversation import Message, as_prompt, messages_of
from instructjax.errors import ConfigError, DataError
from instructjax.text.huggingface import HuggingFaceTokenizer
from instructjax.text.tokenizer import Tokenizer

SEPARATOR, CHAT = KINDS = ("separator", "chat")
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # noncharacters, which no text needs
_PROBE = "answer"  # the content of a message that a template is tried with


class PromptTokens(NamedTuple):
    """A prompt as tokens.

    Attributes:
      tokens: up to where the response begins.
      answered: for each token, whether it belongs to an earlier answer, its EOS included.
    """

    tokens: list[int]
    answered: list[bool]


class Template(Protocol):
    """Turns conversations into tokens.

    Attributes:
      eos_id: ends a response.
      source: a chat template in jinja that writes the same text, for the engines of others.
    """

    eos_id: int
    source: str

    def encode(self, prompt: str) -> PromptTokens:
        """Encodes a prompt, a text or a `Conversation`.

        Raises:
          DataError: the template has no place for it, such as for two messages by the user in a row.
        """


class SeparatorTemplate:
    """A prompt is its text, or the transcript of its messages, then a separator."""

    def __init__(self, tokenizer: Tokenizer, separator: str):
        """Takes the tokenizer and the text between prompt and response."""
        self._tokenizer, self._separator = tokenizer, separator
        self.eos_id = tokenizer.eos_id
        bos = "{{ bos_token }}" if tokenizer.bos else ""
        self.source = f"{bos}{conversation.TEMPLATE}{{{{ {json.dumps(separator, ensure_ascii=False)} }}}}"

    def encode(self, prompt: str) -> PromptTokens:
        """Encodes BOS, if the tokenizer has one, the prompt and the separator. No earlier answers are told apart."""
        tokens = self._tokenizer.encode_opening(prompt + self._separator)
        return PromptTokens(tokens, [False] * len(tokens))


class ChatTemplate:
    """Encodes messages through the jinja template of a model, in a sandbox.

    The template is given the messages, `add_generation_prompt` and the texts of BOS, EOS and PAD; it has no date and no
    tools. The special tokens that it writes are encoded to their ids. The same texts in a message stay text: they are
    marked before the template is rendered.

    Attributes:
      eos_id: the first special token that the template writes after an answer, or else the tokenizer's EOS.
      source: the template.
    """

    def __init__(self, tokenizer: Tokenizer):
        """Takes a tokenizer with a chat template.

        Raises:
          ConfigError: it has none, or the template fails, or writes a conversation anew with each message.
        """
        if not isinstance(tokenizer, HuggingFaceTokenizer) or not tokenizer.chat_template:
            raise ConfigError(
                "data.template: expected a tokenizer with a chat template, found one without; "
                f"set data.template={SEPARATOR}"
            )
        self._tokenizer, self.source = tokenizer, tokenizer.chat_template
        try:
            self._write = _compiled(tokenizer.chat_template)
        except ConfigError:
            raise
        except Exception as error:  # jinja's errors, and any that a template causes
            found = " ".join(str(error).split())[:200]
            raise ConfigError(f"data.template: expected a jinja template, found {found}") from None
        texts = sorted(tokenizer.special, key=len, reverse=True)
        alternatives = "|".join(map(re.escape, texts))
        self._special = re.compile(f"({alternatives})")
        self._starts = re.compile(f"(?={alternatives})(.)", re.DOTALL)
        self.eos_id = tokenizer.eos_id
        self.eos_id = self._end()

    def encode(self, prompt: str) -> PromptTokens:
        """Encodes a prompt, with each earlier answer apart; see `Template.encode`."""
        messages = messages_of(prompt)
        mark = next((mark for mark in _MARKS if all(mark not in message.content for message in messages)), None)
        if mark is None:
            raise DataError(f"expected a prompt without the noncharacters U+FDD0 to U+FDEF, found {prompt!a:.60}")
        marked = [Message(role, self._starts.sub(rf"\1{mark}", content)) for role, content in messages]
        text = self._render(marked)
        places = [0]
        for number, (role, _) in enumerate(marked):
            if role == "assistant":
                before = self._render(marked[:number])
                if not text.startswith(before) or len(before) < places[-1]:
                    raise DataError(
                        "expected messages before which the chat template writes the same whatever follows, found "
                        f"another beginning of message {number}"
                    )
                places.append(len(before))
        tokens: list[int] = []
        answered: list[bool] = []
        for number, (start, end) in enumerate(zip(places, [*places[1:], len(text)], strict=True)):
            self._append(text[start:end], mark, number > 0, tokens, answered)
        return PromptTokens(tokens, answered)

    def check_earlier_answers(self) -> None:
        """Checks that an answer ends with `eos_id` also if messages follow it, so that it can be told from them.

        Raises:
          ConfigError: it does not, or the template cannot write such a conversation.
        """
        asked, answer = Message("user", _PROBE), Message("assistant", _PROBE)
        try:
            tokens, answered = self.encode(as_prompt([asked, answer, asked]))
        except DataError as error:
            raise ConfigError(f"data.every_answer: {error}") from None
        last = [token for token, is_answer in zip(tokens, answered, strict=True) if is_answer][-1]
        if last != self.eos_id:
            raise ConfigError(
                "data.every_answer: expected a chat template that writes a special token after every answer, "
                "found one that does not; set data.every_answer=False"
            )

    def _append(self, text: str, mark: str, in_answer: bool, tokens: list[int], answered: list[bool]) -> None:
        """Appends the tokens of a text that an answer follows, and that begins with one if `in_answer`."""
        parts, stripped = self._special.split(text), False
        for place, part in enumerate(parts):
            if place % 2:
                token = self._tokenizer.special[part]
                ids, stripped = [token["id"]], token["rstrip"]
            else:
                plain = part.lstrip() if stripped else part
                if place + 1 < len(parts) and self._tokenizer.special[parts[place + 1]]["lstrip"]:
                    plain = plain.rstrip()
                is_last = place + 1 == len(parts)
                ids = self._tokenizer.encode_part(plain.replace(mark, ""), is_first=not tokens, is_followed=is_last)
            tokens += ids
            answered += [in_answer] * len(ids)
            in_answer = in_answer and not (place % 2 and ids[0] in (self.eos_id, *self._tokenizer.eos_ids))

    def _render(self, messages: Sequence[Message], is_open: bool = True) -> str:
        """Returns what the template writes, up to where the assistant's next message begins if `is_open`."""
        given = [message._asdict() for message in messages]
        try:
            return self._write(
                messages=given, add_generation_prompt=is_open, tools=None, documents=None, **self._tokenizer.names
            )
        except Exception as error:  # jinja's errors, and any that a template raises
            found = " ".join(str(error).split())[:200]
            roles = ", ".join(message.role for message in messages)
            raise DataError(
                f"expected messages that the chat template can write, found those of {roles:.60} ({found})"
            ) from None

    def _end(self) -> int:
        """Returns the token that ends an answer.

        Raises:
          ConfigError: the template cannot write an answer.
        """
        asked, answer = Message("user", _PROBE), Message("assistant", _PROBE)
        try:
            self.encode(_PROBE)
            before, whole = self._render([asked]), self._render([asked, answer], is_open=False)
        except DataError as error:
            raise ConfigError(f"data.template: {error}") from None
        place = whole.find(_PROBE, len(before))
        opened = self._special.search(whole, len(before), max(place, 0))
        if not whole.startswith(before) or place < 0 or opened:
            raise ConfigError(
                "data.template: expected a chat template that opens an answer as it begins one, "
                f"found {before[-30:]!a} and {whole[-60:]!a}"
            )
        found = self._special.search(whole, place)
        return self._tokenizer.special[found[1]]["id"] if found else self._tokenizer.eos_id


@functools.cache
def _compiled(source: str) -> Callable[..., str]:
    """Compiles a chat template as transformers does, in a sandbox that cannot change what it is given."""
    try:
        from jinja2.exceptions import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise ConfigError(
            "data.template: expected the package jinja2 to write chats, found none; "
            "pip install 'instructjax[huggingface]'"
        ) from None

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = _to_json
    return environment.from_string(source).render


def _to_json(value: Any, indent: int | None = None) -> str:
    """Writes JSON as the filter of transformers does, without jinja's escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
