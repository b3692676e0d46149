"""Usable rows of a strategy: rows that have its columns and a meaningful conflict."""

import math
from collections.abc import Iterable, Iterator
from itertools import chain

from shfcas.selection.protocol import Row, Strategy
from shfcas.utils.errors import UserError

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
    "reward_variances": f"{ENSEMBLE}; or score one model with --uncertainty laplace",
    "member_rewards": f"{ENSEMBLE}; or score one model with --uncertainty laplace --uncertainty_members 10",
}
ALWAYS = ("prompt_id", "pacs", "degenerate")
NUMBERS = ("rewards", "reward_variances", "member_rewards")  # per answer; PACS does not show a NaN in them


def is_usable(row: Row) -> bool:
    """Returns whether a prompt's conflict is meaningful: not degenerate, no NaN, at least two answers."""
    pacs = row["pacs"]  # a NaN or an infinity makes the sum not finite
    return not row["degenerate"] and len(pacs) > 1 and math.isfinite(sum(pacs))


def check_columns(strategy: str, names: Iterable[str], present: Iterable[str]) -> None:
    """Checks that a table or row has the columns; the error names the command that adds a missing one."""
    present = set(present)
    for name in names:
        if name not in present:
            maker = MAKERS.get(name) or f"it has {', '.join(sorted(present))}"
            raise UserError(f"strategy {strategy}: the table has no column {name}; {maker}")


class UsableRows:
    """Iterable over the rows of a table that a strategy can use.

    Args:
        rows: all rows.
        name: the strategy's name, for errors.
        strategy: strategy with the needed columns.
        further: other columns that every row must have.

    Attributes:
        seen: number of rows in the last complete pass.
        skipped: number of these rows that were not usable.
        checked: whether a pass has found every column in every row, so that later passes skip the check.
    """

    def __init__(self, rows: Iterable[Row], name: str, strategy: Strategy, further: Iterable[str] = ()) -> None:
        self.rows, self.name = rows, name
        self.needed = (*ALWAYS, *strategy.needs, *further)
        self.numbers = tuple(column for column in strategy.needs if column in NUMBERS)
        self.seen = self.skipped = 0
        self.checked = False

    def __iter__(self) -> Iterator[Row]:
        """Yields the usable rows.

        Raises:
            UserError: a row lacks a column or has null there, or the length of a column is not the number of answers.
        """
        needed, numbers = () if self.checked else self.needed, self.numbers
        seen = skipped = 0
        for row in self.rows:
            seen += 1
            if needed and None in map(row.get, needed):
                check_columns(self.name, needed, row)
                name = next(name for name in needed if row[name] is None)
                raise UserError(f"prompt {row['prompt_id']!r}, column {name}: null; {MAKERS.get(name, 'set a value')}")
            try:
                usable = is_usable(row) and (not numbers or _is_complete(row, numbers))
            except TypeError:  # arithmetic with None
                for name in ("pacs", *numbers):
                    if None in row[name] or any(isinstance(v, list) and None in v for v in row[name]):
                        raise UserError(f"prompt {row['prompt_id']!r}, column {name}: a value is null") from None
                raise
            texts = row.get("completions")
            if texts is not None and len(texts) != len(row["pacs"]):
                raise UserError(
                    f"prompt {row['prompt_id']!r}, column pacs: {len(row['pacs'])} values for {len(texts)} completions"
                )
            if usable:
                yield row
            else:
                skipped += 1
        self.seen, self.skipped, self.checked = seen, skipped, True


def _is_complete(row: Row, columns: Iterable[str]) -> bool:
    """Returns whether all values of these columns are finite."""
    for name in columns:
        values = row[name]
        if len(values) != len(row["pacs"]):
            raise UserError(
                f"prompt {row['prompt_id']!r}, column {name}: expected {len(row['pacs'])} values, got {len(values)}"
            )
        flat = chain.from_iterable(values) if isinstance(values[0], list) else values
        if not all(map(math.isfinite, flat)):
            return False
    return True
