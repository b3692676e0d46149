"""Which rows of a table are used, how they are counted, and when their columns are checked."""

import math
from typing import Any

import pytest

from shfcas.selection import STRATEGIES, Row, is_usable
from shfcas.selection.usable import UsableRows, check_columns
from shfcas.utils.errors import UserError
from tests.support.selection_rows import full_table, row


def usable(rows: list[Row], name: str = "bald", *further: str) -> UsableRows:
    return UsableRows(rows, name, STRATEGIES[name], further)


def members(prompt_id: str, rewards: list, **columns: Any) -> Row:
    return row(prompt_id, [1.0, -1.0], 0.5, member_rewards=rewards, **columns)


@pytest.mark.parametrize(
    ("pacs", "degenerate", "expected"),
    [
        ([1.0, -1.0], False, True),
        ([1.0, -1.0], True, False),
        ([1.0], False, False),
        ([], False, False),
        ([1.0, math.nan], False, False),
        ([math.inf, 0.0], False, False),
        ([math.inf, -math.inf], False, False),
    ],
)
def test_a_conflict_that_means_something(pacs: list, degenerate: bool, expected: bool) -> None:
    assert is_usable({"pacs": pacs, "degenerate": degenerate}) is expected


def test_rows_are_counted_by_each_complete_pass() -> None:
    rows = full_table(120)
    rows[7] = rows[7] | {"member_rewards": [[math.nan, 1.0, 2.0]] * len(rows[7]["pacs"])}
    found = usable(rows)
    assert (found.seen, found.skipped, found.checked) == (0, 0, False)
    skipped = {"p0", "p50", "p100", "p7"}
    expected = [r["prompt_id"] for r in rows if r["prompt_id"] not in skipped]
    for _ in range(2):
        assert [r["prompt_id"] for r in found] == expected
        assert (found.seen, found.skipped, found.checked) == (120, 4, True)
    begun = usable(rows)
    next(iter(begun))
    assert (begun.seen, begun.skipped, begun.checked) == (0, 0, False)


def test_columns_are_checked_by_the_first_pass_alone() -> None:
    rows = [members("a", [[1.0, 2.0], [0.0, 1.0]], topic="x"), members("b", [[1.0, 2.0], [0.0, 1.0]], topic="y")]
    found = usable(rows, "bald", "topic")
    assert [*found] == rows
    rows[1]["topic"] = None
    assert [*found] == rows
    with pytest.raises(UserError, match=r"^prompt 'b', column topic: null; set a value$"):
        [*usable(rows, "bald", "topic")]
    del rows[1]["topic"]
    with pytest.raises(
        UserError, match=r"^strategy bald: the table has no column topic; it has completions, degenerate, "
    ):
        [*usable(rows, "bald", "topic")]


def test_a_missing_column_is_named_with_its_remedy() -> None:
    check_columns("pacs", ("pacs",), ["pacs", "x"])
    with pytest.raises(UserError, match=r"^strategy pacs: the table has no column pacs; shfcas score adds it$"):
        check_columns("pacs", ("x", "pacs"), ["x"])
    with pytest.raises(UserError, match=r"^strategy pacs: the table has no column topic; it has a, b$"):
        check_columns("pacs", iter(("a", "topic")), iter(("b", "a")))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_member_without_a_number_leaves_the_prompt_out(bad: float, place: tuple[int, int]) -> None:
    rewards = [[1.0, 2.0], [0.0, 1.0]]
    rewards[place[0]][place[1]] = bad
    found = usable([members("a", rewards), members("b", [[1.0, 2.0], [0.0, 1.0]])])
    assert [r["prompt_id"] for r in found] == ["b"] and found.skipped == 1


def test_every_column_of_numbers_is_looked_at() -> None:
    sound = {"rewards": [1.0, 2.0], "reward_variances": [1.0, 2.0]}
    rows = [row(f"p{i}", [1.0, -1.0], 0.5, **sound) for i in range(3)]
    rows[0] |= {"rewards": [1.0, math.nan]}
    rows[1] |= {"reward_variances": [math.inf, 1.0]}
    assert [r["prompt_id"] for r in usable(rows, "drts")] == ["p2"]
    rows[1] |= {"reward_variances": [1.0]}
    with pytest.raises(UserError, match=r"^prompt 'p1', column reward_variances: expected 2 values, got 1$"):
        [*usable(rows, "drts")]


def test_a_null_among_numbers_names_the_column_that_has_it() -> None:
    sound = {"rewards": [1.0, 2.0], "reward_variances": [1.0, 2.0]}
    for column, values in (("reward_variances", [1.0, None]), ("rewards", [None, 1.0]), ("pacs", [None, 1.0])):
        one = row("a", [1.0, -1.0], 0.5, **sound) | {column: values}
        with pytest.raises(UserError, match=f"^prompt 'a', column {column}: a value is null$"):
            [*usable([one], "drts")]


def test_values_that_are_no_numbers_are_another_error() -> None:
    one = row("a", [1.0, -1.0], 0.5, rewards=["1", "2"])
    with pytest.raises(TypeError):
        [*usable([one], "reward_margin")]
    with pytest.raises(TypeError):
        [*usable([members("a", [["1", "2"], ["3", "4"]])])]


def test_a_conflict_has_a_value_for_each_completion() -> None:
    for texts, said in ((["x", "y", "z"], "2 values for 3 completions"), ([], "2 values for 0 completions")):
        with pytest.raises(UserError, match=f"^prompt 'a', column pacs: {said}$"):
            [*usable([row("a", [1.0, -1.0], 0.5, completions=texts)], "random")]
        with pytest.raises(UserError, match=f"^prompt 'a', column pacs: {said}$"):  # whether it is used or not
            [*usable([row("a", [1.0, -1.0], 0.5, completions=texts, degenerate=True)], "random")]
    without = row("a", [1.0, -1.0], 0.5)
    del without["completions"]
    assert [*usable([without], "random")] == [without]
