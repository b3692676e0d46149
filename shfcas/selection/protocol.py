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
    """

    prompt_id: str
    first: int
    second: int


class Strategy(NamedTuple):
    """Acquisition strategy.

    Attributes:
        comparisons: function of row, bounds, seed and `settings` (as keywords) that returns a row's comparisons with
            their priorities.
        bounds: thresholds by their names in `SelectionConfig`. Each has a function of row and earlier bounds that
            returns a row's values for a quantile.
        needs: columns that it reads in addition to `prompt_id`, `pacs` and `degenerate`.
        settings: fields of `SelectionConfig` that it takes.
    """

    comparisons: Callable[..., Ranked]
    bounds: Mapping[str, Callable[[Row, Bounds], Iterable[float]]] = {}
    needs: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
