"""What a strategy is: a pure function of one row that gives comparisons of its answers a priority."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

Row = dict[str, Any]
Bounds = dict[str, float]
Priority = Any  # what compares: the least is asked first; unique among the comparisons of a table
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
