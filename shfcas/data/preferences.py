"""Pairwise preferences: one record per labelled comparison, in TRL's explicit-prompt format, with provenance."""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.data.messages import Prompt, check_prompt
from shfcas.utils.callables import is_callable_name, load_callable
from shfcas.utils.errors import UserError
from shfcas.utils.files import read_jsonl, read_parquet, write_jsonl

SOURCES = ("human", "gold", "judge", "original")


@dataclass(frozen=True)
class Preference:
    """One answer preferred over another.

    Attributes:
        prompt: text, or chat messages.
        chosen: the better answer, as text.
        rejected: the worse answer, as text.
        margin: how much better the chosen answer is; None if no strength was given.
        prompt_id: the prompt's id in the candidate table.
        chosen_index: position of the chosen answer among the prompt's completions (-1: not from a table).
        rejected_index: position of the rejected answer.
        source: source of the label: `human`, `gold`, `judge`, or `original` for the user's own data.
        annotator: name of the person or model.
        round: round of the label (0: before the first round).
        chosen_safe: whether the chosen answer is safe, None if not labelled; training data of a cost model.
        rejected_safe: the same for the rejected answer.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    margin: float | None = None
    prompt_id: str = ""
    chosen_index: int = -1
    rejected_index: int = -1
    source: str = "original"
    annotator: str = ""
    round: int = 0
    chosen_safe: bool | None = None
    rejected_safe: bool | None = None

    def to_row(self) -> dict[str, Any]:
        """Returns the record in TRL's format: messages for a conversational prompt, no columns for missing values."""
        row = dataclasses.asdict(self)
        if not isinstance(self.prompt, str):
            for side in ("chosen", "rejected"):
                row[side] = [{"role": "assistant", "content": row[side]}]
        for name in ("margin", "chosen_safe", "rejected_safe"):
            if row[name] is None:
                del row[name]
        return row

    @classmethod
    def from_row(cls, row: dict[str, Any], where: str = "preference") -> "Preference":
        """Reads a TRL row (text or messages); unknown columns are ignored, and null means missing.

        Raises:
            UserError: a column is missing or malformed; the message names the row.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {name: value for name, value in row.items() if name in known and value is not None}
        for name in ("prompt", "chosen", "rejected"):
            if name not in row:
                raise UserError(f"{where}: no {name}; expected the columns prompt, chosen, rejected")
        check_prompt(values.get("prompt"), where)
        for side in ("chosen", "rejected"):
            values[side] = _answer_text(values.get(side), f"{where}, {side}")
        if values.get("source", "original") not in SOURCES:
            raise UserError(f"{where}, source: {values['source']!r} is not one of {', '.join(SOURCES)}")
        for name, check in _CHECKS.items():
            if name in values:
                values[name] = check(values[name], f"{where}, {name}")
        return cls(**values)


def _answer_text(answer: Any, where: str) -> str:
    """Returns the text of an answer given as text, or as a list whose last assistant message is the answer."""
    if isinstance(answer, list):
        contents = [m.get("content") for m in answer if isinstance(m, dict) and m.get("role") == "assistant"]
        answer = contents[-1] if contents else None
    if not isinstance(answer, str):
        raise UserError(f"{where}: expected text or a list with an assistant message")
    return answer


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


def _text(value: Any, where: str) -> str:
    return str(value)


_CHECKS = {
    "margin": _margin,
    "round": _round,
    "chosen_index": _whole,
    "rejected_index": _whole,
    "chosen_safe": _safety,
    "rejected_safe": _safety,
    "prompt_id": _text,
    "annotator": _text,
}


def write_preferences(path: str | Path, preferences: Iterable[Preference]) -> None:
    """Writes preferences as JSON lines, atomically."""
    write_jsonl(path, (preference.to_row() for preference in preferences))


def read_preferences(path: str | Path) -> list[Preference]:
    """Reads TRL's preference format from JSON lines, Parquet or a callable `module:function`; errors name the row.

    A callable returns rows, or `Preference` records.
    """
    if is_callable_name(str(path)):
        made = load_callable(str(path))()
        rows = [p.to_row() if isinstance(p, Preference) else p for p in made]
    elif Path(path).suffix == ".parquet":
        rows = read_parquet(path).to_pylist()
    else:
        rows = read_jsonl(path)
    return [Preference.from_row(row, f"{path}: row {index}") for index, row in enumerate(rows)]


def merge(*groups: Sequence[Preference]) -> list[Preference]:
    """Joins preference sets in ascending order of trust.

    For each pair of answers of a prompt, only the labels of the most trusted group are kept, so a new label replaces
    an old one. Within a group, each distinct label is kept once.
    """
    kept: dict[tuple[str, frozenset[str]], list[Preference]] = {}
    for group in groups:
        fresh: dict[tuple[str, frozenset[str]], list[Preference]] = {}
        for preference in group:
            key = (json.dumps(preference.prompt, sort_keys=True), frozenset((preference.chosen, preference.rejected)))
            judged = fresh.setdefault(key, [])
            if all(preference.chosen != other.chosen for other in judged):
                judged.append(preference)
        kept.update(fresh)
    return [preference for judged in kept.values() for preference in judged]
