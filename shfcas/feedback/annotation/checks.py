"""What a judgement may hold, wherever it comes from: the page, a file, a program."""

import dataclasses
import math
from datetime import UTC, datetime

from shfcas.feedback.annotation.schema import CHOICES, PREFERRED, SIDES, STRENGTHS, Judgement
from shfcas.utils.errors import UserError


def plain(text: object, what: str) -> str:
    """Names and ids are printable text: they go into logs, terminals and file names."""
    if not isinstance(text, str) or not text or not text.isprintable():
        raise UserError(f"{what}: expected a name of printable letters, got {text!r}")
    return text


def check_judgement(judgement: Judgement) -> Judgement:
    """The judgement with its time in UTC; an error where a field holds what it cannot."""
    for name in ("id", "item", "annotator"):
        plain(getattr(judgement, name), f"{name} of a judgement")
    where = f"judgement {judgement.id!r}"
    if judgement.choice not in CHOICES:
        raise UserError(f"{where}: choice must be one of {', '.join(CHOICES)}, got {judgement.choice!r}")
    if judgement.left not in SIDES:
        raise UserError(f"{where}: left must be first or second, got {judgement.left!r}")
    if judgement.strength is not None:
        if judgement.strength not in STRENGTHS:
            raise UserError(f"{where}: strength must be slightly, clearly or none, got {judgement.strength!r}")
        if judgement.choice not in PREFERRED:
            raise UserError(f"{where}: {judgement.choice} has no strength; leave it out")
    for name in ("comment", "page_version"):
        if not isinstance(getattr(judgement, name), str):
            raise UserError(f"{where}: {name} must be text, got {getattr(judgement, name)!r}")
    seconds = judgement.seconds
    if seconds is not None:
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
            raise UserError(f"{where}: seconds must be a number from 0, or none, got {seconds!r}")
        judgement = dataclasses.replace(judgement, seconds=float(seconds))
    if not isinstance(judgement.repeat, bool):
        raise UserError(f"{where}: repeat must be true or false, got {judgement.repeat!r}")
    if (judgement.choice == "undo") != (judgement.undoes is not None):
        raise UserError(f"{where}: an undo names the judgement that it undoes, and nothing else does")
    for name in ("undoes", "page_version"):
        if getattr(judgement, name):
            plain(getattr(judgement, name), f"{name} of {where}")
    return dataclasses.replace(judgement, time=_utc(judgement.time, where))


def _utc(time: str, where: str) -> str:
    """A time in UTC and in one spelling, so that times can be compared as text; one without a zone is UTC."""
    if time == "":
        return time
    try:
        moment = datetime.fromisoformat(time)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where}: time must be ISO 8601 such as 2025-01-31T12:00:00Z, got {time!r}") from None
    return moment.isoformat(timespec="microseconds" if moment.microsecond % 1000 else "milliseconds")
