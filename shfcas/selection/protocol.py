"""What a strategy is: a pure function of one row that gives comparisons of its answers a priority."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from shfcas.errors import UserError

Row = dict[str, Any]
Bounds = dict[str, float]
Priority = Any  # what compares: the least is asked first; unique among the comparisons of a table
Ranked = Iterable[tuple[Priority, "Comparison"]]

ENSEMBLE = (
    "score with an ensemble of reward models: shfcas train-reward --ensemble_size 5 trains one, "
    "and shfcas score --reward_model adds the column"
)
MAKERS = {
    "pacs": "shfcas score adds it",
    "degenerate": "shfcas score adds it",
    "kendall_distance": "shfcas score adds it",
    "mean_abs_pacs": "shfcas score adds it",
    "rewards": "shfcas score --reward_model MODEL adds it",
    "reward_variances": ENSEMBLE,
    "member_rewards": ENSEMBLE,
}
ALWAYS = ("prompt_id", "pacs", "degenerate")


@dataclass(frozen=True)
class Comparison:
    """A question to an annotator: which of two answers of a prompt is better.

    Attributes:
        prompt_id: the prompt.
        first: position of one answer among the prompt's completions.
        second: position of the other.
    """

    prompt_id: str
    first: int
    second: int


class Strategy(NamedTuple):
    """How comparisons are chosen.

    Attributes:
        comparisons: a row's comparisons with their priorities, from the row, the bounds and the seed; `settings`
            come by keyword.
        bounds: thresholds by their names in `SelectionConfig`, each with the values of a row that a quantile is
            taken over, from the row and the bounds before it.
        needs: columns that it reads besides `prompt_id`, `pacs` and `degenerate`.
        settings: fields of `SelectionConfig` that it is given.
    """

    comparisons: Callable[..., Ranked]
    bounds: Mapping[str, Callable[[Row, Bounds], Iterable[float]]] = {}
    needs: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


def is_usable(row: Row, columns: Iterable[str] = ()) -> bool:
    """Whether a prompt's conflict means something: not degenerate, at least two answers, no number missing.

    Args:
        row: a prompt.
        columns: further columns with a number, or a list of numbers, for each answer.

    Raises:
        UserError: such a column has another length than the answers.
    """
    if row["degenerate"] or len(row["pacs"]) < 2 or not all(map(math.isfinite, row["pacs"])):
        return False
    return all(_is_finite(row, name) for name in columns)


def _is_finite(row: Row, name: str) -> bool:
    values = row[name]
    if not isinstance(values, list):  # a number of the prompt, which follows from those of its answers
        return True
    if len(values) != len(row["pacs"]):
        raise UserError(
            f"prompt {row['prompt_id']!r}: {len(values)} values in column {name} for {len(row['pacs'])} answers"
        )
    return all(all(map(math.isfinite, v)) if isinstance(v, list) else math.isfinite(v) for v in values)


def check_columns(names: Iterable[str], present: Iterable[str], strategy: str) -> None:
    """Says which column a table, or a row of it, lacks, and how to get it."""
    present = set(present)
    for name in names:
        if name not in present:
            maker = MAKERS.get(name) or f"it has {', '.join(sorted(present))}"
            raise UserError(f"strategy {strategy}: the table has no column {name}; {maker}")
