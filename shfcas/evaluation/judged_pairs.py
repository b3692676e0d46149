"""Pairs of answers of which somebody said which is better, and what might have told that the reward model errs."""

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from shfcas.data.chat import plain_text
from shfcas.data.preferences import Preference
from shfcas.rewards.scorers import RewardScorer
from shfcas.rewards.table import score_rows
from shfcas.utils.errors import UserError
from shfcas.utils.seeds import derive_seed

Row = dict[str, Any]
NEEDED = ("prompt_id", "prompt", "completions", "rewards", "pacs", "kendall_distance", "degenerate")
SIGNALS = {
    "kendall_distance": "Kendall distance of the prompt",
    "abs_pacs": "mean abs(PACS) of the two answers",
    "opposition": "PACS of the answer that the reward model prefers, less that of the other",
    "small_margin": "small reward margin (the reward model's own uncertainty)",
}
CONFLICT = ("kendall_distance", "abs_pacs", "opposition")


@dataclass(frozen=True)
class JudgedPairs:
    """Judged pairs of n answers to some prompts.

    Attributes:
        prompts: the number of each pair's prompt, shape (n,).
        wrong: whether the reward model prefers the other answer, shape (n,).
        signals: by the names of `SIGNALS`, what might tell, the higher the likelier an error, shape (n,) each.
        groups: each pair's value of a column of the prompts, as text, shape (n,); empty where none was asked for.
        left_out: how many pairs were left out, by the reason.
    """

    prompts: np.ndarray
    wrong: np.ndarray
    signals: dict[str, np.ndarray]
    groups: np.ndarray
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.wrong)


def from_preferences(
    rows: Iterable[Row], preferences: Sequence[Preference], group_by: str | None = None
) -> JudgedPairs:
    """Pairs that people or a judge have answered.

    Args:
        rows: of a scored table, gone through once; see `NEEDED`.
        preferences: they are found by prompt id and texts, or by the prompt's text and theirs.
        group_by: a column of the table.

    Raises:
        UserError: no preference is about answers of the table.
    """
    ids = {p.prompt_id for p in preferences if p.prompt_id}
    texts = {plain_text(p.prompt) for p in preferences}
    known: dict[str, Row] = {}
    for row in rows:
        text = plain_text(row["prompt"])
        if row["prompt_id"] in ids or text in texts:
            known[f"id {row['prompt_id']}"] = known[f"text {text}"] = row
    pairs = []
    for p in preferences:
        for key in (f"id {p.prompt_id}", f"text {plain_text(p.prompt)}"):
            found = known.get(key)
            if found and p.chosen in found["completions"] and p.rejected in found["completions"]:
                pairs.append((found, found["completions"].index(p.chosen), found["completions"].index(p.rejected)))
                break
    missing = len(preferences) - len(pairs)
    if not pairs:
        raise UserError(f"none of the {len(preferences)} preferences is about answers of the table")
    return _collect(pairs, group_by, {"not in the table": missing})


def from_gold(
    rows: Iterable[Row], gold: RewardScorer | None, *, prompts: int, seed: int = 0, group_by: str | None = None
) -> JudgedPairs:
    """All pairs with unequal gold of a sample of prompts, which depends on neither the order of rows nor on files.

    Args:
        rows: of a scored table, gone through once; see `NEEDED`.
        gold: the gold reward; None takes the column `gold`.
        prompts: how many to draw.
        seed: of the draw.
        group_by: a column of the table.

    Raises:
        UserError: there is no gold, or another number of values than of answers. Pairs without gold are left out.
    """
    drawn = heapq.nsmallest(prompts, rows, key=lambda row: derive_seed("diagnose", seed, row["prompt_id"], bits=64))
    if gold is None and drawn and "gold" not in drawn[0]:
        raise UserError("who knows better? give preferences, or gold, or a table with a column gold")
    known = [_gold(row) for row in drawn] if gold is None else score_rows(gold, drawn)
    pairs, left_out = [], {"equal gold": 0, "no gold": 0}
    for row, values in zip(drawn, known, strict=True):
        for one, other in combinations(range(len(values)), 2):
            if not (math.isfinite(values[one]) and math.isfinite(values[other])):
                left_out["no gold"] += 1
            elif values[one] == values[other]:
                left_out["equal gold"] += 1
            else:
                pairs.append((row, one, other) if values[one] > values[other] else (row, other, one))
    return _collect(pairs, group_by, left_out)


def _gold(row: Row) -> list[float]:
    """The column `gold` of a row, NaN where there is none."""
    values = row["gold"] if row["gold"] is not None else [None] * len(row["completions"])
    if not isinstance(values, list) or len(values) != len(row["completions"]):
        raise UserError(
            f"prompt {row['prompt_id']!r}: the column gold has to hold a list with one number for each of its "
            f"{len(row['completions'])} answers"
        )
    return [math.nan if value is None else value for value in values]


def _collect(pairs: Sequence[tuple[Row, int, int]], group_by: str | None, left_out: dict[str, int]) -> JudgedPairs:
    """Arrays from rows with the positions of their better and their worse answer."""
    left_out = {"degenerate prompt": 0, "equal rewards": 0, **left_out}

    def usable() -> Iterator[tuple[Row, int, int]]:
        for row, better, worse in pairs:
            if row["degenerate"] or not np.isfinite([*row["pacs"], row["kendall_distance"]]).all():
                left_out["degenerate prompt"] += 1
            elif row["rewards"][better] == row["rewards"][worse]:
                left_out["equal rewards"] += 1
            else:
                yield row, better, worse

    kept = list(usable())
    numbers = {name: i for i, name in enumerate(dict.fromkeys(row["prompt_id"] for row, _, _ in kept))}
    lead = np.array([row["rewards"][b] - row["rewards"][w] for row, b, w in kept])
    pacs = np.array([[row["pacs"][b], row["pacs"][w]] for row, b, w in kept]).reshape(-1, 2)
    if group_by and any(group_by not in row for row, _, _ in kept):
        raise UserError(f"group_by: the table has no column {group_by}")
    return JudgedPairs(
        prompts=np.array([numbers[row["prompt_id"]] for row, _, _ in kept], int),
        wrong=lead < 0,
        signals={
            "kendall_distance": np.array([row["kendall_distance"] for row, _, _ in kept], float),
            "abs_pacs": np.abs(pacs).mean(axis=1),
            "opposition": (pacs[:, 0] - pacs[:, 1]) * np.sign(lead),
            "small_margin": -np.abs(lead),
        },
        groups=np.array([str(row[group_by]) if group_by else "" for row, _, _ in kept]),
        left_out={reason: count for reason, count in left_out.items() if count},
    )
