"""Which item of the run a row is about, and which of its answers stood on the left."""

import hashlib
import json
import math
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from shfcas.data.chat import Prompt, as_messages
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.schema import SIDES, Item, Judgement
from shfcas.feedback.exchange.reading import Problem, Problems, shown
from shfcas.utils.seeds import derive_seed

NAMESPACE = uuid.UUID("5d0a1a5c-37c5-5e0c-9d5c-0f6f5b0f5c55")
ELSEWHERE = "import it into the run that it was exported from"


def digest(item: Item) -> str:
    """16 hexadecimal digits that stand for the texts of an item: another run may ask about others under the same id."""
    text = json.dumps([as_messages(item.prompt), item.first_text, item.second_text], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def user_id(annotator: str) -> str:
    """The UUID that stands for an annotator where a format wants one; a name that is a UUID stands for itself."""
    try:
        return str(uuid.UUID(annotator))
    except ValueError:
        return str(uuid.uuid5(NAMESPACE, annotator))


@dataclass(frozen=True)
class Export:
    """What a format writes.

    Attributes:
        queue: the queue's name.
        seed: the seed of the queue.
        items: by position.
        log: the judgements about them, in the order they were written, with their places in the log.
        effective: those that count: without undos and what they undo.
        settings: how the answers become preferences.
        with_scores: rewards and conflicts are shown to the annotators.
        side_seed: draws which answer stands on the left.
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
        """Which answer stands on the left in this file: `first` or `second`."""
        return SIDES[derive_seed(self.side_seed, "export", item.id) & 1]

    def metadata(self, item: Item) -> dict[str, str]:
        """What a row needs to come back to its item."""
        return {"item": item.id, "queue": item.queue, "digest": digest(item), "left": self.left(item)}

    def logs(self) -> dict[str, list[dict[str, Any]]]:
        """For each item its judgements as rows, each with its place in the log as `row`."""
        by_item: dict[str, list[dict[str, Any]]] = {}
        for place, judgement in enumerate(self.log):
            by_item.setdefault(judgement.item, []).append({**vars(judgement), "row": place})
        return by_item

    def answers(self) -> dict[str, list[Judgement]]:
        """For each item what another tool can show as answers: no skips, no second answers of the same person."""
        by_item: dict[str, list[Judgement]] = {}
        for judgement in self.effective:
            if judgement.choice != "skip" and not judgement.repeat:
                by_item.setdefault(judgement.item, []).append(judgement)
        return by_item

    def scores(self, item: Item) -> dict[str, float]:
        """What the item was chosen by, with the answers as left and right."""
        found: dict[str, float] = {}
        sides = ("left", "right") if self.left(item) == "first" else ("right", "left")
        for name, value in item.why.items():
            if isinstance(value, list):
                found.update({f"{name}_{side}": v for side, v in zip(sides, value, strict=True)})
            else:
                found[name] = value
        return {name: v for name, v in sorted(found.items()) if isinstance(v, int | float) and math.isfinite(v)}


def on_side(choice: str, left: str) -> str:
    """`first` and `second` as `left` and `right`, and the other way round; what is neither stays."""
    right = SIDES[1 - SIDES.index(left)]
    return {left: "left", right: "right", "left": left, "right": right}.get(choice, choice)


class Book:
    """The items that an import may be about.

    Args:
        queues: the items of each queue, the oldest queue first.
        settings: of the run; margins become strengths by them.
        annotators: the names that the run knows.
        problems: where problems are noted.
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
        """Makes an item known."""
        self.items[item.id] = item
        self._by_answers.setdefault((item.prompt_id, frozenset((item.first, item.second))), []).append(item)
        key = texts_key(item.prompt, item.first_text, item.second_text)
        self._by_texts.setdefault(key, []).append(item)

    def name(self, user: str, log: Iterable[Judgement] = ()) -> str:
        """The annotator whom a UUID stands for; the UUID itself where nobody is known by it."""
        self._names.update({user_id(judgement.annotator): judgement.annotator for judgement in log})
        return self._names.get(user, user)

    def item(self, id: Any) -> Item:
        """The item of an id.

        Raises:
            Problem: the run does not ask about it.
        """
        if not isinstance(id, str) or id not in self.items:
            raise Problem(f"item {shown(id)} is in no queue of this run", ELSEWHERE)
        return self.items[id]

    def by_answers(self, prompt_id: str, one: int, other: int) -> list[Item]:
        """The items about two answers of a prompt, the newest queue last."""
        return self._by_answers.get((prompt_id, frozenset((one, other))), [])

    def by_texts(self, prompt: Any, one: Any, other: Any) -> list[Item]:
        """The items with these texts, the newest queue last."""
        if not (isinstance(one, str) and isinstance(other, str) and _is_prompt(prompt)):
            return []
        return self._by_texts.get(texts_key(prompt, one, other), [])

    def place(self, metadata: Any, prompt: Any, left: Any, right: Any) -> tuple[Item, str]:
        """The item of a row that shows two answers, and which of them is on the left.

        Args:
            metadata: as `Export.metadata` wrote it; without it, the texts tell.
            prompt: the prompt as it was shown.
            left: the answer on the left.
            right: the other.

        Raises:
            Problem: the row belongs to another run, or its metadata and its texts contradict each other.
        """
        metadata = metadata if isinstance(metadata, dict) else {}
        if metadata.get("item") is not None:
            item = self.item(metadata["item"])
        else:
            found = self.by_texts(prompt, left, right)
            if not found:
                raise Problem("neither an item's id in the metadata nor the texts of an item of this run", ELSEWHERE)
            item = found[-1]
        known = metadata.get("digest")
        pair = (item.first_text, item.second_text)
        straight, crossed = (left, right) == pair, (right, left) == pair
        if known != digest(item) if known is not None else not (straight or crossed):
            raise Problem(f"item {item.id} has other texts in this run", ELSEWHERE)
        side = metadata.get("left")
        if side is None and (straight or crossed):
            side = "first" if straight else "second"
        if side not in SIDES:
            raise Problem(f"left is {shown(side)}, neither first nor second", "export the queue again")
        if straight != crossed and side != ("first" if straight else "second"):
            raise Problem(f"left is {side}, but the answers stand the other way round", "export the queue again")
        return item, side


def _is_prompt(prompt: Any) -> bool:
    if isinstance(prompt, str):
        return True
    return isinstance(prompt, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in prompt
    )


def texts_key(prompt: Prompt, one: str, other: str) -> tuple[str, frozenset[str]]:
    """The same for the same texts, whichever answer stands first and whatever else a message has."""
    messages = [[message["role"], message["content"]] for message in as_messages(prompt)]
    return json.dumps(messages), frozenset((one, other))
