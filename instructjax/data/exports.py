"""Takes apart rows that hold several records, and joins rows that hold a part of one.

    OpenAssistant    {"message_tree_id", "prompt": {"text", "role", "replies": [...]}}     a tree of messages
    Argilla          {"fields", "responses": {QUESTION: [{"value", "user_id", "status"}]}}    Dataset.records.to_json
                     {FIELD, "QUESTION.responses", "QUESTION.responses.users", "... .status"}    Parquet of the Hub
    Label Studio     {"data", "annotations": [{"completed_by", "result": [...]}]}    export as JSON; Ranker, Pairwise
    few-shot         {"instruction", "examples": [{"query", "response"}, ...]}    K examples, as in appendix A.1
    one answer       {"prompt", "response", "score"}    rows of one prompt that follow each other

What comes out has the fields that `shapes.py` maps to those of a record. A task that nobody has ranked yet gives a
ranking without answers, so that it is counted.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from instructjax.errors import RecordError
from instructjax.records import Demonstration, Prompt, Ranking, Record, Text, show

FEW_SHOT = "few_shot"  # the field of an example of a few-shot prompt: its number
_UNRANKED: dict[str, Any] = {"responses": [], "scores": []}
_ITEM_TEXTS = ("body", "text", "html", "title")  # of an item of Label Studio's List, the first that it has
_RESPONSES = ".responses"
_ANSWERS = {"output", "response", "completion", "prompt"}  # fields of rows that are no few-shot prompts

Fields = dict[str, Any]


def expand(row: Fields, kind: type[Record], where: str) -> Iterator[Fields]:
    """Yields the rows that a row of an export holds; any other row as it is.

    Args:
      row: the fields of a file's row.
      kind: the kind of records to make.
      where: the place, for errors.

    Raises:
      RecordError: the row is of an export, but not as documented.
    """
    root = row.get("prompt")
    if isinstance(root, dict) and "replies" in root and "message_tree_id" in row:
        yield from _tree(root, kind, {"user": str(row["message_tree_id"])}, where)
    elif isinstance(row.get("fields"), dict) and isinstance(row.get("responses"), dict):
        yield from _argilla(row["fields"], row["responses"], kind, where)
    elif kind in (Demonstration, Prompt) and isinstance(row.get("examples"), list) and not _ANSWERS & row.keys():
        yield from _few_shot(row, where)
    elif any(name.endswith(f"{_RESPONSES}.users") for name in row):
        yield from _argilla(*_unflatten(row), kind, where)
    elif isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list):
        yield from _label_studio(row["data"], row["annotations"], kind, where)
    else:
        yield row


def join(rows: Iterable[tuple[str, Fields | RecordError]]) -> Iterator[tuple[str, Fields | RecordError]]:
    """Joins rows with one scored answer each that follow each other and have the same prompt, into one ranking."""
    for prompt, group in itertools.groupby(rows, lambda row: _answered_prompt(row[1])):
        if prompt is None:
            yield from group
            continue
        found = [(where, row) for where, row in group if isinstance(row, dict)]
        where, first = found[0]
        kept = {name: value for name, value in first.items() if name not in ("response", "score")}
        answers = {f"{name}s": [row[name] for _, row in found] for name in ("response", "score")}
        yield where, kept | answers


def _answered_prompt(row: Fields | RecordError) -> Any:
    """Returns the prompt of a row with one scored answer; None for other rows."""
    is_answer = isinstance(row, dict) and {"response", "score"} <= row.keys() and "responses" not in row
    return row.get("prompt") if is_answer and isinstance(row, dict) else None


def _few_shot(row: Fields, where: str) -> Iterator[Fields]:
    """Yields K examples of a few-shot prompt: each query in turn, after the instruction and the other K - 1 pairs.

    All have the same user, so that they are in one split.
    """
    instruction, pairs = row.get("instruction"), row["examples"]
    for pair in pairs:
        if not isinstance(pair, dict) or not all(isinstance(pair.get(name), str) for name in ("query", "response")):
            raise RecordError(f'{where}: examples: expected {{"query": text, "response": text}}, found {show(pair)}')
    if not isinstance(instruction, str):
        raise RecordError(f"{where}: instruction: expected text, found {show(instruction)}")
    common = {name: value for name, value in row.items() if name not in ("instruction", "examples")}
    labeler = row.get("labeler") or hashlib.sha256(instruction.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    common |= {"user": row.get("user") or labeler, "labeler": labeler}
    for k, pair in enumerate(pairs):
        shown = [f"{other['query']}\n{other['response']}" for other in (*pairs[:k], *pairs[k + 1 :])]
        prompt = "\n\n".join([instruction, *shown, pair["query"]])
        yield {**common, "prompt": prompt, "response": pair["response"], FEW_SHOT: k}


def _tree(root: Mapping[str, Any], kind: type[Record], common: Fields, where: str) -> Iterator[Fields]:
    """Yields the prompts of a tree of messages, with their replies, the best of them or none; as text the best path.

    All turns of a tree share a user, so that they are in one split.
    """
    waiting: list[tuple[Mapping[str, Any], list[Fields]]] = [(root, [])]
    best: list[Fields] = []
    while waiting:
        node, before = waiting.pop()
        path = [*before, {"role": node.get("role"), "content": node.get("text")}]
        given = _list(node, "replies", where)
        replies = [reply for reply in given if isinstance(reply, dict) and not reply.get("deleted")]
        replies.sort(key=lambda reply: reply["rank"] if isinstance(reply.get("rank"), int) else len(replies))
        if before == best:
            best = path
        waiting += [(reply, path) for reply in reversed(replies)]
        if path[-1]["role"] != "prompter":
            continue
        found = {"prompt": path, **common, **({"lang": node["lang"]} if "lang" in node else {})}
        ranks = [reply.get("rank") for reply in replies]
        if kind is Prompt:
            yield found
        elif kind is Demonstration and replies:
            yield found | {"response": replies[0].get("text")}
        elif kind is Ranking and len(replies) > 1 and None not in ranks:
            yield found | {"responses": [reply.get("text") for reply in replies], "ranks": ranks}
    if kind is Text:
        yield {"messages": best, **common}


def _list(fields: Mapping[str, Any], name: str, where: str) -> list[Any]:
    """Returns the list in a field; an empty one if there is none."""
    found = fields.get(name) or []
    if not isinstance(found, list):
        raise RecordError(f"{where}: {name}: expected a list, found {show(found)}")
    return found


def _unflatten(row: Mapping[str, Any]) -> tuple[Fields, Fields]:
    """Returns fields and responses by question of a flat row of Argilla."""
    responses = {}
    for name in [name.removesuffix(".users") for name in row if name.endswith(f"{_RESPONSES}.users")]:
        columns = [row.get(name), row.get(f"{name}.users"), row.get(f"{name}.status")]
        values, users, status = (column if isinstance(column, list) else [] for column in columns)
        responses[name.removesuffix(_RESPONSES)] = [
            {"value": value, "user_id": user, "status": status[i] if i < len(status) else None}
            for i, (value, user) in enumerate(zip(values, users, strict=False))
        ]
    return {name: value for name, value in row.items() if _RESPONSES not in name}, responses


def _argilla(fields: Fields, responses: Fields, kind: type[Record], where: str) -> Iterator[Fields]:
    """Yields a ranking for each submitted answer to a question whose answer ranks fields of the record."""
    if kind is not Ranking:
        yield fields
        return
    ranked = False
    for question, answers in responses.items():
        for answer in answers if isinstance(answers, list) else ():
            order = answer.get("value") if isinstance(answer, dict) else None
            if not isinstance(order, list) or not order or answer.get("status") not in (None, "submitted"):
                continue
            entries = [entry if isinstance(entry, dict) else {"value": entry} for entry in order]
            names = [str(entry.get("value")) for entry in entries]
            if unknown := [name for name in names if name not in fields]:
                raise RecordError(f"{where}: {question}: expected names of fields, found {show(unknown[0])}")
            ranked = True
            places = range(1, len(entries) + 1)
            yield {
                **{name: value for name, value in fields.items() if name not in names},
                "responses": [fields[name] for name in names],
                "ranks": [
                    place if entry.get("rank") is None else entry["rank"]
                    for place, entry in zip(places, entries, strict=True)
                ],
                "labeler": str(answer.get("user_id")),
                "question": question,
            }
    if not ranked:
        yield fields | _UNRANKED


def _label_studio(data: Fields, annotations: list[Any], kind: type[Record], where: str) -> Iterator[Fields]:
    """Yields a ranking for each result of a Ranker or Pairwise tag that was not cancelled."""
    if kind is not Ranking:
        yield data
        return
    ranked = False
    for annotation in annotations:
        if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
            continue
        author = annotation.get("completed_by")
        labeler = str(author.get("id") if isinstance(author, dict) else author)
        for result in _list(annotation, "result", where):
            if not isinstance(result, dict) or result.get("type") not in ("ranker", "pairwise"):
                continue
            read = _ranker if result["type"] == "ranker" else _pairwise
            ranked = True
            yield data | read(data, result, f"{where}: {result['type']}") | {"labeler": labeler}
    if not ranked:
        yield data | _UNRANKED


def _ranker(data: Fields, result: Mapping[str, Any], place: str) -> Fields:
    value = result.get("value")
    columns = value.get("ranker") if isinstance(value, dict) else None
    orders = [order for name, order in columns.items() if name != "_"] if isinstance(columns, dict) else []
    if len(orders) != 1 or not isinstance(orders[0], list):
        raise RecordError(f"{place}: expected one list of ids, the best first, without buckets, found {show(columns)}")
    order = [str(item) for item in orders[0]]
    for items in data.values():
        rows = items if isinstance(items, list) else ()
        texts = {
            str(item.get("id")): next((item[name] for name in _ITEM_TEXTS if name in item), None)
            for item in rows
            if isinstance(item, dict)
        }
        if texts and set(order) <= texts.keys():
            return {"responses": [texts[item] for item in order], "ranks": list(range(1, len(order) + 1))}
    raise RecordError(f"{place}: expected ids of a list in data, found {show(order)}")


def _pairwise(data: Fields, result: Mapping[str, Any], place: str) -> Fields:
    names, value = str(result.get("to_name")).split(","), result.get("value")
    selected = value.get("selected") if isinstance(value, dict) else None
    if len(names) != 2 or not all(name in data for name in names):
        raise RecordError(f"{place}: to_name: expected two fields of data, found {show(result.get('to_name'))}")
    if selected not in ("left", "right"):
        raise RecordError(f"{place}: selected: expected left or right, found {show(selected)}")
    return {
        "responses": [data[name] for name in names],
        "scores": [int(selected == side) for side in ("left", "right")],
    }
