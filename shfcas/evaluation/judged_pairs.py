"""Judged pairs of answers, and the signals that may reveal errors of the reward model."""

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from shfcas.data.messages import prompt_key
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
    "opposition": "PACS of the answer that the reward model prefers, minus that of the other",
    "small_margin": "small reward margin (the reward model's own uncertainty)",
}
CONFLICT = ("kendall_distance", "abs_pacs", "opposition")


@dataclass(frozen=True)
class JudgedSample:
    """Prompts with judged pairs of their answers.

    Attributes:
        rows: rows with `prompt_id`, `prompt`, `completions`, and other columns where they are known; each has a pair.
        pairs: of each pair, the position of its row, and those of the better and the worse answer.
    """

    rows: Sequence[Row]
    pairs: Sequence[tuple[int, int, int]]

    @cached_property
    def prompts(self) -> np.ndarray:
        """Returns the position of each pair's row, shape (n,), int."""
        return np.array([row for row, _, _ in self.pairs], int)

    @classmethod
    def of_answers(cls, pairs: Iterable[tuple[Row, int, int]]) -> "JudgedSample":
        """Makes a sample from rows and the positions of their better and worse answers."""
        rows: list[Row] = []
        places: dict[int, int] = {}
        found = []
        for row, better, worse in pairs:
            if id(row) not in places:
                places[id(row)] = len(rows)
                rows.append(row)
            found.append((places[id(row)], better, worse))
        return cls(rows, found)

    @classmethod
    def of_texts(cls, preferences: Iterable[Preference], *, prompts: int, seed: int = 0) -> "JudgedSample":
        """Makes a sample from preferences alone, whatever table their answers come from.

        Args:
            preferences: preferences; those of one prompt become one row.
            prompts: number of prompts to draw. The draw does not depend on the order of the preferences.
            seed: seed of the draw.
        """
        groups: dict[str, list[Preference]] = {}
        for p in preferences:
            groups.setdefault(prompt_key(p.prompt), []).append(p)
        drawn = heapq.nsmallest(prompts, groups, key=lambda text: derive_seed("diagnose", seed, text, bits=64))
        rows, pairs = [], []
        for number, text in enumerate(drawn):
            group = groups[text]
            answers = list(dict.fromkeys(answer for p in group for answer in (p.chosen, p.rejected)))
            name = group[0].prompt_id or f"preference {number}"
            rows.append({"prompt_id": name, "prompt": group[0].prompt, "completions": answers})
            pairs += [(number, answers.index(p.chosen), answers.index(p.rejected)) for p in group]
        return cls(rows, pairs)


@dataclass(frozen=True)
class JudgedPairs:
    """Judged pairs of answers, n in all.

    Attributes:
        prompts: index of each pair's prompt, shape (n,), int.
        wrong: True where the reward model prefers the worse answer, shape (n,), bool.
        signals: the signals by their names in `SIGNALS`, shape (n,) each; a higher value suggests an error.
        groups: each pair's value of the `group_by` column as text, shape (n,); empty text without `group_by`.
        left_out: number of pairs left out, by reason.
        sample: the judged pairs with their rows, also of degenerate prompts and with equal rewards.
    """

    prompts: np.ndarray
    wrong: np.ndarray
    signals: dict[str, np.ndarray]
    groups: np.ndarray
    left_out: dict[str, int]
    sample: JudgedSample

    def __len__(self) -> int:
        return len(self.wrong)


def from_preferences(
    rows: Iterable[Row], preferences: Sequence[Preference], group_by: str | None = None
) -> JudgedPairs:
    """Makes pairs from preferences of annotators or a judge.

    Args:
        rows: rows of a scored table with the columns in `NEEDED`; iterated once.
        preferences: matched by prompt id and the answers' texts, or by all texts.
        group_by: a column of the table.

    Raises:
        UserError: no preference is about answers in the table.
    """
    sample, missing = match(rows, preferences)
    if not sample.pairs:
        raise UserError(f"none of the {len(preferences)} preferences is about answers in the table")
    return _collect(sample, group_by, {"not in the table": len(missing)})


def match(rows: Iterable[Row], preferences: Sequence[Preference]) -> tuple[JudgedSample, list[Preference]]:
    """Finds the answers that preferences are about; returns them, and the preferences about other answers.

    Args:
        rows: rows of a table; iterated once.
        preferences: matched by prompt id and the answers' texts, or by all texts.
    """
    ids = {p.prompt_id for p in preferences if p.prompt_id}
    texts = {prompt_key(p.prompt) for p in preferences}
    known: dict[str, Row] = {}
    for row in rows:
        text = prompt_key(row["prompt"])
        if row["prompt_id"] in ids or text in texts:
            known[f"id {row['prompt_id']}"] = known[f"text {text}"] = row
    pairs, missing = [], []
    for p in preferences:
        for key in (f"id {p.prompt_id}", f"text {prompt_key(p.prompt)}"):
            row = known.get(key, {})
            answers = row.get("completions", [])
            if p.chosen in answers and p.rejected in answers:
                pairs.append((row, answers.index(p.chosen), answers.index(p.rejected)))
                break
        else:
            missing.append(p)
    return JudgedSample.of_answers(pairs), missing


def from_gold(
    rows: Iterable[Row], gold: RewardScorer | None, *, prompts: int, seed: int = 0, group_by: str | None = None
) -> JudgedPairs:
    """Makes all pairs with unequal gold rewards from a sample of prompts. Pairs without gold rewards are left out.

    The sample does not depend on the order of the rows or their files.

    Args:
        rows: rows of a scored table with the columns in `NEEDED`; iterated once.
        gold: the gold reward; None reads the column `gold`.
        prompts: number of prompts to draw.
        seed: seed of the draw.
        group_by: a column of the table.

    Raises:
        UserError: there is no gold reward, or not one for each answer.
    """
    drawn = heapq.nsmallest(prompts, rows, key=lambda row: derive_seed("diagnose", seed, row["prompt_id"], bits=64))
    if gold is None and drawn and "gold" not in drawn[0]:
        raise UserError("gold: missing; set preferences or gold, or give a table with a column gold")
    known = [_gold(row) for row in drawn] if gold is None else score_rows(gold, drawn)
    pairs, left_out = [], {"equal gold": 0, "no gold": 0}
    for drawn_row, values in zip(drawn, known, strict=True):
        row = {**drawn_row, "gold": values}
        for one, other in combinations(range(len(values)), 2):
            if not (math.isfinite(values[one]) and math.isfinite(values[other])):
                left_out["no gold"] += 1
            elif values[one] == values[other]:
                left_out["equal gold"] += 1
            else:
                pairs.append((row, one, other) if values[one] > values[other] else (row, other, one))
    return _collect(JudgedSample.of_answers(pairs), group_by, left_out)


def _gold(row: Row) -> list[float]:
    """Returns the column `gold` of a row, with NaN for missing values."""
    values = row["gold"] if row["gold"] is not None else [None] * len(row["completions"])
    if not isinstance(values, list) or len(values) != len(row["completions"]):
        raise UserError(
            f"prompt {row['prompt_id']!r}: gold: expected a list of {len(row['completions'])} numbers, one per answer"
        )
    return [math.nan if value is None else value for value in values]


def _collect(sample: JudgedSample, group_by: str | None, left_out: dict[str, int]) -> JudgedPairs:
    """Makes arrays of the pairs that can be right or wrong."""
    left_out = {"degenerate prompt": 0, "equal rewards": 0, **left_out}

    def usable() -> Iterator[tuple[Row, int, int]]:
        for place, better, worse in sample.pairs:
            row = sample.rows[place]
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
        raise UserError(f"group_by: expected a column of the table, got {group_by}")
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
        sample=sample,
    )
