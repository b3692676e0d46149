"""Imported answers as judgements: checks of their fields, and reconciliation with the log."""

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
from shfcas.feedback.exchange.matching import NAMESPACE, RunItems
from shfcas.feedback.exchange.reading import Problem, Problems, excerpt

MAX_NAME = 200  # characters
FIELDS = tuple(f.name for f in dataclasses.fields(Judgement))


@dataclass(frozen=True)
class Answer:
    """Imported judgement.

    Attributes:
        judgement: with its id in the log; with an empty id if it was made in another tool.
        where: its file and row.
        place: its place in the exported log; None if it was made in another tool.
    """

    judgement: Judgement
    where: str
    place: int | None = None


def parse_judgement(row: Any) -> Judgement:
    """Parses a row into a judgement and checks each field; the id may be missing.

    Raises:
        Problem: a field is missing, unknown or invalid.
    """
    if not isinstance(row, dict):
        raise Problem(f"expected a judgement, got {excerpt(row)}", "export the answers again")
    unknown = sorted(set(row) - set(FIELDS) - {"row", "type"})
    if unknown:
        raise Problem(f"unknown field {excerpt(unknown[0])}", f"known fields: {', '.join(FIELDS)}")
    for name in ("item", "annotator", "choice"):
        if name not in row:
            raise Problem(f"{name}: missing", f"every judgement needs {name}")
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
            raise Problem(
                f"strength: expected none with the choice {made.choice}, got {made.strength}", "leave the strength out"
            )
    for name in ("repeat", "informed"):
        if not isinstance(getattr(made, name), bool):
            raise Problem(f"{name}: expected true or false, got {excerpt(getattr(made, name))}")
    if (made.choice == "undo") != (made.undoes is not None):
        raise Problem("undoes: expected an id with the choice undo, and null otherwise")
    if made.undoes is not None:
        check_name(made.undoes, "undoes")
    parse_time(made.time)
    return replace(made, seconds=parse_seconds(made.seconds))


def check_text(value: Any, field: str) -> str:
    """Returns text unchanged.

    Raises:
        Problem: the value is not text.
    """
    if not isinstance(value, str):
        raise Problem(f"{field}: expected text, got {excerpt(value)}")
    return value


def check_name(value: Any, field: str = "annotator") -> str:
    """Returns a name or an id unchanged.

    Raises:
        Problem: the value is empty, too long, not text, or has unprintable characters.
    """
    if not value or not check_text(value, field).strip():
        raise Problem(f"{field}: expected a name, got {excerpt(value)}")
    if len(value) > MAX_NAME:
        raise Problem(f"{field}: expected at most {MAX_NAME} characters, got {len(value)}")
    if not value.isprintable():
        raise Problem(f"{field}: expected printable characters, got {ascii(value)[:80]}")
    return value


def check_among(value: Any, choices: tuple[str, ...], field: str) -> str:
    """Returns a value unchanged.

    Raises:
        Problem: the value is not among the choices.
    """
    if not isinstance(value, str) or value not in choices:
        raise Problem(f"{field}: expected one of {', '.join(choices)}, got {excerpt(value)}")
    return value


def parse_seconds(value: Any, field: str = "seconds") -> float | None:
    """Parses a duration; None stays None.

    Raises:
        Problem: the value is negative, too large, or not a number.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12 or math.isnan(value):
        raise Problem(f"{field}: expected a number of at least 0, or null, got {excerpt(value)}")
    return float(value)


def parse_time(value: Any, field: str = "time") -> str:
    """Parses a time into UTC, ISO 8601, as the store keeps it. Empty stays empty; no zone means UTC.

    Raises:
        Problem: the value is not a time.
    """
    if value is None or value == "":
        return ""
    try:
        moment = datetime.fromisoformat(value)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise Problem(f"{field}: expected ISO 8601 such as 2025-01-31T12:00:00Z, got {excerpt(value)}") from None
    return moment.isoformat()


def content_id(answer: Judgement, instead_of: str = "") -> str:
    """Derives an id for an answer from another tool: equal content gives an equal id, so it is written once."""
    content = [getattr(answer, name) for name in FIELDS if name != "id"]
    return str(uuid.uuid5(NAMESPACE, json.dumps([*content, instead_of])))


class Reconciled:
    """Imported answers compared with the log; `new` holds the judgements to add.

    Rows of an exported log keep their ids. An answer from another tool adds nothing if the annotator has given the
    same answer to the item. A different answer is a problem, or with `replace` replaces the old one.

    Args:
        answers: the answers of all files.
        log: the judgements in the store.
        run_items: the items of the run.
        replace: a different answer of the same annotator replaces the old one.
    """

    def __init__(self, answers: Iterable[Answer], log: list[Judgement], run_items: RunItems, replace: bool) -> None:
        self.new: list[Judgement] = []
        self._problems: Problems = run_items.problems
        self._replace = replace
        self._known = {j.id: j for j in log}
        self._undone = {j.undoes for j in log if j.undoes is not None}
        self._sources: dict[str, str] = {}
        answers = list(answers)
        own = [answer for answer in answers if answer.place is not None]
        for answer in sorted(own, key=lambda a: a.place or 0):
            with self._problems.at(answer.where):
                self._add_logged(answer)
        self._current: dict[tuple[str, str, bool], Judgement] = {}
        for j in effective([*log, *self.new]):
            if not j.repeat:
                self._current[_key(j)] = j
        for answer in answers:
            if answer.place is None:
                with self._problems.at(answer.where):
                    self._add_external(answer)

    def _add(self, judgement: Judgement) -> None:
        self.new.append(judgement)
        self._known[judgement.id] = judgement

    def _add_logged(self, answer: Answer) -> None:
        made = answer.judgement
        if not made.id:
            raise Problem("id: missing in a row of a log", "export the answers again")
        if made.id in self._known:
            known = self._known[made.id]
            if replace(made, time=parse_time(made.time or known.time)) != replace(known, time=parse_time(known.time)):
                raise Problem(f"judgement {excerpt(made.id)} exists with other content", "use each id once")
            return
        if made.undoes is not None:
            target = self._known.get(made.undoes)
            if target is None or (target.item, target.annotator) != (made.item, made.annotator):
                raise Problem(
                    f"undoes: expected an earlier judgement of the same annotator and item, got {excerpt(made.undoes)}",
                    "export the answers again",
                )
            if target.choice == "undo" or target.id in self._undone:
                raise Problem(f"undoes: {excerpt(made.undoes)} is undone, or an undo", "export the answers again")
            self._undone.add(target.id)
        self._add(made)

    def _add_external(self, answer: Answer) -> None:
        made = replace(answer.judgement, id=content_id(answer.judgement))
        current = self._current.get(_key(made))
        if current is not None:
            if made.choice == "skip" or answer_content(current) == answer_content(made):
                return
            here = self._sources.get(current.id)  # set if it comes from this import
            if here is not None:
                raise Problem(
                    f"{excerpt(made.annotator)} gives item {made.item} another answer at {here}", "keep one of them"
                )
            if not self._replace:
                if made.id in self._known:
                    return  # imported before, and changed since
                raise Problem(
                    f"{excerpt(made.annotator)} gave item {made.item} another answer ({current.choice})",
                    "use --replace true to replace it",
                )
            made = replace(made, id=content_id(made, current.id))
            undo = Judgement(
                id=content_id(replace(made, choice="undo"), current.id),
                item=made.item,
                annotator=made.annotator,
                choice="undo",
                left=current.left,
                undoes=current.id,
                page_version=made.page_version,
                time=made.time,
            )
            self._add(undo)
        elif made.id in self._known:
            return  # imported before, and undone since
        self._add(made)
        self._current[_key(made)] = made
        self._sources[made.id] = answer.where


def _key(judgement: Judgement) -> tuple[str, str, bool]:
    return judgement.annotator, judgement.item, judgement.choice == "skip"


def answer_content(judgement: Judgement) -> tuple[str, str | None, list[str]]:
    """Returns an answer's content for comparison; tools may change the white space of a comment."""
    return judgement.choice, judgement.strength, judgement.comment.split()
