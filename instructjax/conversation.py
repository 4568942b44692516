"""Conversations as prompts: messages, and the transcript that they become where a text is needed.

A single message of the user is its content. A longer conversation is, as text,

    Human: CONTENT

    Assistant: CONTENT

    Human: CONTENT

    Assistant:

A chat template writes the messages themselves; see `text/templates.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from instructjax.errors import RecordError, show

ROLES = {  # by the names that people's files have
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "system": "system",
}
_NAMES = {"user": "Human", "assistant": "Assistant", "system": "System"}
TEMPLATE = (  # the text of a prompt, in jinja, for the engines of others
    "{% if messages|length == 1 and messages[0].role == 'user' %}{{ messages[0].content }}{% else %}"
    f"{{% for message in messages %}}{{{{ {_NAMES}[message.role] }}}}: {{{{ message.content }}}}"
    '{{ "\\n\\n" }}{% endfor %}Assistant:{% endif %}'
)


class Message(NamedTuple):
    """A message of a conversation.

    Attributes:
      role: "user", "assistant" or "system".
      content: its text.
    """

    role: str
    content: str


class Conversation(str):
    """A prompt of several messages. It is equal to its transcript, so everything that reads prompts as text reads it.

    Attributes:
      messages: what was said before the response.
    """

    messages: tuple[Message, ...]

    def __new__(cls, messages: Sequence[Message]) -> Conversation:
        """Makes the transcript of the messages."""
        found = super().__new__(cls, transcript(messages, answered=False))
        found.messages = tuple(messages)
        return found

    def __getnewargs__(self) -> tuple[tuple[Message, ...]]:  # type: ignore[override]  # for pickle and copy
        return (self.messages,)


def as_prompt(messages: Sequence[Message]) -> str:
    """Returns the messages before a response as a prompt: a text if it is one message by the user."""
    is_single = len(messages) == 1 and messages[0].role == "user"
    return messages[0].content if is_single else Conversation(messages)


def messages_of(prompt: str) -> tuple[Message, ...]:
    """Returns the messages of a prompt; a text is one message by the user."""
    return prompt.messages if isinstance(prompt, Conversation) else (Message("user", prompt),)


def transcript(messages: Sequence[Message], *, answered: bool = True) -> str:
    """Returns a conversation as text; see above.

    Args:
      messages: of the conversation.
      answered: False if the assistant's next message is to follow.
    """
    turns = [f"{_NAMES[role]}: {content}" for role, content in messages]
    return "\n\n".join([*turns, *([] if answered else ["Assistant:"])])


def parse(value: Any, place: str) -> list[Message]:
    """Reads a list of messages, with "role" and "content" or "from" and "value".

    Raises:
      RecordError: it has another form; `place` is what the error names.
    """
    if not isinstance(value, list) or not value:
        raise RecordError(f"{place}: expected a list of messages, found {show(value)}")
    found = []
    for i, message in enumerate(value):
        given = message if isinstance(message, dict) else {}
        role, content = given.get("role", given.get("from")), given.get("content", given.get("value"))
        if not isinstance(role, str) or role.lower() not in ROLES or not isinstance(content, str):
            raise RecordError(
                f'{place}[{i}]: expected {{"role": user, assistant or system, "content": text}}, found {show(message)}'
            )
        found.append(Message(ROLES[role.lower()], content))
    return found


def to_json(prompt: str) -> str | list[dict[str, str]]:
    """Returns a prompt as a record's JSON has it: a text, or a list of messages."""
    return [message._asdict() for message in prompt.messages] if isinstance(prompt, Conversation) else prompt
