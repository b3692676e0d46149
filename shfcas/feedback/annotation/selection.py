"""A queue that is selected again: which of its items are comparisons that it had before."""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from shfcas.feedback.annotation.schema import Item, item_id

PLACE = ("round", "position", "prompt_id", "first", "second", "why")  # fields that a new selection may change


def content_key(item: Item) -> str:
    """Returns a key of an item's prompt and answers, whatever the order of the answers."""
    return json.dumps([item.prompt, *sorted((item.first_text, item.second_text))], sort_keys=True)


def reselected(items: Sequence[Item], stored: Sequence[Item], judged: Collection[str]) -> list[Item]:
    """Returns the items of a new selection, with the ids and sides of stored items that have the same texts.

    Several stored items may have the same texts. Those that were judged come first, then those with an equal id.

    Args:
        items: the new selection.
        stored: all items that the queue ever had.
        judged: ids of stored items that have judgements.
    """
    keys = {item.id: content_key(item) for item in stored}
    items = [item if keys.get(item.id) in (None, content_key(item)) else _renamed(item) for item in items]
    known: dict[str, list[Item]] = defaultdict(list)
    again = {item.id for item in items}
    for item in sorted(stored, key=lambda item: (item.id not in judged, item.id not in again)):
        known[keys[item.id]].append(item)
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[content_key(item)].append(item)
    chosen: dict[str, Item] = {}
    for key, group in groups.items():
        free = {item.id: item for item in known[key][: len(group)]}
        for item in sorted(group, key=lambda item: item.id not in free):
            earlier = free.pop(item.id, None) or (free.pop(next(iter(free))) if free else None)
            if earlier is not None:
                chosen[item.id] = _like(item, earlier)
    return [chosen.get(item.id, item) for item in items]


def _like(item: Item, earlier: Item) -> Item:
    """Returns the item with the id and the sides of an earlier one."""
    if item.first_text != earlier.first_text:
        why = {name: value[::-1] if isinstance(value, list) else value for name, value in item.why.items()}
        item = dataclasses.replace(item, first=item.second, second=item.first, why=why)
    texts = {name: getattr(earlier, name) for name in ("prompt", "first_text", "second_text")}
    return dataclasses.replace(item, id=earlier.id, **texts)


def _renamed(item: Item) -> Item:
    """Returns the item with another id, where the queue has its own for other texts."""
    return dataclasses.replace(item, id=item_id(item.queue, item.prompt_id, item.first, item.second, content_key(item)))


def place_of(item: Item, first: Item) -> dict[str, Any]:
    """Returns the fields in which an item differs from its first selection."""
    return {name: getattr(item, name) for name in PLACE if getattr(item, name) != getattr(first, name)}


def with_place(item: Item, place: dict[str, Any]) -> Item:
    """Returns an item with the fields that its latest selection changed."""
    return dataclasses.replace(item, **place)
