"""Maps the fields that people's files have to those of our records, without code.

By the fields of a row, for each kind of record, the first that fits:

    Ranking         responses, scores             as they are; the prompt may be messages
                    responses, ranks              1 is the best rank
                    responses, choice             the index of the best one, from 0
                    chosen, rejected              two answers: texts with a prompt, messages, dialogues as in HH
    Demonstration   prompt, response              as they are
                    prompt, completion
                    instruction[, input|context], output|response      Alpaca, Dolly
                    messages                      the last one, by the assistant, is the response
    Prompt          prompt
                    chosen, rejected              the prompt of both
                    instruction[, input|context]
                    messages                      without the assistant's last one
    Text            text
                    messages                      the whole conversation

Names in `parse_names` may be paths into nested fields:

    question.full_text        a field of an object
    summaries.*.text          that field of each object of a list
    answer_0+answer_1         a list of two fields
    r/{info.subreddit}        a text with fields in it

A prompt may be a list of messages everywhere. Messages have "role" and "content" (or "from" and "value"). A single
message of the user is a prompt of its content; several are a `Conversation`, which keeps them for a chat template, and
is a transcript as text (`conversation.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from instructjax.conversation import ROLES, Message, as_prompt, parse, transcript
from instructjax.errors import ConfigError, RecordError
from instructjax.records import Demonstration, Prompt, Ranking, Record, Text, show

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")  # of Anthropic's HH dialogues
_PLACE = re.compile(r"\{([^{}]+)\}")  # of a field, in a text with fields
_INPUTS = ("input", "context")  # what an instruction is about
_OUTPUTS = ("output", "response", "completion")


def parse_names(text: str, where: str) -> dict[str, str]:
    """Reads "prompt=question.text, response=answer" as {"prompt": "question.text", "response": "answer"}.

    Raises:
      ConfigError: a part is not OURS=THEIRS.
    """
    names = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        ours, equals, theirs = (side.strip() for side in part.partition("="))
        if not (ours and equals and theirs):
            raise ConfigError(f"{where}: expected OURS=THEIRS, such as prompt=question, found {part!r:.100}")
        names[ours] = theirs
    return names


def rename(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Returns a row under our names. Fields that were read are not kept under theirs; missing ones are left out.

    Args:
      row: the fields of a file's row.
      names: paths into them, by our names; see `parse_names`.
    """
    if not names:
        return dict(row)
    found, used = {}, set()
    for ours, path in names.items():
        if path in row:  # also if its name has a dot
            found[ours] = row[path]
            used.add(path)
            continue
        parts = _PLACE.findall(path) or path.split("+")
        values = [_follow(row, part.split(".")) for part in parts]
        if any(value is None for value in values):
            continue
        used |= {part.split(".")[0] for part in parts}
        if _PLACE.search(path):
            between = _PLACE.sub("\0", path).split("\0")
            found[ours] = "".join(text for pair in zip(between, [*map(str, values), ""], strict=True) for text in pair)
        else:
            found[ours] = values if len(values) > 1 else values[0]
    return {name: value for name, value in row.items() if name not in used} | found


def _follow(value: Any, path: Sequence[str]) -> Any:
    """Returns what is at a path into nested objects and lists; None if it is not there."""
    for i, name in enumerate(path):
        if name == "*":
            found = [_follow(item, path[i + 1 :]) for item in value] if isinstance(value, list) else [None]
            return None if any(item is None for item in found) else found
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def to_fields(row: Mapping[str, Any], kind: type[Record], where: str) -> dict[str, Any]:
    """Returns the fields of a record of the given kind; fields that no shape uses are kept as they are.

    Args:
      row: the fields of a file's row, under our names; see `rename`.
      kind: the kind of record.
      where: the place, for errors.

    Raises:
      RecordError: the row has the fields of a shape, but not of the form that it needs.
    """
    fields = dict(row)
    if isinstance(fields.get("user"), int):
        fields["user"] = str(fields["user"])
    if kind is Ranking:
        return _ranking(fields, where)
    if kind is Demonstration:
        return _demonstration(fields, where)
    if kind is Prompt:
        return _prompt(fields, where)
    if kind is Text and "text" not in fields and "messages" in fields:
        return _without(fields, "messages", text=transcript(parse(fields["messages"], f"{where}: messages")))
    return fields


def _ranking(fields: dict[str, Any], where: str) -> dict[str, Any]:
    if "ranks" in fields and "scores" not in fields:
        ranks = fields["ranks"]
        if not isinstance(ranks, list) or not all(isinstance(rank, int | float) for rank in ranks):
            raise RecordError(f"{where}: ranks: expected a list of numbers, 1 for the best, found {show(ranks)}")
        fields = _without(fields, "ranks", scores=[-rank for rank in ranks])
    if "choice" in fields and "scores" not in fields and isinstance(fields.get("responses"), list):
        choice, count = fields["choice"], len(fields["responses"])
        if choice not in range(count):
            raise RecordError(f"{where}: choice: expected a whole number below {count}, found {show(choice)}")
        fields = _without(fields, "choice", scores=[int(i == choice) for i in range(count)])
    if "responses" in fields or not {"chosen", "rejected"} <= fields.keys():
        return _with_prompt(fields, where)
    (before, chosen), (other, rejected) = (_answer(fields, name, where) for name in ("chosen", "rejected"))
    if before != other:
        raise RecordError(
            f"{where}: rejected: expected the prompt of chosen, up to the assistant's last turn, found another"
        )
    return _without(fields, "chosen", "rejected", prompt=before, responses=[chosen, rejected], scores=[1, 0])


def _answer(fields: Mapping[str, Any], name: str, where: str) -> tuple[str, str]:
    """Returns the prompt and the answer of `chosen` or `rejected`."""
    value, prompt = fields[name], fields.get("prompt")
    place = f"{where}: {name}"
    before = parse(prompt, f"{where}: prompt") if isinstance(prompt, list) else []
    if isinstance(value, str) and isinstance(prompt, str):
        return prompt, value
    if isinstance(value, str) and before:
        return as_prompt(before), value
    messages = _dialogue(value, place) if isinstance(value, str) else parse(value, place)
    *earlier, (role, answer) = messages
    if role != "assistant":
        raise RecordError(f"{place}: expected a last message by the assistant, found one of role {role}")
    if not earlier and isinstance(prompt, str):
        return prompt, answer
    if not (earlier or before):
        raise RecordError(f"{place}: expected a message before the assistant's, or a prompt, found neither")
    return as_prompt(earlier if earlier[: len(before)] == before else [*before, *earlier]), answer


def _demonstration(fields: dict[str, Any], where: str) -> dict[str, Any]:
    if "prompt" not in fields and "instruction" in fields:
        fields = _instruction(fields)
    if "prompt" not in fields and "messages" in fields:
        *earlier, (role, answer) = parse(fields["messages"], f"{where}: messages")
        if role != "assistant" or not earlier:
            raise RecordError(f"{where}: messages: expected a last one by the assistant, after others, found {role}")
        return _without(fields, "messages", prompt=as_prompt(earlier), response=answer)
    fields = _with_prompt(fields, where)
    output = next((name for name in _OUTPUTS if name in fields), None)
    if "response" not in fields and output:
        fields = _without(fields, output, response=fields[output])
    if isinstance(fields.get("response"), list):  # a completion of messages
        found = parse(fields["response"], f"{where}: response")
        fields["response"] = found[0].content if len(found) == 1 else transcript(found)
    return fields


def _prompt(fields: dict[str, Any], where: str) -> dict[str, Any]:
    if "prompt" not in fields and "instruction" in fields:
        return _instruction(fields)
    if "prompt" not in fields and "messages" in fields:
        found = parse(fields["messages"], f"{where}: messages")
        found = found[:-1] if found[-1].role == "assistant" and len(found) > 1 else found
        return _without(fields, "messages", prompt=as_prompt(found))
    if "prompt" not in fields and {"chosen", "rejected"} <= fields.keys():
        return {"prompt": _ranking(fields, where)["prompt"]}
    return _with_prompt(fields, where)


def _instruction(fields: dict[str, Any]) -> dict[str, Any]:
    """Joins an instruction and what it is about, if anything, by an empty line."""
    about = next((name for name in _INPUTS if name in fields), None)
    given = [fields["instruction"], *([fields[about]] if about and fields[about] else [])]
    if not all(isinstance(part, str) for part in given):
        return _without(fields, "instruction", prompt=fields["instruction"])
    return _without(fields, "instruction", *([about] if about else []), prompt="\n\n".join(given))


def _with_prompt(fields: dict[str, Any], where: str) -> dict[str, Any]:
    if "prompt" not in fields and "messages" in fields:  # before the responses of a ranking
        return _without(fields, "messages", prompt=as_prompt(parse(fields["messages"], f"{where}: messages")))
    if isinstance(fields.get("prompt"), list):
        return {**fields, "prompt": as_prompt(parse(fields["prompt"], f"{where}: prompt"))}
    return fields


def _dialogue(text: str, place: str) -> list[Message]:
    """Returns the messages of a dialogue as Anthropic's HH has them."""
    parts = _TURN.split(text)
    if len(parts) < 3 or parts[0].strip():
        raise RecordError(f'{place}: expected a prompt, or a text that begins with "Human:", found {show(text)}')
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return [Message(ROLES[role.lower()], content.strip()) for role, content in turns]


def _without(fields: Mapping[str, Any], *names: str, **others: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names} | others
