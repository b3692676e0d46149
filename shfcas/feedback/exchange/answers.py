"""Answers from elsewhere as judgements: their fields checked, and only what is new kept."""

import dataclasses
import json
import math
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from shfcas.feedback.annotation.aggregation import effective
from shfcas.feedback.annotation.schema import CHOICES, PREFERRED, SIDES, STRENGTHS, Judgement
from shfcas.feedback.exchange.matching import NAMESPACE, Book
from shfcas.feedback.exchange.reading import Problem, Problems, shown

LONGEST_NAME = 200
FIELDS = tuple(f.name for f in dataclasses.fields(Judgement))


@dataclass(frozen=True)
class Answer:
    """A judgement that was read.

    Attributes:
        judgement: with the id that it has in the log; without one if it was made elsewhere.
        where: the file and the row it was read from.
        place: its place in the log that it was exported from; None if it was made elsewhere.
    """

    judgement: Judgement
    where: str
    place: int | None = None


def judgement(row: Any) -> Judgement:
    """A judgement from the fields of a row, each checked; the id may be missing.

    Raises:
        Problem: a field holds something else than it should.
    """
    if not isinstance(row, dict):
        raise Problem(f"{shown(row)} is not a judgement", "export the answers again")
    unknown = sorted(set(row) - set(FIELDS) - {"row", "type"})
    if unknown:
        raise Problem(f"unknown field {shown(unknown[0])}", f"known fields: {', '.join(FIELDS)}")
    for name in ("item", "annotator", "choice"):
        if name not in row:
            raise Problem(f"no {name}", f"every judgement needs {name}")
    made = Judgement(**{"id": "", **{name: row[name] for name in FIELDS if name in row}})
    check_name(made.annotator)
    check_name(made.item, "item")
    check_text(made.comment, "comment")
    for name in ("id", "page_version"):
        if getattr(made, name) != "":
            check_name(getattr(made, name), name)
    check_among(made.choice, CHOICES, "choice")
    check_among(made.left, SIDES, "left")
    if made.strength is not None:
        check_among(made.strength, STRENGTHS, "strength")
        if made.choice not in PREFERRED:
            raise Problem(f"a strength ({made.strength}) with the choice {made.choice}", "leave the strength out")
    if not isinstance(made.repeat, bool):
        raise Problem(f"repeat is {shown(made.repeat)}", "write true or false")
    if (made.choice == "undo") != (made.undoes is not None):
        raise Problem("undoes and the choice undo belong together", "give both, or neither")
    if made.undoes is not None:
        check_name(made.undoes, "undoes")
    time(made.time)
    return replace(made, seconds=seconds(made.seconds))


def check_text(value: Any, what: str) -> str:
    """Text.

    Raises:
        Problem: it is none.
    """
    if not isinstance(value, str):
        raise Problem(f"{what} is {shown(value)}", "write text")
    return value


def check_name(value: Any, what: str = "the annotator") -> str:
    """A name or an id: any that can be shown on one line as it is.

    Raises:
        Problem: it is no such name.
    """
    if not value or not check_text(value, what).strip():
        raise Problem(f"{what} is {shown(value)}", "give a name")
    if len(value) > LONGEST_NAME:
        raise Problem(f"{what} has {len(value)} characters", f"use at most {LONGEST_NAME}")
    if not value.isprintable():
        raise Problem(f"{what} has control characters: {ascii(value)[:80]}", "take them out")
    return value


def check_among(value: Any, choices: tuple[str, ...], what: str) -> str:
    """One of the words that a field may hold.

    Raises:
        Problem: it is another one.
    """
    if not isinstance(value, str) or value not in choices:
        raise Problem(f"{what} is {shown(value)}", f"expected one of {', '.join(choices)}")
    return value


def seconds(value: Any) -> float | None:
    """A duration, or None.

    Raises:
        Problem: it is negative, or no number.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12 or math.isnan(value):
        raise Problem(f"the time taken is {shown(value)}", "write seconds, or null")
    return float(value)


def time(value: Any) -> str:
    """A point in time as it is stored (UTC, ISO 8601); nothing stays nothing, and no zone is UTC.

    Raises:
        Problem: it is no point in time.
    """
    if value is None or value == "":
        return ""
    try:
        read = datetime.fromisoformat(value)
        read = read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise Problem(f"the time is {shown(value)}", "write it as 2025-01-31T12:00:00Z") from None
    return read.isoformat()


def content_id(answer: Judgement, instead_of: str = "") -> str:
    """The id of an answer from elsewhere: the same for the same content, so that it is written once."""
    content = [getattr(answer, name) for name in FIELDS if name != "id"]
    return str(uuid.uuid5(NAMESPACE, json.dumps([*content, instead_of])))


class Reconciled:
    """What of the answers that were read is new to the log.

    Rows of a log keep their ids. An answer from elsewhere adds nothing if its person has said the same about the item;
    one that differs from what the person said before is a problem, or with `replace` takes its place.

    Args:
        answers: what was read, of all files.
        log: what the store has.
        book: the items.
        replace: whether a different answer of the same person takes the place of the old one.
    """

    def __init__(self, answers: Iterable[Answer], log: list[Judgement], book: Book, replace: bool) -> None:
        self.new: list[Judgement] = []
        self._problems: Problems = book.problems
        self._replace = replace
        self._known = {j.id: j for j in log}
        self._undone = {j.undoes for j in log if j.undoes is not None}
        self._from: dict[str, str] = {}
        answers = list(answers)
        own = [answer for answer in answers if answer.place is not None]
        for answer in sorted(own, key=lambda a: a.place or 0):
            with self._problems.at(answer.where):
                self._own(answer)
        self._standing: dict[tuple[str, str, bool], Judgement] = {}
        for j in effective([*log, *self.new]):
            if not j.repeat:
                self._standing[_whose(j)] = j
        for answer in answers:
            if answer.place is None:
                with self._problems.at(answer.where):
                    self._elsewhere(answer)

    def _add(self, judgement: Judgement) -> None:
        self.new.append(judgement)
        self._known[judgement.id] = judgement

    def _own(self, answer: Answer) -> None:
        made = answer.judgement
        if not made.id:
            raise Problem("a judgement of a log without its id", "export the answers again")
        if made.id in self._known:
            there = self._known[made.id]
            if replace(made, time=time(made.time or there.time)) != replace(there, time=time(there.time)):
                raise Problem(f"judgement {shown(made.id)} says something else there already", "each id is used once")
            return
        if made.undoes is not None:
            target = self._known.get(made.undoes)
            if target is None or (target.item, target.annotator) != (made.item, made.annotator):
                raise Problem(
                    f"undoes {shown(made.undoes)}, which is no judgement of the same person and item before it",
                    "export the answers again",
                )
            if target.choice == "undo" or target.id in self._undone:
                raise Problem(f"undoes {shown(made.undoes)}, which is undone or an undo", "export the answers again")
            self._undone.add(target.id)
        self._add(made)

    def _elsewhere(self, answer: Answer) -> None:
        made = replace(answer.judgement, id=content_id(answer.judgement))
        standing = self._standing.get(_whose(made))
        if standing is not None:
            if made.choice == "skip" or says(standing) == says(made):
                return
            here = self._from.get(standing.id)
            if here is not None:
                raise Problem(
                    f"{shown(made.annotator)} answers item {made.item} otherwise at {here}", "keep one of them"
                )
            if not self._replace:
                if made.id in self._known:
                    return  # imported before, and changed since
                raise Problem(
                    f"{shown(made.annotator)} has answered item {made.item} otherwise ({standing.choice})",
                    "--replace true takes this answer instead",
                )
            made = replace(made, id=content_id(made, standing.id))
            undo = Judgement(
                id=content_id(replace(made, choice="undo"), standing.id),
                item=made.item,
                annotator=made.annotator,
                choice="undo",
                left=standing.left,
                undoes=standing.id,
                page_version=made.page_version,
                time=made.time,
            )
            self._add(undo)
        elif made.id in self._known:
            return  # imported before, and undone since
        self._add(made)
        self._standing[_whose(made)] = made
        self._from[made.id] = answer.where


def _whose(judgement: Judgement) -> tuple[str, str, bool]:
    return judgement.annotator, judgement.item, judgement.choice == "skip"


def says(judgement: Judgement) -> tuple[str, str | None, list[str]]:
    """What an answer says; tools may change the white space of a comment."""
    return judgement.choice, judgement.strength, judgement.comment.split()
