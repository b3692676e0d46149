"""The log as JSON lines: the queue, its items and every judgement, with all fields."""

import dataclasses
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from shfcas.data.messages import as_messages, check_prompt
from shfcas.feedback.annotation.schema import Item
from shfcas.feedback.exchange.answers import Answer, check_name, check_text, parse_judgement
from shfcas.feedback.exchange.matching import OTHER_RUN, Export, RunItems, digest
from shfcas.feedback.exchange.reading import Problem, excerpt
from shfcas.feedback.exchange.writing import write_lines
from shfcas.utils.errors import UserError

ITEM_FIELDS = tuple(f.name for f in dataclasses.fields(Item))
AGAIN = "export the queue again"


def write(path: Path, export: Export) -> list[Path]:
    """Writes the queue, its items and its judgements."""
    write_lines(path, _rows(export))
    return [path]


def _rows(export: Export) -> Iterator[dict[str, Any]]:
    yield {"type": "queue", "queue": export.queue, "seed": export.seed, "items": len(export.items)}
    for item in export.items:
        yield {"type": "item", **vars(item)}
    for made in export.log:
        yield {"type": "judgement", **vars(made)}


def read(rows: Iterable[tuple[str, dict[str, Any]]], run_items: RunItems) -> Iterator[Answer]:
    """Yields the judgements of a file; a queue that the run lacks is added to `run_items.new`."""
    place, expected = 0, ("", 0)
    name, where = "", ""
    for where, row in rows:
        with run_items.problems.at(where):
            kind = row.get("type")
            if kind == "queue":
                _check_complete(run_items, name, expected)
                name, expected = _queue(row, run_items, where)
            elif kind == "item":
                _item(row, run_items, name)
            elif kind == "judgement":
                made = parse_judgement(row)
                run_items.item(made.item)
                place += 1
                yield Answer(made, where, place)
            else:
                raise Problem(f"type: expected one of queue, item, judgement, got {excerpt(kind)}")
    with run_items.problems.at(where):
        _check_complete(run_items, name, expected)


def _queue(row: dict[str, Any], run_items: RunItems, where: str) -> tuple[str, tuple[str, int]]:
    name, seed, items = row.get("queue"), row.get("seed"), row.get("items")
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]*(/\w[\w-]*)*", name):
        raise Problem(f"queue: expected a name such as round-1, got {excerpt(name)}")
    for field, number in (("seed", seed), ("items", items)):
        if isinstance(number, bool) or not isinstance(number, int) or abs(number) >= 1 << 63:
            raise Problem(f"{field}: expected a whole number, got {excerpt(number)}", AGAIN)
    if name not in run_items.queues and name not in run_items.new:
        run_items.new[name] = (int(seed or 0), [])
        return name, (where, int(items or 0))
    return name, ("", 0)


def _item(row: dict[str, Any], run_items: RunItems, queue: str) -> None:
    values = {name: row[name] for name in row if name != "type"}
    if set(values) != set(ITEM_FIELDS):
        raise Problem(f"expected an item with {', '.join(ITEM_FIELDS)}", AGAIN)
    check_name(values["id"], "id")
    for name in ("queue", "prompt_id", "first_text", "second_text"):
        check_text(values[name], name)
    for name in ("round", "position", "first", "second"):
        number = values[name]
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 1 << 63:
            raise Problem(f"{name}: expected a whole number of at least 0, got {excerpt(number)}")
    why = values["why"]
    if not isinstance(why, dict) or not all(_is_score(score) for score in why.values()):
        raise Problem(f"why: expected finite numbers, or one for each answer, got {excerpt(why)}")
    try:
        check_prompt(values["prompt"], "the item")
    except UserError as error:
        raise Problem(str(error), AGAIN) from None
    if not all(isinstance(part, str) for message in as_messages(values["prompt"]) for part in message.values()):
        raise Problem("prompt: expected messages of text only", AGAIN)
    item = Item(**values)
    if item.queue != queue:
        raise Problem(f"queue: expected {excerpt(queue)}, as in the line above, got {excerpt(item.queue)}", AGAIN)
    known = run_items.items.get(item.id)
    if known is not None:
        if (known.queue, known.prompt_id, digest(known)) != (queue, item.prompt_id, digest(item)):
            raise Problem(f"item {item.id} has other content in this run", OTHER_RUN)
    elif queue in run_items.new:
        run_items.new[queue][1].append(item)
        run_items.add(item)
    else:
        raise Problem(f"item {item.id} is not in the queue {queue} of this run", OTHER_RUN)


def _is_score(value: Any) -> bool:
    """Checks that the page can show a score. JSON has neither NaN nor infinities; comparisons with NaN are false."""
    parts = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(part is None or (isinstance(part, int | float) and abs(part) <= sys.float_info.max) for part in parts)


def _check_complete(run_items: RunItems, queue: str, expected: tuple[str, int]) -> None:
    """Checks that a new queue is complete; otherwise annotators would see only a part of it."""
    where, count = expected
    if where:
        items = run_items.new[queue][1]
        items.sort(key=lambda item: item.position)
        if [item.position for item in items] != list(range(count)):
            raise Problem(f"queue {queue}: expected {count} items ({where}), and some are missing", AGAIN)
