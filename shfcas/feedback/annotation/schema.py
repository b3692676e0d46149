"""What people are asked and what they answer: items, judgements, verdicts."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shfcas.data.candidates import CandidateTable
from shfcas.data.chat import Prompt
from shfcas.data.preferences import Preference
from shfcas.selection import Comparison
from shfcas.utils.errors import UserError

CHOICES = ("first", "second", "tie", "both_bad", "skip", "flag", "undo")
PREFERRED = ("first", "second")
ANSWERED = (*PREFERRED, "tie", "both_bad")
STRENGTHS = ("slightly", "clearly")
SIDES = ("first", "second")


@dataclass(frozen=True)
class Item:
    """One comparison of a queue, with the texts as people read them.

    Attributes:
        id: stable: the same for the same queue, prompt and answers.
        queue: where in the run directory the queue lies, such as `round-1`.
        round: the round in which it is asked.
        position: its place in the queue, from 0; the most wanted first.
        prompt_id: the prompt.
        first: position of one answer among the prompt's completions.
        second: position of the other.
        prompt: text, or chat messages.
        first_text: the answer at `first`.
        second_text: the answer at `second`.
        why: what the item was chosen by, shown only after it was answered: `kendall_distance` and `mean_abs_pacs`
            of the prompt; `pacs`, `rewards` and `logprobs` as [first, second]; whichever the table has as
            finite numbers.
    """

    id: str
    queue: str
    round: int
    position: int
    prompt_id: str
    first: int
    second: int
    prompt: Prompt
    first_text: str
    second_text: str
    why: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """One row of the log. Rows are added and never changed; an undo is a row of its own.

    Attributes:
        id: made by whoever asks for the row to be written (a UUID); the same id is written once.
        item: the item's id.
        annotator: who.
        choice: `first` or `second` is better, `tie`, `both_bad`, `skip`, `flag` (not to be asked), or `undo`.
        left: which answer stood on the left: `first` or `second`.
        strength: `slightly` or `clearly` better, or None; only with `first` and `second`.
        comment: what the annotator wrote.
        seconds: how long the item was looked at, or None.
        repeat: whether the annotator had answered the item before and was asked again.
        undoes: for `undo`, the id of the judgement that no longer counts.
        page_version: the version of the page, or the name of the format that it was imported from.
        time: when the row was written, UTC, ISO 8601; the store fills it in where it is empty.
    """

    id: str
    item: str
    annotator: str
    choice: str
    left: str = "first"
    strength: str | None = None
    comment: str = ""
    seconds: float | None = None
    repeat: bool = False
    undoes: str | None = None
    page_version: str = ""
    time: str = ""


def item_id(queue: str, prompt_id: str, first: int, second: int) -> str:
    """The id of a comparison: 16 hexadecimal digits of a hash."""
    text = json.dumps([queue, prompt_id, first, second])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_items(comparisons: Sequence[Comparison], candidates: CandidateTable, queue: str, round: int) -> list[Item]:
    """The items of a queue, with texts and reasons from the candidate table.

    Raises:
        UserError: the table lacks a prompt or an answer that the queue asks about.
    """
    rows = rows_asked_about(comparisons, candidates)
    items = []
    for position, c in enumerate(comparisons):
        row = rows[c.prompt_id]
        why = {name: row[name] for name in ("kendall_distance", "mean_abs_pacs") if _is_number(row.get(name))}
        for name in ("pacs", "rewards", "logprobs"):
            values = row.get(name)
            if values is not None and _is_number(values[c.first]) and _is_number(values[c.second]):
                why[name] = [values[c.first], values[c.second]]
        items.append(
            Item(
                id=item_id(queue, c.prompt_id, c.first, c.second),
                queue=queue,
                round=round,
                position=position,
                prompt_id=c.prompt_id,
                first=c.first,
                second=c.second,
                prompt=row["prompt"],
                first_text=row["completions"][c.first],
                second_text=row["completions"][c.second],
                why=why,
            )
        )
    return items


def _is_number(value: Any) -> bool:
    """Whether it can be shown: neither missing, nor NaN, nor infinite."""
    return value is not None and math.isfinite(value)


def rows_asked_about(comparisons: Sequence[Comparison], candidates: CandidateTable) -> dict[str, dict[str, Any]]:
    """The rows of the prompts in question, by prompt_id.

    Raises:
        UserError: the table lacks a prompt or an answer that the queue asks about.
    """
    rows = {row["prompt_id"]: row for row in candidates.rows()}
    for c in comparisons:
        if c.prompt_id not in rows:
            raise UserError(f"the queue asks about prompt {c.prompt_id!r}, which the candidate table does not have")
        answers = len(rows[c.prompt_id]["completions"])
        if not (0 <= c.first < answers and 0 <= c.second < answers):
            raise UserError(
                f"the queue compares answers {c.first} and {c.second} of prompt {c.prompt_id!r}, "
                f"which has {answers} answers in the candidate table"
            )
    return {c.prompt_id: rows[c.prompt_id] for c in comparisons}


def make_preference(
    row: dict[str, Any], chosen: int, rejected: int, *, source: str, annotator: str, round: int
) -> Preference:
    """The preference for one answer of a table's row over another."""
    return Preference(
        prompt=row["prompt"],
        chosen=row["completions"][chosen],
        rejected=row["completions"][rejected],
        prompt_id=row["prompt_id"],
        chosen_index=chosen,
        rejected_index=rejected,
        source=source,
        annotator=annotator,
        round=round,
    )
