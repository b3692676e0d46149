"""How many comparisons each pass keeps, what the report says, and what is read."""

from collections.abc import Iterable
from typing import Any

import pytest

from shfcas.selection import Bounds, Row, SelectionConfig, columns_to_read, select, select_with_report
from shfcas.selection.budget import choose
from shfcas.selection.passes import RowPasses, TopComparisons
from shfcas.utils.errors import NothingSelected, UserError
from tests.support.selection_rows import TABLE, asked, config, full_table, row


class Recorder(RowPasses):
    """Passes that remember what they were asked for."""

    def __init__(self, rows: Iterable[Row], settings: SelectionConfig) -> None:
        super().__init__(rows, settings)
        self.asked: dict[str, Any] = {}

    def top(self, bounds: Bounds, count: int) -> TopComparisons:
        self.asked["top"] = count
        return super().top(bounds, count)

    def drawn(self, count: int) -> TopComparisons:
        self.asked["drawn"] = count
        return super().drawn(count)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"strategy": "random"}, {"top": 10}),
        ({"strategy": "random", "diversity_pool": 7}, {"top": 10}),
        ({"strategy": "random", "audit_share": 0.3}, {"top": 10, "drawn": 3}),  # 7 and the 3 that it may lose
        ({"strategy": "random", "audit_share": 1.0}, {"top": 10, "drawn": 10}),
        ({"strategy": "random", "diversity": "k_centre", "diversity_pool": 7}, {"top": 70}),
        (
            {"strategy": "random", "diversity": "k_centre", "diversity_pool": 7, "audit_share": 0.3},
            {"top": 52, "drawn": 3},
        ),
        ({"strategy": "arbiter", "arbiter_pool": 41}, {"top": 20, "drawn": 20}),
        ({"strategy": "arbiter", "arbiter_pool": 41, "audit_share": 0.3}, {"top": 23, "drawn": 23}),
        ({"strategy": "arbiter", "arbiter_pool": 4}, {"top": 10, "drawn": 10}),
        (
            {"strategy": "arbiter", "arbiter_pool": 4, "diversity": "k_centre", "audit_share": 0.3},
            {"top": 38, "drawn": 38},
        ),
    ],
)
def test_passes_keep_as_much_as_is_needed(settings: dict, expected: dict) -> None:
    rows = [{**r, "prompt": f"about {i}"} for i, r in enumerate(full_table(60))]
    chosen = SelectionConfig(budget=10, **settings)
    passes = Recorder(rows, chosen)
    found = choose(passes, chosen)
    assert passes.asked == expected
    assert len(found.comparisons) == len({c.pair for c in found.comparisons}) == 10
    assert sum(c.audit for c in found.comparisons) == round(10 * settings.get("audit_share", 0))


def test_the_audit_takes_nothing_from_the_strategy() -> None:
    # With strategy random both want the same pairs, so the rest continues where the audit ended.
    everything = asked(full_table(60), SelectionConfig("random", budget=30))
    found = select(full_table(60), SelectionConfig("random", budget=30, audit_share=0.4))
    assert [(c.prompt_id, c.first, c.second) for c in found if c.audit] == everything[:12]
    assert [(c.prompt_id, c.first, c.second) for c in found if not c.audit] == everything[12:]


def test_the_report_by_hand() -> None:
    useless = row("x", [0.0, 0.0], 1.0, degenerate=True)
    found = select_with_report([*TABLE, useless], config(budget=3, kendall_threshold="q0.5", pacs_threshold="q0.5"))
    assert found.report == {
        "strategy": "shf_cas",
        "prompts": 4,
        "degenerate": 1,
        "bounds": {"kendall_threshold": 0.6, "pacs_threshold": 1.0},
        "shortfall": None,
    }
    found = select_with_report(TABLE, config("mean_pacs", budget=20, mean_pacs_threshold=1, audit_share=0.1))
    assert {name: found.report[name] for name in ("prompts", "degenerate", "bounds", "audits")} == {
        "prompts": 3,
        "degenerate": 0,
        "bounds": {"mean_pacs_threshold": 1.0},
        "audits": 2,
    }
    # low has 3 pairs and high has 10; the two random ones are counted too, if they are of mid.
    assert found.report["shortfall"].startswith(f"{len(found.comparisons)} of 20 comparisons: mean_pacs_threshold 1 ")
    found = select_with_report([*TABLE, useless], config("random", budget=20))
    assert found.report["shortfall"].startswith(
        "19 of 20 comparisons: the table has no more pairs of different answers; "
    )
    assert "; 1 of 4 prompts are degenerate (" in found.report["shortfall"]


def test_auto_is_recognised_with_spaces() -> None:
    rows = [row(f"r{i}", [2.0, 1.0, 0.5, -0.5, -1.0, -2.0], 1.0) for i in range(3)]
    found = select_with_report(rows, SelectionConfig(kendall_threshold=" auto ", pacs_threshold=0, budget=3))
    assert found.report["bounds"] == {"kendall_pvalue": pytest.approx(1 / 720), "pacs_threshold": 0.0}
    assert found.report["kendall"]["false_discovery_rate"] == 0.1 and found.report["kendall"]["chosen"] == 3


def test_an_audit_alone_needs_no_embeddings() -> None:
    settings = config(budget=4, audit_share=0.5, kendall_threshold="2", diversity="k_centre")
    rows = [{**r, "prompt": r["prompt_id"]} for r in TABLE]
    assert [c.audit for c in select(rows, settings)] == [True, True]


def test_spread_comparisons_are_those_left_by_the_audit() -> None:
    rows = [{**r, "prompt": f"about {i % 9}"} for i, r in enumerate(full_table(60))]
    settings = {"budget": 20, "diversity": "k_centre", "diversity_pool": 3}
    found = select(rows, SelectionConfig("reward_margin", **settings, audit_share=0.25))
    pool = asked(rows, SelectionConfig("reward_margin", budget=60))
    chosen = [(c.prompt_id, c.first, c.second) for c in found if not c.audit]
    audit = {c.pair for c in found if c.audit}
    best = next(c for c in pool if (c[0], frozenset(c[1:])) not in audit)
    assert len(found) == 20 and len(chosen) == 15 and set(chosen) <= set(pool) and chosen[0] == best


def test_nothing_selected_names_strategy_numbers_and_cause() -> None:
    useless = row("x", [0.0, 0.0], 1.0, degenerate=True)
    expected = (
        r"^strategy shf_cas selected nothing from 4 prompts \(1 of them degenerate\): kendall_threshold 2 and "
        r"pacs_threshold 1.0 leave no more; lower the thresholds; 1 of 4 prompts are degenerate \("
    )
    with pytest.raises(NothingSelected, match=expected):
        select([*TABLE, useless], config(kendall_threshold="2"))


@pytest.mark.parametrize("settings", [{}, {"audit_share": 1.0}])
def test_two_rows_of_one_prompt_id_are_refused(settings: dict) -> None:
    rows = [*TABLE, row("mid", [1.0, -1.0, 2.0], 0.9)]
    chosen = config("random", budget=100, **settings)
    with pytest.raises(
        UserError, match=r"^prompt id 'mid': expected one row, got two, so its answers are ambiguous; use"
    ):
        select(rows, chosen)
    assert asked([{**rows[0]}, *rows[2:]], chosen)


def test_sequential_strategies_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"^strategy auto decides by the labels so far, and a table has none: use it in"
    ):
        select(full_table(10), SelectionConfig("auto"))


def test_columns_of_a_design_and_of_groups() -> None:
    present = ["topic", "rewards", "prompt_id", "pacs", "degenerate", "prompt", "embeddings", "completions"]
    base = ["prompt_id", "pacs", "degenerate"]
    grouped = SelectionConfig("arbiter", group_by="topic", diversity="k_centre")
    assert columns_to_read(grouped, iter(present)) == [*base, "rewards", "topic", "completions", "embeddings"]
    # A column that is needed twice is read once, and one that no strategy needs is not read.
    assert columns_to_read(SelectionConfig("arbiter", group_by="rewards"), present) == [*base, "rewards", "completions"]
    assert columns_to_read(SelectionConfig("random", group_by="topic"), present) == [*base, "completions"]
    with pytest.raises(UserError, match=r"^strategy arbiter: the table has no column other; it has completions, "):
        columns_to_read(SelectionConfig("arbiter", group_by="other"), present)
