"""Our own log as JSON lines: the queue, its items and every judgement, with every field."""

import dataclasses
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from shfcas.data.chat import as_messages, check_prompt
from shfcas.feedback.annotation.schema import Item, item_id
from shfcas.feedback.exchange.answers import Answer, check_text, judgement
from shfcas.feedback.exchange.matching import ELSEWHERE, Book, Export
from shfcas.feedback.exchange.reading import Problem, shown
from shfcas.feedback.exchange.writing import write_lines
from shfcas.utils.errors import UserError

ITEM_FIELDS = tuple(f.name for f in dataclasses.fields(Item))
AGAIN = "export the queue again"


def write(path: Path, export: Export) -> list[Path]:
    """Writes the file."""
    write_lines(path, _rows(export))
    return [path]


def _rows(export: Export) -> Iterator[dict[str, Any]]:
    yield {"type": "queue", "queue": export.queue, "seed": export.seed, "items": len(export.items)}
    for item in export.items:
        yield {"type": "item", **vars(item)}
    for made in export.log:
        yield {"type": "judgement", **vars(made)}


def read(rows: Iterable[tuple[str, dict[str, Any]]], book: Book) -> Iterator[Answer]:
    """The judgements of a file; a queue that the run does not have is noted in `book.new`."""
    place, expected = 0, ("", 0)
    name, where = "", ""
    for where, row in rows:
        with book.problems.at(where):
            kind = row.get("type")
            if kind == "queue":
                _complete(book, name, expected)
                name, expected = _queue(row, book, where)
            elif kind == "item":
                _item(row, book, name)
            elif kind == "judgement":
                made = judgement(row)
                book.item(made.item)
                place += 1
                yield Answer(made, where, place)
            else:
                raise Problem(f"type is {shown(kind)}", "expected one of queue, item, judgement")
    with book.problems.at(where):
        _complete(book, name, expected)


def _queue(row: dict[str, Any], book: Book, where: str) -> tuple[str, tuple[str, int]]:
    name, seed, items = row.get("queue"), row.get("seed"), row.get("items")
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]*(/\w[\w-]*)*", name):
        raise Problem(f"the queue is called {shown(name)}", "expected a name such as round-1")
    for number in (seed, items):
        if isinstance(number, bool) or not isinstance(number, int) or abs(number) >= 1 << 63:
            raise Problem(f"a queue needs its seed and its number of items, got {shown(number)}", AGAIN)
    if name not in book.queues and name not in book.new:
        book.new[name] = (int(seed or 0), [])
        return name, (where, int(items or 0))
    return name, ("", 0)


def _item(row: dict[str, Any], book: Book, queue: str) -> None:
    values = {name: row[name] for name in row if name != "type"}
    if set(values) != set(ITEM_FIELDS):
        raise Problem(f"an item needs {', '.join(ITEM_FIELDS)}", AGAIN)
    for name in ("id", "queue", "prompt_id", "first_text", "second_text"):
        check_text(values[name], name)
    for name in ("round", "position", "first", "second"):
        number = values[name]
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 1 << 63:
            raise Problem(f"{name} is {shown(number)}", "expected a whole number, 0 or more")
    why = values["why"]
    if not isinstance(why, dict) or not all(_is_reason(reason) for reason in why.values()):
        raise Problem(f"why is {shown(why)}", "expected finite numbers, or one for each answer")
    try:
        check_prompt(values["prompt"], "the item")
    except UserError as error:
        raise Problem(str(error), AGAIN) from None
    if not all(isinstance(part, str) for message in as_messages(values["prompt"]) for part in message.values()):
        raise Problem("a message of the prompt has more than text in it", AGAIN)
    item = Item(**values)
    if item.queue != queue:
        raise Problem(f"an item of the queue {shown(item.queue)} after the line of {shown(queue)}", AGAIN)
    if item.id != item_id(item.queue, item.prompt_id, item.first, item.second):
        raise Problem(f"{shown(item.id)} is not the id of its queue, prompt and answers", AGAIN)
    there = book.items.get(item.id)
    if there is not None:
        if _text(there) != _text(item):
            raise Problem(f"item {item.id} is another one in this run", ELSEWHERE)
    elif queue in book.new:
        book.new[queue][1].append(item)
        book.add(item)
    else:
        raise Problem(f"item {item.id} is not in the queue {queue} of this run", ELSEWHERE)


def _is_reason(value: Any) -> bool:
    """Whether the page can show it: JSON has neither NaN nor infinities, and comparisons with NaN are false."""
    parts = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(part is None or (isinstance(part, int | float) and abs(part) <= sys.float_info.max) for part in parts)


def _complete(book: Book, queue: str, expected: tuple[str, int]) -> None:
    """A new queue has to come whole, or people would be asked about a part of it."""
    where, count = expected
    if where:
        items = book.new[queue][1]
        items.sort(key=lambda item: item.position)
        if [item.position for item in items] != list(range(count)):
            raise Problem(f"the queue {queue} has {count} items ({where}), and not all of them are there", AGAIN)


def _text(item: Item) -> str:
    return json.dumps(vars(item), sort_keys=True)
