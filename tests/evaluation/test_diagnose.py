"""`shfcas diagnose` on answers of which it is known whether conflict can tell where the reward model errs."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from shfcas.cli import main
from shfcas.conflicts.columns import add_conflicts
from shfcas.data.candidates import CandidateTable, write_candidates
from shfcas.data.preferences import Preference, write_preferences
from shfcas.evaluation.diagnose import DiagnoseConfig, diagnose
from shfcas.evaluation.diagnose_text import format_diagnosis
from shfcas.evaluation.judged_pairs import from_gold, from_preferences
from shfcas.evaluation.resampling import (
    Resampled,
    by_decile,
    precision,
    weighted_auroc,
    weighted_precision,
    with_interval,
)
from shfcas.evaluation.statistics import auroc
from shfcas.report.diagnosis import diagnose_table
from shfcas.utils.errors import UserError


def scored(informed: float, prompts: int = 60, count: int = 5, noise: float = 0.5, seed: int = 0) -> CandidateTable:
    """The reward is gold, turned round for travel; the policy knows gold as well as `informed` says."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for i in range(prompts):
        gold = rng.normal(size=count)
        blind = i % 3 == 0
        rewards = gold * (-1 if blind else 1) + noise * rng.normal(size=count)
        rows.append(
            {
                "prompt_id": f"p{i}",
                "prompt": f"question {i}",
                "topic": "travel" if blind else "food",
                "completions": [f"answer {i}.{k}" for k in range(count)],
                "rewards": rewards.tolist(),
                "logprobs": (informed * gold + rng.normal(size=count)).tolist(),
                "gold": gold.tolist(),
            }
        )
    return add_conflicts(CandidateTable.from_rows(rows))


def diagnosed(table: CandidateTable, **settings: Any) -> dict[str, Any]:
    options = DiagnoseConfig(**settings)
    return diagnose(from_gold(table.rows(), None, prompts=len(table), group_by=options.group_by), options)


def preferences(table: CandidateTable, count: int, ids: bool = True) -> list[Preference]:
    """Pairs at random, as gold judges them."""
    rng, found = np.random.default_rng(1), []
    for row in table.rows()[:count]:
        a, b = rng.choice(len(row["gold"]), 2, replace=False)
        better, worse = (a, b) if row["gold"][a] > row["gold"][b] else (b, a)
        answers = row["completions"]
        found.append(
            Preference(row["prompt"], answers[better], answers[worse], prompt_id=row["prompt_id"] if ids else "")
        )
    return found


def assert_prints_what_it_tests(found: dict[str, Any]) -> None:
    """The interval in the verdict is one of those that are compared with 0.5, wider than the 95 % one beside it."""
    texts = {
        f"AUROC {t['value']:.2f} [{t['low']:.2f}, {t['high']:.2f}] at a level of 98.3 %": name
        for name, t in found["tested"].items()
    }
    (name,) = {name for text, name in texts.items() if text in found["verdict"]}
    tested, plain = found["tested"][name], found["signals"][name]["auroc"]
    assert tested["level"] == pytest.approx(1 - 0.05 / 3) and tested["value"] == pytest.approx(plain["value"])
    assert tested["low"] < plain["low"] and plain["high"] < tested["high"]
    if found["informative"]:
        assert tested["low"] > 0.5


# -- where the answer is known --------------------------------------------------------------------------------


def test_an_informed_policy_is_found_to_be_one() -> None:
    found = diagnosed(scored(2.0))
    assert found["informative"] is True
    assert found["verdict"].startswith("conflict finds errors better than chance: ")
    assert_prints_what_it_tests(found)
    for name in ("kendall_distance", "opposition"):
        assert found["signals"][name]["auroc"]["low"] > 0.7
        (first, *_) = found["signals"][name]["precision"]
        assert first["budget"] == 25 and first["errors"]["value"] > first["random"] + 0.3
        assert first["lift"]["low"] > 0.1
        rates = [part["errors"]["value"] for part in found["signals"][name]["deciles"]]
        assert rates[-1] > rates[0] + 0.4


@pytest.mark.parametrize("seed", range(4))
def test_an_uninformed_policy_is_no_evidence(seed: int) -> None:
    found = diagnosed(scored(0.0, seed=seed))
    assert found["informative"] is False
    assert "select at random" in found["verdict"]
    assert_prints_what_it_tests(found)
    interval = found["signals"]["kendall_distance"]["auroc"]
    assert interval["low"] < 0.5 < interval["high"]


def test_a_policy_that_shares_the_error_points_the_wrong_way() -> None:
    table = scored(0.0, prompts=90, noise=0.2)
    rows = [{**row, "logprobs": (2 * np.array(row["rewards"])).tolist()} for row in table.rows()]
    for row in rows[1::3]:  # in some of the prompts that the reward model knows, the policy is the one that errs
        row["logprobs"] = [-x for x in row["logprobs"]]
    found = diagnosed(add_conflicts(CandidateTable.from_rows(rows)))
    assert found["informative"] is False and "worse than chance" in found["verdict"]


def test_errors_of_unsure_pairs_are_found_by_the_margin() -> None:
    table = scored(0.0, noise=1.0)
    rows = table.rows()
    for row in rows:
        noise = np.random.default_rng(int(row["prompt_id"][1:])).normal(size=5)
        row["rewards"] = (np.array(row["gold"]) + 0.6 * noise).tolist()
    found = diagnosed(add_conflicts(CandidateTable.from_rows(rows)))
    assert found["signals"]["small_margin"]["auroc"]["low"] > 0.6
    assert "or by small reward margin, AUROC 0." in found["verdict"]


def test_too_little_is_said_to_be_too_little() -> None:
    found = diagnosed(scored(2.0, prompts=6))
    assert found["informative"] is None and found["verdict"].startswith("too little data (6 prompts")
    assert found["tested"] == {}
    perfect = [{**row, "rewards": row["gold"]} for row in scored(1.0).rows()]
    found = diagnosed(add_conflicts(CandidateTable.from_rows(perfect)))
    assert found["informative"] is None and "0 of them wrong" in found["verdict"]
    assert found["signals"]["kendall_distance"]["auroc"] == {"value": None, "low": None, "high": None}
    assert "AUROC" in format_diagnosis(found) and json.dumps(found, allow_nan=False)


def test_uncovered_groups_are_found_and_slices_told_apart() -> None:
    found = diagnosed(scored(2.0), group_by="topic", uncovered=["travel"])
    assert found["uncovered"]["kendall_distance"]["low"] > 0.8
    assert set(found["slices"]) == {"(uncovered)", "(covered)", "food", "travel"}
    assert found["slices"]["travel"] == found["slices"]["(uncovered)"]
    assert found["slices"]["travel"]["errors"]["value"] > 0.7 > 0.3 > found["slices"]["food"]["errors"]["value"]
    assert sum(found["slices"][name]["pairs"] for name in ("food", "travel")) == found["pairs"]
    assert "finds pairs of uncovered groups:" in format_diagnosis(found)


# -- arithmetic -----------------------------------------------------------------------------------------------


def test_auroc_is_that_of_two_others_also_with_weights_and_ties() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 5, 80).astype(float), rng.random(80) < 0.4
    weights = rng.integers(0, 4, 80).astype(float)
    measure = weighted_auroc(scores, positive)
    assert float(measure(np.ones(80))) == pytest.approx(auroc(scores, positive))
    assert float(measure(weights)) == pytest.approx(roc_auc_score(positive, scores, sample_weight=weights))
    repeated = np.repeat(np.arange(80), weights.astype(int))
    assert float(measure(weights)) == pytest.approx(auroc(scores[repeated], positive[repeated]))


def test_precision_by_hand() -> None:
    scores, wrong = np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False])
    measure = weighted_precision(scores, wrong, [0.25, 0.5, 0.75, 1.0])
    assert measure(np.ones(4)) == pytest.approx([1.0, 0.75, 2 / 3, 0.5])  # of the two equal ones, half of each
    found = precision(scores, wrong, [1, 4], Resampled(np.arange(4)))
    assert [p["random"] for p in found] == [0.5, 0.5] and found[1]["lift"]["value"] == pytest.approx(0)


def test_deciles_hold_every_pair_once_and_equal_scores_together() -> None:
    scores = np.repeat([0.0, 0.1, 0.5], [50, 30, 20])
    wrong = np.arange(100) % 2 == 0
    parts = by_decile(scores, wrong, Resampled(np.arange(100) // 4))
    assert sum(part["pairs"] for part in parts) == 100
    assert all(a["to"] < b["from"] for a, b in pairwise(parts))
    (alone,) = by_decile(np.ones(10), wrong[:10], Resampled(np.arange(10)))
    assert alone["pairs"] == 10 and alone["errors"]["value"] == 0.5


def test_intervals_are_wider_where_pairs_of_a_prompt_go_together() -> None:
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(30), 10)
    positive = np.repeat(rng.random(30) < 0.5, 10)  # a prompt's pairs are all alike
    scores = np.repeat(rng.normal(size=30), 10)
    measure = weighted_auroc(scores, positive)
    widths = []
    for groups in (prompts, np.arange(300)):
        found = with_interval(0.5, Resampled(groups)(measure))
        widths.append(found["high"] - found["low"])
    assert widths[0] > 2 * widths[1]


def test_the_interval_holds_what_it_promises() -> None:
    """Of 60 tables without any information, the interval of the Kendall distance leaves out 0.5 about three times."""
    misses = 0
    for seed in range(60):
        table = scored(0.0, prompts=40, count=4, seed=seed)
        pairs = from_gold(table.rows(), None, prompts=40)
        measure = weighted_auroc(pairs.signals["kendall_distance"], pairs.wrong)
        found = with_interval(0.5, Resampled(pairs.prompts, samples=300)(measure))
        misses += not found["low"] <= 0.5 <= found["high"]
    assert misses <= 9  # P(more than 9 of 60 at 5 %) is 0.1 %


# -- invariances ----------------------------------------------------------------------------------------------


def test_neither_the_order_of_rows_nor_files_matter(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    table = scored(1.0)
    rows = table.rows()
    seed = DiagnoseConfig(seed=3)
    expected = diagnose(from_gold(rows, None, prompts=20, seed=3), seed)
    turned = diagnose(from_gold(rows[::-1], None, prompts=20, seed=3), seed)
    assert turned == expected and expected["prompts"] == 20
    assert diagnose(from_gold(rows, None, prompts=20, seed=4), seed) != expected
    for number, part in enumerate((rows[:25], rows[25:])):
        write_candidates(tmp_path / f"{number}.parquet", CandidateTable.from_rows(part))
    assert main(["diagnose", str(tmp_path), "--prompts", "20", "--seed", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["signals"]["opposition"]["deciles"] == expected["signals"]["opposition"]["deciles"]


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_answers_without_gold_give_no_pairs(missing: float | None) -> None:
    rows = scored(1.0, prompts=20).rows()
    rows[3]["gold"][0] = missing
    rows[4]["gold"] = None
    pairs = from_gold(rows, None, prompts=20)
    assert pairs.left_out["no gold"] == 4 + 10
    assert len(pairs) == 20 * 10 - 14
    rows[5]["gold"] = [1.0]
    with pytest.raises(UserError, match=r"prompt 'p5': gold: expected a list of 5 numbers"):
        from_gold(rows, None, prompts=20)


def test_units_of_rewards_and_of_gold_do_not_matter() -> None:
    rows = scored(1.0).rows()
    other = [
        {**row, "rewards": [7 * r + 3 for r in row["rewards"]], "gold": [np.exp(g) for g in row["gold"]]}
        for row in rows
    ]
    one, two = (diagnosed(add_conflicts(CandidateTable.from_rows(r))) for r in (rows, other))
    assert one["signals"]["kendall_distance"] == two["signals"]["kendall_distance"]
    assert two["signals"]["abs_pacs"]["auroc"]["value"] == pytest.approx(one["signals"]["abs_pacs"]["auroc"]["value"])
    assert one["verdict"] == two["verdict"]


def test_people_and_gold_say_the_same_about_the_same_pairs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    table = scored(1.5)
    judged = preferences(table, 40)
    found = diagnose(from_preferences(table.rows(), judged, "topic"), DiagnoseConfig(group_by="topic"))
    assert found["pairs"] == 40 and found["prompts"] == 40
    by_text = diagnose(from_preferences(table.rows(), preferences(table, 40, ids=False), "topic"))
    assert by_text["signals"] == found["signals"]
    write_candidates(tmp_path / "conflicts.parquet", table)
    write_preferences(tmp_path / "judged.jsonl", judged)
    files = [str(tmp_path / name) for name in ("conflicts.parquet", "judged.jsonl", "plot.svg")]
    command = ["diagnose", files[0], "--preferences", files[1], "--group_by", "topic", "--plot", files[2]]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0] == found["verdict"] and "40 judged pairs of 40 prompts" in text
    assert (tmp_path / "plot.svg").read_text().count("<svg") == 1


def test_what_says_nothing_is_left_out_and_counted() -> None:
    rows = scored(1.0, prompts=30).rows()
    rows[0]["rewards"] = [1.0] * 5  # degenerate
    rows[1]["rewards"][0] = rows[1]["rewards"][1]
    rows[2]["gold"][0] = rows[2]["gold"][1]
    found = diagnosed(add_conflicts(CandidateTable.from_rows(rows)))
    assert found["left_out"] == {"degenerate prompt": 10, "equal rewards": 1, "equal gold": 1}
    assert found["pairs"] == 30 * 10 - 12


def test_gold_is_asked_about_the_drawn_prompts_only() -> None:
    asked = []

    def gold(prompts: list, completions: list, **columns: Any) -> list[float]:
        asked.extend(prompts)
        return [float(len(asked) + i) for i in range(len(prompts))]

    pairs = from_gold(scored(1.0).rows(), gold, prompts=7)
    assert len(set(asked)) == 7 and pairs.prompts.max() == 6


def test_the_section_of_a_report() -> None:
    found = diagnose_table(scored(2.0), "topic")
    assert found is not None and found["plot"].startswith("<svg") and "food" in found["slices"]
    rows = [{name: value for name, value in row.items() if name != "gold"} for row in scored(2.0).rows()]
    assert diagnose_table(add_conflicts(CandidateTable.from_rows(rows))) is None
    alike = [{**row, "gold": [1.0] * 5} for row in scored(2.0).rows()]
    assert diagnose_table(add_conflicts(CandidateTable.from_rows(alike))) is None


# -- errors ---------------------------------------------------------------------------------------------------


def test_errors(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    table = scored(1.0, prompts=20)
    with pytest.raises(UserError, match="none of the 1 preferences is about answers in the table"):
        from_preferences(table.rows(), [Preference("another", "a", "b")])
    with pytest.raises(UserError, match=r"uncovered: no judged pair has topic nowhere"):
        diagnosed(table, group_by="topic", uncovered=["nowhere"])
    with pytest.raises(UserError, match="group_by: expected the column of the values in uncovered, got None"):
        diagnosed(table, uncovered=["travel"])
    with pytest.raises(UserError, match="budgets: expected at least 1, got 0"):
        diagnosed(table, budgets=[0])
    with pytest.raises(UserError, match="no judged pair is left"):
        diagnosed(add_conflicts(CandidateTable.from_rows([{**r, "gold": [0.0] * 5} for r in table.rows()])))
    path = str(tmp_path / "conflicts.parquet")
    write_candidates(path, CandidateTable(table.table.drop_columns(["gold"])))
    for arguments, message in (
        ([], "gold: missing; set preferences or gold"),
        (["--group_by", "colour"], "no column colour"),
        (["--gold", "a:b", "--preferences", "c.jsonl"], "give preferences or gold, not both"),
        (["--prompts", "0"], "prompts: expected at least 1, got 0"),
    ):
        assert main(["diagnose", path, *arguments]) > 0
        assert message in capsys.readouterr().err
    write_candidates(path, CandidateTable(table.table.drop_columns(["pacs"])))
    assert main(["diagnose", path]) == 1
    assert "no column pacs; shfcas score adds it" in capsys.readouterr().err
