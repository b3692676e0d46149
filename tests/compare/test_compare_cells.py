"""A comparison on answers made elsewhere: heads, cells, the grid and its record, statistics."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shfcas.compare import (
    AnswerSet,
    Cell,
    HeadFit,
    Key,
    Record,
    ask,
    cells_of,
    curves,
    head_bench,
    holm,
    judge,
    keys_of,
    paired_tests,
    run_cell,
    run_grid,
    signed_rank,
    tidy,
    write_parquet,
    write_tables,
)
from shfcas.compare.grid import BenchWork, run_cells
from shfcas.compare.tables import format_interval
from shfcas.evaluation.metrics import ranking_accuracy
from shfcas.selection import SELECTABLE, Comparison, SelectionConfig
from shfcas.utils.errors import UserError
from shfcas.utils.parquet import read_parquet
from tests.support.benches_of_answers import FEATURES, bench

ARMS = {name: SelectionConfig(strategy=name, pacs_threshold="q0") for name in ("random", "shf_cas")}


def value(cell: dict, metric: str, group: str = "") -> float:
    (found,) = [m["value"] for m in cell["metrics"] if (m["metric"], m["group"]) == (metric, group)]
    return found


# -- heads ----------------------------------------------------------------------------------------------------


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features, earlier differences, new differences, and weights to start from."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(50, 4)) * [1.0, 5.0, 0.1, 1.0]
    return features, rng.normal(size=(30, 4)), rng.normal(size=(8, 4)) + 0.5, rng.normal(size=4)


def slope(
    weight: np.ndarray, pairs: np.ndarray, times: np.ndarray, centre: np.ndarray, features: np.ndarray, l2: float
):
    """The gradient of the loss by the weights of unscaled features, written out once more."""
    scale = features.std(axis=0)
    share = 1 / (1 + np.exp(pairs @ weight))
    return -(pairs * (times * share)[:, None]).sum(axis=0) + l2 * (weight - centre) * scale**2


def test_a_head_is_the_optimum() -> None:
    features, old, new, centre = problem()
    head = HeadFit(features, old, centre=centre, l2=0.7)(new, weight=3.0)
    times = np.repeat([1.0, 3.0], [len(old), len(new)])
    pairs = np.concatenate([old, new])
    assert np.abs(slope(head.weight, pairs, times, centre, features, 0.7)).max() < 1e-4
    assert np.abs(slope(centre, pairs, times, centre, features, 0.7)).max() > 0.1


def test_a_weight_is_as_good_as_repetition_and_order_is_of_no_account() -> None:
    features, old, new, centre = problem()
    fit = HeadFit(features, old, centre=centre)
    expected = fit(new, weight=3).weight
    assert fit(np.repeat(new, 3, axis=0)).weight == pytest.approx(expected, abs=1e-5)
    assert fit(new[::-1], weight=3).weight == pytest.approx(expected, abs=1e-5)
    assert HeadFit(features, old[::-1], centre=centre)(new, weight=3).weight == pytest.approx(expected, abs=1e-5)


def test_units_of_features_do_not_matter() -> None:
    features, old, new, centre = problem()
    unit = np.array([10.0, 0.01, 3.0, 1.0])
    rewards = HeadFit(features, old, centre=centre)(new)(features)
    scaled = HeadFit(features * unit, old * unit, centre=centre / unit)(new * unit)(features * unit)
    assert scaled == pytest.approx(rewards, abs=1e-4)


def test_without_pairs_or_held_tightly_a_head_stays_where_it_is() -> None:
    features, old, new, centre = problem()
    assert HeadFit(features, old[:0], centre=centre)(new[:0]).weight == pytest.approx(centre)
    assert HeadFit(features, old, centre=centre, l2=1e9)(new).weight == pytest.approx(centre, abs=1e-5)
    assert HeadFit(features, old)(new[:0]).weight != pytest.approx(centre, abs=0.1)


def test_margins_ask_for_more() -> None:
    features, old, new, centre = problem()
    plain = HeadFit(features, old, centre=centre)(new[:0])
    wide = HeadFit(features, old, centre=centre, margins=np.full(len(old), 2.0))(new[:0])
    assert (old @ wide.weight).mean() > (old @ plain.weight).mean() + 0.1


def test_a_constant_feature_says_nothing() -> None:
    features, old, new, centre = problem()
    constant = np.ones((len(features), 1))
    wider = HeadFit(np.hstack([features, constant]), np.hstack([old, 0 * old[:, :1]]), centre=np.append(centre, 9.0))
    head = wider(np.hstack([new, 0 * new[:, :1]]))
    assert head.weight[:4] == pytest.approx(HeadFit(features, old, centre=centre)(new).weight, abs=1e-5)
    assert head.weight[4] == 0
    with pytest.raises(UserError, match="l2: expected a number above 0, got 0"):
        HeadFit(features, old, centre=centre, l2=0)


# -- answers --------------------------------------------------------------------------------------------------


def test_measures_are_those_of_the_evaluation() -> None:
    answers = bench().held_out
    rewards = np.round(np.random.default_rng(1).normal(size=len(answers.gold)), 1)  # with ties
    parts = [slice(a, b) for a, b in zip(answers.offsets, answers.offsets[1:], strict=False)]
    expected = [ranking_accuracy(rewards[part], answers.gold[part]) for part in parts]
    assert answers.pair_accuracy(rewards) == pytest.approx(expected)
    assert answers.best_gold(rewards).tolist() == [answers.gold[part][np.argmax(rewards[part])] for part in parts]
    found = answers.conflict(answers.rewards)
    assert found["kendall_distance"] == pytest.approx(np.mean(answers.table.column("kendall_distance")))
    assert found["mean_abs_pacs"] == pytest.approx(np.mean(answers.table.column("mean_abs_pacs")))


def test_a_prompt_whose_gold_is_all_alike_has_no_accuracy() -> None:
    answers = bench().held_out
    gold = answers.gold.copy()
    gold[: answers.offsets[1]] = 0.5
    accuracy = replace(answers, gold=gold).pair_accuracy(answers.rewards)
    assert math.isnan(accuracy[0]) and not np.isnan(accuracy[1:]).any()


def test_parts_that_do_not_belong_together_are_refused() -> None:
    answers = bench().pool
    with pytest.raises(UserError, match="gold: expected 200 values, one per answer, got 3"):
        AnswerSet(answers.table, answers.gold[:3])
    with pytest.raises(UserError, match="features: expected finite numbers, got NaN or infinity"):
        AnswerSet(answers.table, answers.gold, np.full((200, 2), np.nan))
    with pytest.raises(UserError, match="features: expected features in both answer sets, got None"):
        head_bench(AnswerSet(answers.table, answers.gold), answers, earlier=np.zeros((0, FEATURES)))
    with pytest.raises(UserError, match="no column gold"):
        AnswerSet.from_table(answers.table)


# -- cells ----------------------------------------------------------------------------------------------------


def test_a_cell_is_the_same_every_time() -> None:
    cell = Cell("shf_cas", 12, 3)
    first, second = (run_cell(bench(), cell, ARMS["shf_cas"]) for _ in range(2))
    assert first["metrics"] == second["metrics"]
    assert (first["strategy"], first["budget"], first["seed"]) == cell


def test_the_arm_without_labels_is_the_refit_on_earlier_pairs() -> None:
    shared = bench()
    found = run_cell(shared, Cell("none", 0, 0), SelectionConfig())
    head = shared.refine.head([])
    accuracy = shared.held_out.pair_accuracy(head(shared.held_out.features))
    assert value(found, "pair_accuracy") == pytest.approx(accuracy.mean())
    assert value(found, "comparisons") == value(found, "labels") == 0
    assert value(found, "pair_accuracy", "(blind spot)") < 0.3 < 0.7 < value(found, "pair_accuracy", "(elsewhere)")
    assert value(found, "pair_accuracy", "travel") == value(found, "pair_accuracy", "(blind spot)")


def test_labels_mend_the_blind_spot_and_informed_conflict_finds_it_sooner() -> None:
    shared, cells = bench(informed=2.0), {}
    for name, arm in ARMS.items():
        cells[name] = [run_cell(shared, Cell(name, 30, seed), arm) for seed in range(3)]
    before = run_cell(shared, Cell("none", 0, 0), SelectionConfig())
    for found in cells["shf_cas"]:
        assert value(found, "pair_accuracy", "(blind spot)") > value(before, "pair_accuracy", "(blind spot)") + 0.2
        assert value(found, "best_of_n_gold") > value(before, "best_of_n_gold")
    errors = {name: np.mean([value(c, "errors_found") for c in found]) for name, found in cells.items()}
    assert errors["shf_cas"] > 0.8 > 0.65 > errors["random"]
    assert np.mean([value(c, "blind_share") for c in cells["shf_cas"]]) > 0.8


@pytest.mark.parametrize("name", SELECTABLE)
def test_every_strategy_runs_or_says_which_column_it_lacks(name: str) -> None:
    lacking = {"reward_variances", "member_rewards"}.intersection(SELECTABLE[name].needs)
    if lacking:
        with pytest.raises(UserError, match=rf"strategy {name}, budget 6, seed 0: .*{lacking.pop()}"):
            run_cell(bench(), Cell(name, 6, 0), SelectionConfig(strategy=name))
    else:
        found = run_cell(bench(), Cell(name, 6, 0), SelectionConfig(strategy=name))
        assert value(found, "comparisons") == 6 and 0.3 < value(found, "pair_accuracy") < 1


def test_each_seed_draws_a_pool_that_all_strategies_share() -> None:
    shared = bench(pool_share=0.5)
    drawn = [shared.drawn(seed).tolist() for seed in range(3)]
    assert all(len(set(d)) == 20 for d in drawn) and drawn[0] != drawn[1] != drawn[2]
    assert shared.drawn(1).tolist() == drawn[1]
    assert bench(pool_share=1.0).drawn(0).tolist() == list(range(40))
    inside = {f"pool{i}" for i in drawn[0]}
    for name, arm in ARMS.items():
        queue = ask(shared, shared.drawn(0), Cell(name, 16, 0), arm)
        assert len(queue) == 16 and {c.prompt_id for c in queue} <= inside


def test_gold_judges_ties_give_nothing_and_equal_texts_are_judged_once() -> None:
    shared = bench()
    gold = shared.pool.gold.copy()
    gold[0] = gold[1]
    rows = [{**row, "completions": ["same", *row["completions"][1:-1], "same"]} for row in shared.pool.rows]
    parts = [gold[i : i + 5].tolist() for i in range(0, 200, 5)]
    shared = replace(shared, pool=AnswerSet.from_rows(rows, parts, shared.pool.features))
    queue = [Comparison("pool0", 0, 1), Comparison("pool2", 0, 1), Comparison("pool2", 1, 4), Comparison("pool2", 3, 2)]
    labels = judge(shared, queue)
    assert [label.prompt for label in labels] == [2, 2]  # the third asks about the second's texts
    assert {(label.chosen, label.rejected) for label in labels} <= {(10, 11), (11, 10), (12, 13), (13, 12)}
    assert all(shared.pool.gold[label.chosen] > shared.pool.gold[label.rejected] for label in labels)


def test_noise_turns_its_share_of_labels_the_same_ones_each_time() -> None:
    shared = bench(pool_share=1.0)
    queue = ask(shared, shared.drawn(0), Cell("random", 300, 0), ARMS["random"])
    noisy = replace(shared, label_noise=0.3)
    clean, turned = judge(shared, queue), judge(noisy, queue)
    wrong = [a != b for a, b in zip(clean, turned, strict=True)]
    assert 0.2 < np.mean(wrong) < 0.4
    assert judge(noisy, queue) == turned
    assert judge(noisy, queue, seed=1) != turned
    swapped = [Comparison(c.prompt_id, c.second, c.first) for c in queue]
    assert judge(noisy, swapped) == turned


def test_a_strategy_that_finds_nothing_asks_nothing_and_shares_have_bounds() -> None:
    strict = SelectionConfig(strategy="shf_cas", kendall_threshold="2")
    nothing = run_cell(bench(), Cell("shf_cas", 9, 4), strict)
    without = run_cell(bench(), Cell("none", 0, 4), strict)
    assert nothing["metrics"] == without["metrics"]  # and the page says that nothing was asked
    assert value(nothing, "comparisons") == 0
    with pytest.raises(UserError, match="pool_share: expected above 0 and at most 1, got 0"):
        bench(pool_share=0.0)
    with pytest.raises(UserError, match=r"label_noise: expected at least 0 and at most 0\.5, got 0\.9"):
        bench(label_noise=0.9)


# -- the grid and its record ----------------------------------------------------------------------------------


def test_a_grid_has_every_cell_once() -> None:
    cells = cells_of(["random", "shf_cas"], [5, 10], 3)
    assert len(cells) == len(set(cells)) == 3 * (1 + 4)
    assert [c for c in cells if c.strategy == "none"] == [Cell("none", 0, seed) for seed in range(3)]
    rows = run_grid(bench(), ARMS, budgets=[5, 10], seeds=3)
    assert {(r["strategy"], r["budget"], r["seed"]) for r in rows} == set(cells)


@pytest.mark.system
def test_two_processes_give_the_same_as_one() -> None:
    assert run_grid(bench(), ARMS, budgets=[5, 10], seeds=2, jobs=2) == run_grid(
        bench(), ARMS, budgets=[5, 10], seeds=2
    )


def test_a_grid_that_was_killed_goes_on(tmp_path: Path) -> None:
    shared, path, calls = bench(), tmp_path / "cells.jsonl", []

    def work(cell: Cell) -> dict:
        calls.append(cell)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return BenchWork(shared, ARMS)(cell)

    cells = cells_of(list(ARMS), [5, 10], 2)
    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, work, record=Record(path))
    with path.open("a") as file:
        file.write('{"strategy": "random", "bud')  # as a kill within a write leaves it
    done = run_cells(cells, work, record=Record(path))
    assert calls == [*cells[:4], *cells[3:]]
    assert tidy(done) == run_grid(shared, ARMS, budgets=[5, 10], seeds=2)
    assert len(path.read_text().splitlines()) == 1 + len(cells)
    assert tidy(reversed(done)) == tidy(done)


def test_cells_of_other_data_are_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    Record(path, {"pool": "a"}).add({"strategy": "random", "budget": 1, "seed": 0, "seconds": 0.0, "metrics": []})
    assert list(Record(path, {"pool": "a"}).done) == [Cell("random", 1, 0)]
    with pytest.raises(UserError, match="holds cells that were made otherwise"):
        Record(path, {"pool": "b"})


def test_a_record_belongs_to_its_bench_and_settings(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    few = run_grid(bench(), ARMS, budgets=[5], seeds=1, record=path)
    more = run_grid(bench(), ARMS, budgets=[5, 10], seeds=2, record=path)
    assert more == run_grid(bench(), ARMS, budgets=[5, 10], seeds=2)
    assert [row for row in more if row["budget"] < 10 and row["seed"] == 0] == few
    arms = {**ARMS, "shf_cas": SelectionConfig(strategy="shf_cas", pacs_threshold="q0.5")}
    for changed, settings in ((bench(new_pair_weight=2.0), ARMS), (bench(label_noise=0.1), ARMS), (bench(), arms)):
        with pytest.raises(UserError, match="holds cells that were made otherwise"):
            run_grid(changed, settings, budgets=[5], seeds=1, record=path)


def test_processes_that_memory_denies_give_no_threads_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    threads: list[int] = []

    @contextlib.contextmanager
    def of_torch(count: int) -> Iterator[None]:
        threads.append(count)
        yield

    monkeypatch.setattr("shfcas.compare.grid.torch_threads", of_torch)
    run_cells([Cell("none", 0, 0)], BenchWork(bench(), ARMS), jobs=2)
    run_cells([Cell("none", 0, 0), Cell("none", 0, 1)], BenchWork(bench(), ARMS), jobs=2, at_once=1)
    assert threads == [2, 2]


# -- statistics -----------------------------------------------------------------------------------------------


def rows_of(values: dict[tuple[str, int], list[float]]) -> list[dict]:
    return [
        {"strategy": name, "budget": budget, "seed": seed, "metric": "m", "group": "", "value": v}
        for (name, budget), series in values.items()
        for seed, v in enumerate(series)
    ]


def test_means_and_their_intervals() -> None:
    rows = rows_of({("a", 10): [0.1, 0.2, 0.3], ("a", 20): [0.5, math.nan, 0.5], ("b", 10): [0.4]})
    found = {(r["strategy"], r["budget"]): r for r in curves(rows, Key("m"))}
    first = found["a", 10]
    assert (first["mean"], first["low"], first["high"]) == pytest.approx((0.2, -0.0484, 0.4484), abs=1e-4)  # Student's
    assert (found["a", 20]["low"], found["a", 20]["high"], found["a", 20]["seeds"]) == (0.5, 0.5, 2)
    single = found["b", 10]
    assert single["mean"] == 0.4 and math.isnan(single["low"]) and math.isnan(single["high"])
    assert format_interval(0.4, single) == "0.400" and format_interval(0.2, first, "+") == "+0.200 [-0.048, +0.448]"
    assert keys_of(rows) == [Key("m")]


def test_tests_are_paired_by_seed_and_corrected_together() -> None:
    steps = np.arange(1, 9) / 100
    base = [0.5, 0.1, 0.9, 0.3, 0.7, 0.2, 0.6, 0.4]  # far apart: only paired differences can tell
    values = {
        ("random", 10): base,
        ("random", 20): base,
        ("better", 10): (np.array(base) + steps).tolist(),
        ("better", 20): (np.array(base) + steps * [1, -1, 1, -1, 1, -1, 1, -1]).tolist(),
        ("none", 0): base,
    }
    tests = {(t["strategy"], t["budget"]): t for t in paired_tests(rows_of(values), Key("m"), "random")}
    assert set(tests) == {("better", 10), ("better", 20), ("none", 10), ("none", 20)}
    clear = tests["better", 10]
    assert clear["p"] == pytest.approx(2 / 2**8) and clear["p_holm"] == pytest.approx(4 * 2 / 2**8)
    assert (clear["better"], clear["worse"], clear["seeds"]) == (8, 0, 8)
    assert clear["difference"] == pytest.approx(steps.mean()) and clear["low"] > 0
    assert tests["better", 20]["p"] > 0.5 and tests["none", 10]["p"] == tests["none", 10]["p_holm"] == 1.0


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.02, 0.5]) == pytest.approx([0.08, 0.04, 0.06, 0.5])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([]) == []
    assert signed_rank([0.0, 0.0]) == 1.0
    assert signed_rank([0.0, 1, 2, 3, 4, 5, 6]) == pytest.approx(2 / 2**6)


def test_chance_is_not_often_significant() -> None:
    rng = np.random.default_rng(0)
    pvalues = [signed_rank(rng.normal(size=12)) for _ in range(400)]
    assert 0.02 < np.mean(np.array(pvalues) < 0.05) < 0.08


def test_results_are_tidy_and_tables_have_all_numbers(tmp_path: Path) -> None:
    rows = run_grid(bench(), ARMS, budgets=[5, 10], seeds=2)
    write_parquet(tmp_path / "results.parquet", rows)
    assert read_parquet(tmp_path / "results.parquet").to_pylist() == rows
    write_tables(tmp_path, rows)
    means = (tmp_path / "means.csv").read_text().splitlines()
    assert means[0] == "strategy,budget,metric,group,mean,low,high,seeds"
    assert len(means) == 1 + sum(len(curves(rows, key)) for key in keys_of(rows))
    tests = (tmp_path / "tests.csv").read_text().splitlines()
    assert len(tests) == 1 + 3 * 2 * 2  # metrics x budgets x (shf_cas, none)
    assert "| random |" in (tmp_path / "means.md").read_text()
    assert "p (Holm)" in (tmp_path / "tests.md").read_text()
