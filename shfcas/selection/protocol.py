"""Protocol of strategies: a strategy is a pure function of one row that assigns priorities to comparisons."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

Row = dict[str, Any]
Bounds = dict[str, float]
Priority = Any  # sortable: the smallest is first; unique among the comparisons of a table
Ranked = Iterable[tuple[Priority, "Comparison"]]


@dataclass(frozen=True)
class Comparison:
    """A question to an annotator: which of two answers of a prompt is better.

    Attributes:
        prompt_id: the prompt.
        first: position of one answer among the prompt's completions.
        second: position of the other.
        audit: whether it is a random pair of the audit, see `SelectionConfig.audit_share`. Annotators do not see it.
    """

    prompt_id: str
    first: int
    second: int
    audit: bool = False

    @property
    def pair(self) -> tuple[str, frozenset[int]]:
        """The prompt and its two answers, in whichever order they are asked about."""
        return self.prompt_id, frozenset((self.first, self.second))

    def to_row(self) -> dict[str, Any]:
        """Returns the comparison as a row of a queue file, where `audit` is written only if it is true."""
        row: dict[str, Any] = {"prompt_id": self.prompt_id, "first": self.first, "second": self.second}
        return row | {"audit": True} if self.audit else row


class Strategy(NamedTuple):
    """Acquisition strategy.

    Attributes:
        comparisons: function of row, bounds, seed and `settings` (as keywords) that returns a row's comparisons with
            their priorities.
        bounds: thresholds by their names in `SelectionConfig`. Each has a function of row and earlier bounds that
            returns a row's values for a quantile.
        needs: columns that it reads in addition to `prompt_id`, `pacs` and `degenerate`.
        settings: fields of `SelectionConfig` that it takes.
        design: whether the comparisons are chosen together from a pool, see `shfcas.selection.design`.
        sequential: whether labels decide what is asked next, so that a table alone cannot be selected from.
    """

    comparisons: Callable[..., Ranked]
    bounds: Mapping[str, Callable[[Row, Bounds], Iterable[float]]] = {}
    needs: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    design: bool = False
    sequential: bool = False
