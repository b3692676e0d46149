"""Matching imported rows with the items of the run, and their sides."""

import hashlib
import json
import math
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from shfcas.data.messages import Prompt, as_messages
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.schema import SIDES, Item, Judgement
from shfcas.feedback.exchange.reading import Problem, Problems, excerpt
from shfcas.utils.seeds import derive_seed

NAMESPACE = uuid.UUID("5d0a1a5c-37c5-5e0c-9d5c-0f6f5b0f5c55")
OTHER_RUN = "import it into the run that it was exported from"


def digest(item: Item) -> str:
    """Returns a hash of an item's texts, 16 hexadecimal digits: another run may have other texts under the same id."""
    text = json.dumps([as_messages(item.prompt), item.first_text, item.second_text], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def user_id(annotator: str) -> str:
    """Returns a UUID for an annotator, for formats that need one; a name that is a UUID is returned as it is."""
    try:
        return str(uuid.UUID(annotator))
    except ValueError:
        return str(uuid.uuid5(NAMESPACE, annotator))


@dataclass(frozen=True)
class Export:
    """Content of an exported file.

    Attributes:
        queue: the queue's name.
        seed: the queue's seed.
        items: the queue's items, by position.
        log: their judgements, in the order of writing.
        effective: the judgements that count: no undos, and no undone judgements.
        settings: how answers become preferences.
        with_scores: True to show rewards and conflicts to the annotators.
        side_seed: seed of the sides.
    """

    queue: str
    seed: int
    items: list[Item]
    log: list[Judgement]
    effective: list[Judgement]
    settings: HumanConfig
    with_scores: bool
    side_seed: int

    def left(self, item: Item) -> str:
        """Returns the answer on the left in this file: `first` or `second`."""
        return SIDES[derive_seed(self.side_seed, "export", item.id) & 1]

    def metadata(self, item: Item) -> dict[str, str]:
        """Returns the metadata by which an imported row finds its item."""
        return {"item": item.id, "queue": item.queue, "digest": digest(item), "left": self.left(item)}

    def logs(self) -> dict[str, list[dict[str, Any]]]:
        """Returns the judgements of each item as rows, with their place in the log as `row`."""
        by_item: dict[str, list[dict[str, Any]]] = {}
        for place, judgement in enumerate(self.log):
            by_item.setdefault(judgement.item, []).append({**vars(judgement), "row": place})
        return by_item

    def answers(self) -> dict[str, list[Judgement]]:
        """Returns the answers of each item that another tool can show: no skips and no repeats."""
        by_item: dict[str, list[Judgement]] = {}
        for judgement in self.effective:
            if judgement.choice != "skip" and not judgement.repeat:
                by_item.setdefault(judgement.item, []).append(judgement)
        return by_item

    def scores(self, item: Item) -> dict[str, float]:
        """Returns the scores behind the selection, with the answers as left and right."""
        scores: dict[str, float] = {}
        sides = ("left", "right") if self.left(item) == "first" else ("right", "left")
        for name, value in item.why.items():
            if isinstance(value, list):
                scores.update({f"{name}_{side}": v for side, v in zip(sides, value, strict=True)})
            else:
                scores[name] = value
        return {name: v for name, v in sorted(scores.items()) if isinstance(v, int | float) and math.isfinite(v)}


def on_side(choice: str, left: str) -> str:
    """Converts `first` and `second` to `left` and `right`, and back; other choices stay."""
    right = SIDES[1 - SIDES.index(left)]
    return {left: "left", right: "right", "left": left, "right": right}.get(choice, choice)


class RunItems:
    """Items of the run, for lookup by an import.

    Args:
        queues: the items of each queue, oldest queue first.
        settings: settings of the run; they turn margins into strengths.
        annotators: names that the run knows.
        problems: collects the problems of the import.
    """

    def __init__(
        self, queues: dict[str, list[Item]], settings: HumanConfig, annotators: Iterable[str], problems: Problems
    ) -> None:
        self.settings, self.problems = settings, problems
        self.queues = queues
        self.items: dict[str, Item] = {}
        self.new: dict[str, tuple[int, list[Item]]] = {}
        self._by_answers: dict[Any, list[Item]] = {}
        self._by_texts: dict[Any, list[Item]] = {}
        self._names = {user_id(name): name for name in annotators}
        for items in queues.values():
            for item in items:
                self.add(item)

    def add(self, item: Item) -> None:
        """Adds an item."""
        self.items[item.id] = item
        self._by_answers.setdefault((item.prompt_id, frozenset((item.first, item.second))), []).append(item)
        key = texts_key(item.prompt, item.first_text, item.second_text)
        self._by_texts.setdefault(key, []).append(item)

    def annotator(self, user: str, log: Iterable[Judgement] = ()) -> str:
        """Returns the annotator with this UUID; the UUID itself if there is none."""
        self._names.update({user_id(judgement.annotator): judgement.annotator for judgement in log})
        return self._names.get(user, user)

    def item(self, id: Any) -> Item:
        """Returns the item with this id.

        Raises:
            Problem: the run has no such item.
        """
        if not isinstance(id, str) or id not in self.items:
            raise Problem(f"item {excerpt(id)} is in no queue of this run", OTHER_RUN)
        return self.items[id]

    def by_answers(self, prompt_id: str, one: int, other: int) -> list[Item]:
        """Returns the items about two answers of a prompt, the newest queue last."""
        return self._by_answers.get((prompt_id, frozenset((one, other))), [])

    def by_texts(self, prompt: Any, one: Any, other: Any) -> list[Item]:
        """Returns the items with these texts, the newest queue last."""
        if not (isinstance(one, str) and isinstance(other, str) and _is_prompt(prompt)):
            return []
        return self._by_texts.get(texts_key(prompt, one, other), [])

    def locate(self, metadata: Any, prompt: Any, left: Any, right: Any) -> tuple[Item, str]:
        """Returns the item of a row that shows two answers, and the answer on the left.

        Args:
            metadata: as `Export.metadata` wrote it; without it, the texts decide.
            prompt: the prompt in the row.
            left: the answer on the left.
            right: the answer on the right.

        Raises:
            Problem: the row belongs to another run, or its metadata and its texts contradict each other.
        """
        metadata = metadata if isinstance(metadata, dict) else {}
        if metadata.get("item") is not None:
            item = self.item(metadata["item"])
        else:
            candidates = self.by_texts(prompt, left, right)
            if not candidates:
                raise Problem("no id of an item in the metadata, and no item of this run has these texts", OTHER_RUN)
            item = candidates[-1]
        known = metadata.get("digest")
        pair = (item.first_text, item.second_text)
        straight, crossed = (left, right) == pair, (right, left) == pair
        if known != digest(item) if known is not None else not (straight or crossed):
            raise Problem(f"item {item.id} has other texts in this run", OTHER_RUN)
        side = metadata.get("left")
        if side is None and (straight or crossed):
            side = "first" if straight else "second"
        if side not in SIDES:
            raise Problem(f"left: expected first or second, got {excerpt(side)}", "export the queue again")
        if straight != crossed and side != ("first" if straight else "second"):
            raise Problem(f"left: {side}, but the answers are on the opposite sides", "export the queue again")
        return item, side


def _is_prompt(prompt: Any) -> bool:
    if isinstance(prompt, str):
        return True
    return isinstance(prompt, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in prompt
    )


def texts_key(prompt: Prompt, one: str, other: str) -> tuple[str, frozenset[str]]:
    """Returns a key of the texts, whatever the order of the answers and whatever else a message has."""
    messages = [[message["role"], message["content"]] for message in as_messages(prompt)]
    return json.dumps(messages), frozenset((one, other))
