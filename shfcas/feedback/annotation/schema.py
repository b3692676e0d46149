"""Records of human feedback: items (the comparisons) and judgements (the answers)."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shfcas.data.candidates import CandidateTable
from shfcas.data.messages import Prompt
from shfcas.data.preferences import Preference
from shfcas.selection import Comparison
from shfcas.utils.errors import UserError

CHOICES = ("first", "second", "tie", "both_bad", "skip", "flag", "undo")
PREFERRED = ("first", "second")
ANSWERED = (*PREFERRED, "tie", "both_bad")
STRENGTHS = ("slightly", "clearly")
SIDES = ("first", "second")
KNOWN = "known answers"  # queue of questions whose `first` answer is known to be better


@dataclass(frozen=True)
class Item:
    """One comparison of a queue, with the texts that annotators read.

    Attributes:
        id: stable id. A comparison of the same texts keeps its id when its queue is selected again.
        queue: the queue's place in the run directory, such as `round-1`.
        round: the round of the loop.
        position: rank in the queue, from 0; the highest priority comes first.
        prompt_id: the prompt's id.
        first: position of one answer among the prompt's completions.
        second: position of the other answer.
        prompt: text, or chat messages.
        first_text: text of the answer at `first`.
        second_text: text of the answer at `second`.
        why: the scores behind the selection, shown only after the answer. `kendall_distance` and `mean_abs_pacs`
            belong to the prompt; `pacs`, `rewards` and `logprobs` are [first, second]. Scores that the table lacks,
            and those that are not finite, are left out.
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
        id: UUID chosen by the sender; the store writes the same id only once.
        item: the item's id.
        annotator: the annotator's name.
        choice: `first` or `second` (is better), `tie`, `both_bad`, `skip`, `flag` (unfit to be asked), or `undo`.
        left: the answer on the left: `first` or `second`.
        strength: `slightly` or `clearly` better, or None; only with `first` and `second`.
        comment: the annotator's comment.
        seconds: time that the item was on the screen, or None.
        repeat: True if the annotator answered the item before and was asked again.
        undoes: for `undo`, the id of the judgement that no longer counts.
        page_version: version of the page, or name of the format that the row was imported from.
        time: time of writing, UTC, ISO 8601; the store fills it in where it is empty.
        informed: True if the annotator had looked at why the item was asked; the store knows.
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
    informed: bool = False


def item_id(queue: str, prompt_id: str, first: int, second: int, *texts: str) -> str:
    """Returns the id of a comparison: 16 hexadecimal digits of a hash.

    Args:
        queue: the queue's name.
        prompt_id: the prompt's id.
        first: position of one answer.
        second: position of the other answer.
        texts: prompt and answers, where the queue had other texts at these positions before.
    """
    text = json.dumps([queue, prompt_id, first, second, *texts])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_items(comparisons: Sequence[Comparison], candidates: CandidateTable, queue: str, round: int) -> list[Item]:
    """Makes the items of a queue, with texts and scores from the candidate table.

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
    """Checks that a score can be shown: not missing, NaN or infinite."""
    return value is not None and math.isfinite(value)


def rows_asked_about(comparisons: Sequence[Comparison], candidates: CandidateTable) -> dict[str, dict[str, Any]]:
    """Returns the table rows of the queue's prompts, by prompt_id.

    Raises:
        UserError: the table lacks a prompt or an answer that the queue asks about.
    """
    rows = {row["prompt_id"]: row for row in candidates.rows()}
    for c in comparisons:
        if c.prompt_id not in rows:
            raise UserError(f"the queue asks about prompt {c.prompt_id!r}, which the candidate table lacks")
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
    """Makes the preference for one answer of a table row over another."""
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
