"""Performance targets and their measured values, computed from the lines of JSON that the benches print.

python -m benches.targets FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

Results = dict[str, dict[str, Any]]  # by the name of the bench
SHORT = [8, 16, 64]


class Target(NamedTuple):
    """Bound for the worst of some cases; one thread and float32 unless the cases say otherwise."""

    what: str
    relation: str  # ">=" or "<="
    bound: float
    bench: str
    cases: dict[str, Any]  # facts of the cases; a list contains alternatives
    measure: Callable[[dict[str, Any]], float | None]
    """Value of a case; None if the rival was not installed."""

    def measured(self, results: Results) -> float | None:
        """Returns the worst value of the cases; None without cases."""
        facts = {"threads": 1, "dtype": "float32"} | self.cases
        cases = results.get(self.bench, {}).get("cases", [])
        meant = [c for c in cases if all(_is(c.get(key), fact) for key, fact in facts.items())]
        values = [value for value in map(self.measure, meant) if value is not None]
        return (min if self.relation == ">=" else max)(values, default=None)

    def reached(self, value: float) -> bool:
        """Returns whether the bound holds."""
        return value >= self.bound if self.relation == ">=" else value <= self.bound


def column(name: str) -> Callable[[dict[str, Any]], float | None]:
    """Returns a measure that reads a column of the case, if it exists."""
    return lambda case: case.get(name)


def speed_of_other(case: dict[str, Any]) -> float:
    """Returns the speed as a fraction of the speed of the compared job."""
    return 1 / case["times as long"]


def microseconds(case: dict[str, Any]) -> float:
    return case["ms"] * 1e3


def percent_of_logits(case: dict[str, Any]) -> float:
    return 100 * case["MB"] / case["logits MB"]


def _kendall(what: str, relation: str, bound: float, name: str, **cases: Any) -> Target:
    return Target(f"kendall_counts, {what}", relation, bound, "kendall", cases, column(name))


def _rows(what: str, bound: float, name: str, **cases: Any) -> Target:
    return _kendall(what, ">=", bound, name, case="kendall_counts", **cases)


def _pacs(what: str, relation: str, bound: float, name: str, **cases: Any) -> Target:
    return Target(what, relation, bound, "pacs", cases, column(name))


def _data(relation: str, bound: float, name: str) -> Target:
    cases = {"case": "data", "way": "shfcas, 8 at once", "threads": 2}
    return Target(
        f"a round's data, 8 answers at once, relative to one at a time: {name}",
        relation,
        bound,
        "training",
        cases,
        column(name),
    )


def _threads(bench: str, op: str, **cases: Any) -> Target:
    return Target(f"{op}: two threads, times one", ">=", 1.7, bench, {"threads": 2, **cases}, speed_of_other)


def _tables(what: str, relation: str, bound: float, name: str) -> Target:
    """Returns a target for tables that take long compared to the start of Python and its libraries."""
    cases = {"case": "score", "answers": [10**7, 10**8], "threads": None, "dtype": None}
    return Target(f"shfcas score, at least 10^7 answers: {what}", relation, bound, "table", cases, column(name))


LONGER = "times as long"
JAGGED = ["jagged, one length", "jagged, 1 to 2 N - 1"]

TARGETS = [
    _rows("N = 8: times torch.compile", 5, "x torch.compile", N=8),
    _rows("N = 8: bytes/s, relative to torch.sub", 0.5, "of torch.sub", N=8),
    _rows("N = 16, no ties: times torch.compile", 5, "x torch.compile", N=16, ties="no"),
    _rows("N = 64, no ties: times torch.compile", 8, "x torch.compile", N=64, ties="no"),
    _rows("N = 64, ties: times torch.compile", 4.5, "x torch.compile", N=64, ties="yes"),
    Target(
        "kendall_counts, N = 64, ties: speed, relative to no ties",
        ">=",
        0.6,
        "kendall",
        {"case": "ties", "N": 64},
        speed_of_other,
    ),
    _rows("N = 1024: times hyper-corr", 12, "x hyper-corr", N=1024),
    _rows("N = 1024: times a loop over scipy", 55, "x scipy loop", N=1024),
    _kendall("from N = 64 to 65: time of a row", "<=", 1.3, LONGER, case="border", N=65),
    _kendall("from N = 256 to 257: time of a row", "<=", 1.3, LONGER, case="border", N=257),
    _kendall("from N = 1024 to 1025: time of a row", "<=", 1.3, LONGER, case="border", N=1025),
    _kendall("N = 1e6, no ties: times scipy", ">=", 6, "x scipy", case="one row", N=1_000_000, ties="no"),
    _kendall("N = 1e6, no ties: times hyper-corr", ">=", 5, "x hyper-corr", case="one row", N=1_000_000, ties="no"),
    _kendall("N = 1e6, 30 values: times hyper-corr", ">=", 2, "x hyper-corr", case="one row", N=1_000_000, ties="yes"),
    _kendall("jagged: time, relative to as many dense rows", "<=", 1.3, LONGER, case=JAGGED),
    _kendall("float64: time, relative to float32", "<=", 2.2, LONGER, case="float64", dtype="float64"),
    Target("kendall_counts: a call on 1 x 8 from Python, µs", "<=", 10, "kendall", {"case": "one call"}, microseconds),
    Target(
        "kendall_tau_matrix, 500 x 1000 float64, no ties: times pandas",
        ">=",
        60,
        "matrix",
        {"case": "kendall_tau_matrix", "M": 500, "dtype": "float64", "ties": "no"},
        column("x pandas"),
    ),
    Target(
        "kendall_tau_matrix, 500 x 1000 float64, ties: time, relative to no ties",
        "<=",
        3,
        "matrix",
        {"case": "ties", "M": 500, "dtype": "float64"},
        column(LONGER),
    ),
    _pacs("pacs, N = 8, 16, 64: times torch.compile", ">=", 4, "x torch.compile", case="pacs", N=SHORT),
    _pacs("pacs, N = 8: bytes/s, relative to torch.sub", ">=", 0.5, "of torch.sub", case="pacs", N=8),
    _pacs("pacs, N = 16: bytes/s, relative to torch.sub", ">=", 0.65, "of torch.sub", case="pacs", N=16),
    _pacs("pacs, N = 64: bytes/s, relative to torch.sub", ">=", 0.9, "of torch.sub", case="pacs", N=64),
    _pacs("pacs, jagged: time, relative to as many dense rows", "<=", 1.3, LONGER, case=JAGGED),
    _pacs("pacs, float64: time, relative to float32", "<=", 2.2, LONGER, case="float64", dtype="float64"),
    _pacs("conflict_scores: time, relative to its slower part", "<=", 1.25, LONGER, case="conflict_scores, parts"),
    Target(
        "pacs, conflict_scores: a call on 1 x 8 from Python, µs", "<=", 10, "pacs", {"case": "one call"}, microseconds
    ),
    Target(
        "sequence_logprobs, forward: times log_softmax and gather",
        ">=",
        2,
        "logprobs",
        {"case": "forward"},
        column("x log_softmax"),
    ),
    Target(
        "sequence_logprobs, forward: memory, % of the logits",
        "<=",
        2,
        "logprobs",
        {"case": "forward"},
        percent_of_logits,
    ),
    Target(
        "token_logprobs, forward: times TRL's selective_log_softmax",
        ">=",
        2,
        "logprobs",
        {"case": "token_logprobs, forward"},
        column("x trl"),
    ),
    Target(
        "linear_token_logprobs, forward and backward: memory, % of the logits",
        "<=",
        20,
        "logprobs",
        {"case": "linear_token_logprobs"},
        percent_of_logits,
    ),
    _data(">=", 4, "times as fast"),
    _data("<=", 1, "times the MB"),
    _tables("MB at the peak", "<=", 1000, "MB"),
    _tables("speed, relative to pyarrow alone", ">=", 0.6, "speed, of pyarrow alone"),
    _threads("kendall", "kendall_counts", case="threads"),
    _threads("pacs", "pacs", case="threads"),
    _threads("matrix", "kendall_tau_matrix", case="threads", dtype="float64"),
    _threads("logprobs", "sequence_logprobs", case="threads"),
]


def rows(results: Results) -> Iterator[tuple[str, str, str, str]]:
    """Yields name, target, measured value and outcome of each target."""
    for target in TARGETS:
        value = target.measured(results)
        outcome = "not measured" if value is None else "reached" if target.reached(value) else "not reached"
        sign = {">=": "≥", "<=": "≤"}[target.relation]
        yield target.what, f"{sign} {target.bound:g}", "" if value is None else f"{value:.3g}", outcome


def read(folder: Path) -> Results:
    """Reads the lines of JSON in a folder, by name of the bench."""
    lines = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return {line["bench"]: line for line in lines}


def _is(value: Any, fact: Any) -> bool:
    return value in fact if isinstance(fact, list) else value == fact


if __name__ == "__main__":
    for what, bound, measured, outcome in rows(read(Path(sys.argv[1]))):
        print(f"{what:<70} {bound:>8} {measured:>8}  {outcome}")
