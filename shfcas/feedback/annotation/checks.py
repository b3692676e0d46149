"""Checks of a judgement's fields; every source (page, file, program) passes through them."""

import dataclasses
import math
from datetime import UTC, datetime

from shfcas.feedback.annotation.schema import CHOICES, PREFERRED, SIDES, STRENGTHS, Judgement
from shfcas.utils.errors import UserError


def check_printable(text: object, field: str) -> str:
    """Returns a name or an id unchanged. It must be printable, for logs, terminals and file names.

    Raises:
        UserError: it is empty, not text, or has unprintable characters.
    """
    if not isinstance(text, str) or not text or not text.isprintable():
        raise UserError(f"{field}: expected printable text, got {text!r}")
    return text


def check_judgement(judgement: Judgement) -> Judgement:
    """Returns the judgement with its time in UTC.

    Raises:
        UserError: a field has a wrong type or value.
    """
    for name in ("id", "item", "annotator"):
        check_printable(getattr(judgement, name), f"{name} of a judgement")
    where = f"judgement {judgement.id!r}"
    if judgement.choice not in CHOICES:
        raise UserError(f"{where}: choice: expected one of {', '.join(CHOICES)}, got {judgement.choice!r}")
    if judgement.left not in SIDES:
        raise UserError(f"{where}: left: expected first or second, got {judgement.left!r}")
    if judgement.strength is not None:
        if judgement.strength not in STRENGTHS:
            raise UserError(f"{where}: strength: expected slightly, clearly or None, got {judgement.strength!r}")
        if judgement.choice not in PREFERRED:
            raise UserError(f"{where}: strength: expected None with the choice {judgement.choice}; leave it out")
    for name in ("comment", "page_version"):
        if not isinstance(getattr(judgement, name), str):
            raise UserError(f"{where}: {name}: expected text, got {getattr(judgement, name)!r}")
    seconds = judgement.seconds
    if seconds is not None:
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
            raise UserError(f"{where}: seconds: expected a number of at least 0, or None, got {seconds!r}")
        judgement = dataclasses.replace(judgement, seconds=float(seconds))
    for name in ("repeat", "informed"):
        if not isinstance(getattr(judgement, name), bool):
            raise UserError(f"{where}: {name}: expected True or False, got {getattr(judgement, name)!r}")
    if (judgement.choice == "undo") != (judgement.undoes is not None):
        raise UserError(f"{where}: undoes: expected the id of a judgement with the choice undo, and None otherwise")
    for name in ("undoes", "page_version"):
        if getattr(judgement, name):
            check_printable(getattr(judgement, name), f"{name} of {where}")
    return dataclasses.replace(judgement, time=_utc(judgement.time, where))


def _utc(time: str, where: str) -> str:
    """Converts a time to UTC in one spelling, so that times compare as text; no zone means UTC."""
    if time == "":
        return time
    try:
        moment = datetime.fromisoformat(time)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where}: time: expected ISO 8601 such as 2025-01-31T12:00:00Z, got {time!r}") from None
    return moment.isoformat(timespec="microseconds" if moment.microsecond % 1000 else "milliseconds")
