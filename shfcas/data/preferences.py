"""Pairwise preferences: one record per labelled comparison, in TRL's explicit-prompt format, with provenance."""

import dataclasses
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.data.formats import Columns, missing_column, preference_row, split_prompt
from shfcas.data.messages import (
    Completion,
    Prompt,
    answer_key,
    are_messages,
    check_prompt,
    completion_message,
    normalised,
    prompt_key,
)
from shfcas.data.reading import read_rows
from shfcas.utils.errors import UserError
from shfcas.utils.files import write_jsonl

logger = logging.getLogger(__name__)

SOURCES = ("human", "gold", "judge", "original", "second_opinion")


@dataclass(frozen=True)
class Preference:
    """One answer preferred over another.

    Attributes:
        prompt: text, or chat messages.
        chosen: the better answer: text, or messages if it is not one plain assistant turn.
        rejected: the worse answer.
        margin: how much better the chosen answer is; None if no strength was given.
        prompt_id: the prompt's id in the candidate table.
        chosen_index: position of the chosen answer among the prompt's completions (-1: not from a table).
        rejected_index: position of the rejected answer.
        source: source of the label: `human`, `gold`, `judge`, `original` for the user's own data, or `second_opinion`
            for a soft label that reward model and policy gave together.
        annotator: name of the person or model.
        round: round of the label (0: before the first round).
        chosen_safe: whether the chosen answer is safe, None if not labelled; training data of a cost model.
        rejected_safe: the same for the rejected answer.
        probability: of a soft label, that the chosen answer is better, from 0 to 1; None for a verdict.
    """

    prompt: Prompt
    chosen: Completion
    rejected: Completion
    margin: float | None = None
    prompt_id: str = ""
    chosen_index: int = -1
    rejected_index: int = -1
    source: str = "original"
    annotator: str = ""
    round: int = 0
    chosen_safe: bool | None = None
    rejected_safe: bool | None = None
    probability: float | None = None

    def to_row(self) -> dict[str, Any]:
        """Returns the record in TRL's format: messages for a conversational prompt, no columns for missing values."""
        row = dataclasses.asdict(self)
        for side in ("chosen", "rejected"):
            row[side] = completion_message(self.prompt, row[side])
        for name in ("margin", "chosen_safe", "rejected_safe", "probability"):
            if row[name] is None:
                del row[name]
        return row

    @property
    def is_tie(self) -> bool:
        """Returns whether both answers are the same text, which says nothing."""
        one, other = (a.strip() if isinstance(a, str) else a for a in (self.chosen, self.rejected))
        return one == other

    @classmethod
    def from_row(cls, row: dict[str, Any], where: str = "preference") -> "Preference":
        """Reads a TRL row (text or messages); unknown columns are ignored, and null means missing.

        Turns that both answers share belong to the prompt, see `shfcas.data.formats.split_prompt`.

        Raises:
            UserError: a column is missing or malformed; the message names the row.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {name: value for name, value in row.items() if name in known and value is not None}
        for name in ("chosen", "rejected"):
            if name not in row:
                raise missing_column(name, row, where)
            if not _is_answer(values.get(name)):
                raise UserError(f"{where}, {name}: expected text or a list with an assistant message")
        values["prompt"], values["chosen"], values["rejected"] = split_prompt(
            normalised(values.get("prompt")), values["chosen"], values["rejected"]
        )
        if values["prompt"] is None and "prompt" not in row:
            raise missing_column("prompt", row, where)
        values["prompt"] = check_prompt(values["prompt"], where)
        if values.get("source", "original") not in SOURCES:
            raise UserError(f"{where}, source: {values['source']!r} is not one of {', '.join(SOURCES)}")
        for name, check in _CHECKS.items():
            if name in values:
                values[name] = check(values[name], f"{where}, {name}")
        return cls(**values)


def _is_answer(answer: Any) -> bool:
    """Returns whether an answer is text, or messages of which one is the assistant's."""
    if isinstance(answer, str):
        return True
    turns = normalised(answer)
    return are_messages(turns) and any(turn["role"] == "assistant" for turn in turns)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _margin(value: Any, where: str) -> float:
    if not _is_number(value) or value < 0:
        raise UserError(f"{where}: expected a number of at least 0 (how much better), or null, got {value!r}")
    return float(value)


def _whole(value: Any, where: str) -> int:
    if not _is_number(value) or value != int(value):
        raise UserError(f"{where}: expected a whole number, got {value!r}")
    return int(value)


def _round(value: Any, where: str) -> int:
    if _whole(value, where) < 0:
        raise UserError(f"{where}: expected 0 (before the first round) or the number of a round, got {value!r}")
    return int(value)


def _safety(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{where}: expected true or false, or null if unknown, got {value!r}")
    return value


def _probability(value: Any, where: str) -> float:
    if not _is_number(value) or not 0 <= value <= 1:
        raise UserError(f"{where}: expected a probability from 0 to 1, or null for a verdict, got {value!r}")
    return float(value)


def _text(value: Any, where: str) -> str:
    return str(value)


_CHECKS = {
    "margin": _margin,
    "round": _round,
    "chosen_index": _whole,
    "rejected_index": _whole,
    "chosen_safe": _safety,
    "rejected_safe": _safety,
    "probability": _probability,
    "prompt_id": _text,
    "annotator": _text,
}


def write_preferences(path: str | Path, preferences: Iterable[Preference]) -> None:
    """Writes preferences as JSON lines, atomically."""
    write_jsonl(path, (preference.to_row() for preference in preferences))


def read_preferences(path: str | Path, columns: Columns | None = None) -> list[Preference]:
    """Reads preferences in TRL's format, or in another layout of `shfcas.data.formats`; errors name the row.

    Ties, and pairs whose answers are the same text, are left out with a warning.

    Args:
        path: see `shfcas.data.reading.read_rows`.
        columns: names of the columns in the user's data, by ours.
    """
    found, ties = [], 0
    for index, given in enumerate(read_rows(path, (columns or {}).values())):
        row = preference_row(given, columns)
        preference = None if row is None else Preference.from_row(row, f"{path}: row {index}")
        if preference is None or preference.is_tie:
            ties += 1
        else:
            found.append(preference)
    if ties:
        total = ties + len(found)
        logger.warning("%s: %d of %d pairs are ties or twice the same answer, and left out", path, ties, total)
    return found


def merge(*groups: Sequence[Preference]) -> list[Preference]:
    """Joins preference sets in ascending order of trust.

    For each pair of answers of a prompt, only the labels of the most trusted group are kept, so a new label replaces
    an old one. Within a group, each distinct label is kept once.
    """
    kept: dict[tuple[str, frozenset[str]], list[Preference]] = {}
    for group in groups:
        fresh: dict[tuple[str, frozenset[str]], list[Preference]] = {}
        for preference in group:
            answers = frozenset(map(answer_key, (preference.chosen, preference.rejected)))
            judged = fresh.setdefault((prompt_key(preference.prompt), answers), [])
            if all(preference.chosen != other.chosen for other in judged):
                judged.append(preference)
        kept.update(fresh)
    return [preference for judged in kept.values() for preference in judged]
