"""The bench of the page on a tiny load: a real server in a process of its own, and it sees what goes missing."""

import json
from pathlib import Path

import pytest

from benches import annotate
from benches.annotate import Load, check
from benches.bench import Settings, report
from benches.clock import QUICK
from shfcas.feedback.annotation.store import Store


def test_all_is_answered_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report("annotate", annotate.tables([Load("at once", 4, 24, 0.0)], tmp_path), Settings(QUICK, [1], "cpu", []))
    table, last = capsys.readouterr().out.split("\n{", 1)
    assert table.splitlines()[0].split()[:2] == ["case", "people"]
    (case,) = json.loads("{" + last)["cases"]
    assert (case["comparisons"], case["lost"], case["doubled"]) == (24, 0, 0)
    assert 0 < case["p50 ms"] <= case["p95 ms"] <= case["p99 ms"] <= case["max ms"] and case["answers/s"] > 0
    with Store(tmp_path / "0" / "feedback.sqlite") as store:
        assert sorted(j.item for j in store.judgements()) == sorted(item.id for item in store.items("queue"))


@pytest.mark.parametrize(
    ("acknowledged", "written", "answered", "message"),
    [
        (["a", "b"], ["a", "c"], ["x", "y"], "1 acknowledged answers are not in the log"),
        (["a"], ["a", "b"], ["x", "y"], "2 answers in the log, 1 acknowledged"),
        (["a", "b"], ["a", "b"], ["x", "x"], "2 comparisons, 1 of them answered, 2 answers"),
        (["a"], ["a"], ["x"], "2 comparisons, 1 of them answered, 1 answers"),
    ],
)
def test_what_is_lost_or_doubled_stops_the_bench(
    acknowledged: list[str], written: list[str], answered: list[str], message: str
) -> None:
    check(["a", "b"], ["a", "b"], ["x", "y"], ["y", "x"])
    with pytest.raises(SystemExit, match=message):
        check(acknowledged, written, answered, ["x", "y"])
