"""What policy scores know: by hand, by a slow second implementation, and on made answers where it is known."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau, norm
from sklearn.metrics import roc_auc_score

from shfcas.cli import main
from shfcas.conflicts.columns import add_conflicts
from shfcas.data.candidates import CandidateTable, write_candidates
from shfcas.data.preferences import Preference, write_preferences
from shfcas.evaluation.diagnose import diagnose
from shfcas.evaluation.judged_pairs import JudgedSample, from_gold, from_preferences
from shfcas.evaluation.policy_knowledge import design_effect, measure_scores, pairs_needed
from shfcas.sampling.contrast import Principle

PRINCIPLES = {"contrast_a": ("write a kind answer", "write a rude one"), "contrast_b": ("be   short\n", "be long")}


def answers(know: dict[str, float], prompts: int = 60, count: int = 4, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a table: each column is gold times its knowledge, plus noise; travel has inverted rewards."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(prompts):
        gold, topic = rng.normal(size=count), "travel" if i % 3 == 0 else "food"
        rewards = gold * (-1 if topic == "travel" else 1) + 0.5 * rng.normal(size=count)
        scores = {name: (k * gold + rng.normal(size=count)).tolist() for name, k in know.items()}
        texts = [f"answer {i}.{k}" for k in range(count)]
        rows.append(
            {
                "prompt_id": f"p{i}",
                "prompt": f"question {i}",
                "topic": topic,
                "completions": texts,
                "rewards": rewards.tolist(),
                "gold": gold.tolist(),
                **scores,
            }
        )
    return rows


def judged(rows: list[dict[str, Any]], per_prompt: int = 1, seed: int = 1) -> JudgedSample:
    """Pairs at random, judged by gold."""
    rng, pairs = np.random.default_rng(seed), []
    for place, row in enumerate(rows):
        every = list(itertools.combinations(range(len(row["gold"])), 2))
        for one in rng.choice(len(every), per_prompt, replace=False):
            a, b = every[one]
            pairs.append((place, a, b) if row["gold"][a] > row["gold"][b] else (place, b, a))
    return JudgedSample(rows, pairs)


# -- arithmetic -----------------------------------------------------------------------------------------------


def test_agreement_by_hand() -> None:
    """Log-prob: right, tie, wrong, right; per token: right, wrong, wrong, right; the contrast knows two pairs."""
    rows: list[dict[str, Any]] = [
        {"logprobs": [-2.0, -4.0, -4.0], "num_tokens": [1, 2, 4], "contrast_a": [1.0, 0.0, math.nan]},
        {"logprobs": [-9.0, -6.0], "num_tokens": [1, 1], "rewards": [1.0, 1.0]},
        {"logprobs": [-1.0, -3.0], "num_tokens": [1, 3], "contrast_a": [2.0, 2.0], "rewards": [3.0, 2.0]},
    ]
    sample = JudgedSample(rows, [(0, 0, 1), (0, 1, 2), (1, 0, 1), (2, 0, 1)])
    rows[2]["num_tokens"] = [1, 4]
    found = measure_scores(sample, principles=PRINCIPLES)
    scores = found["scores"]
    assert list(scores) == ["logprob", "mean_logprob", "contrast_a"] and found["level"] == pytest.approx(1 - 0.05 / 3)
    assert scores["logprob"]["agreement"]["value"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    # per token: -2 = -2 (tie), -2 < -1, -9 < -6, -1 < -0.75
    assert scores["mean_logprob"]["agreement"]["value"] == pytest.approx(0.5 / 4)
    assert scores["contrast_a"]["agreement"]["value"] == pytest.approx((1 + 0.5) / 2)
    assert [score["pairs"] for score in scores.values()] == [4, 4, 2]
    assert [score["prompts"] for score in scores.values()] == [3, 3, 2]
    assert found["reward_model"]["agreement"]["value"] == pytest.approx((0.5 + 1) / 2)
    assert found["recommended"] is None and "there are 2 prompts, and at least 20 are needed" in found["verdict"]
    assert scores["contrast_a"]["label"] == "write a kind answer"


def test_all_numbers_are_those_of_a_slow_second_implementation() -> None:
    know = {"logprobs": 0.3, "reference_logprobs": 0.1, "contrast_a": 1.0, "contrast_b": 0.0}
    sample = judged(answers(know, prompts=40), per_prompt=3)
    found = measure_scores(sample, principles=PRINCIPLES, group_by="topic", uncovered=["travel"])
    values = {
        "logprob": lambda row: row["logprobs"],
        "logprob_ratio": lambda row: np.subtract(row["logprobs"], row["reference_logprobs"]),
        "contrast_a": lambda row: row["contrast_a"],
        "contrast_b": lambda row: row["contrast_b"],
        "contrast": lambda row: np.mean([row["contrast_a"], row["contrast_b"]], axis=0),
    }
    assert list(found["scores"]) == list(values)
    for name, value in values.items():
        right = [float(value(sample.rows[r])[b] > value(sample.rows[r])[w]) for r, b, w in sample.pairs]
        distances = [(1 - kendalltau(row["rewards"], value(row)).statistic) / 2 for row in sample.rows]
        wrong = [sample.rows[r]["rewards"][b] < sample.rows[r]["rewards"][w] for r, b, w in sample.pairs]
        score = found["scores"][name]
        assert score["agreement"]["value"] == pytest.approx(np.mean(right))
        together = [np.corrcoef(value(row), row["gold"])[0, 1] for row in sample.rows]
        assert score["correlation"]["value"] == pytest.approx(np.mean(together))
        expected = roc_auc_score(wrong, [distances[r] for r, _, _ in sample.pairs])
        assert score["finds_errors"]["value"] == pytest.approx(expected)
        travel = [row["topic"] == "travel" for row in sample.rows]
        assert score["finds_uncovered"]["value"] == pytest.approx(roc_auc_score(travel, distances))
        rng, low_high = np.random.default_rng(0), []
        for _ in range(1000):
            drawn = rng.integers(0, 40, 40)
            low_high.append(np.mean(np.reshape(right, (40, 3))[drawn]))
        low, high = np.quantile(low_high, [0.005, 0.995])
        assert score["agreement"]["low"] == pytest.approx(low, abs=0.03)
        assert score["agreement"]["high"] == pytest.approx(high, abs=0.03)


def test_errors_are_found_as_the_diagnosis_says() -> None:
    """Same pairs, same draws: the AUROC for the table's own policy score is that of the Kendall distance."""
    table = add_conflicts(CandidateTable.from_rows(answers({"logprobs": 0.7})))
    pairs = from_gold(table.rows(), None, prompts=len(table))
    found = measure_scores(pairs.sample)
    assert found["level"] == pytest.approx(0.95) and list(found["scores"]) == ["logprob"]
    assert found["scores"]["logprob"]["finds_errors"] == diagnose(pairs)["signals"]["kendall_distance"]["auroc"]
    assert found["reward_model"]["agreement"]["value"] == pytest.approx(1 - diagnose(pairs)["errors"]["value"])


def test_design_effect_by_hand() -> None:
    alike = design_effect(np.repeat([0.0, 1.0, 1.0, 0.0], 3), np.repeat(np.arange(4), 3))
    assert alike == pytest.approx(3 * 4 / 3)  # three equal pairs per prompt count as one; 4 / 3 is K / (K - 1)
    assert design_effect(np.tile([0.0, 1.0], 5), np.repeat(np.arange(5), 2)) == 1.0
    assert design_effect(np.ones(4), np.arange(4)) == 1.0 == design_effect(np.array([]), np.array([], int))


def test_missing_columns_and_degenerate_rows() -> None:
    rows = answers({}, prompts=30)
    found = measure_scores(judged(rows))
    assert found["scores"] == {} and found["recommended"] is None and found["needed"] == []
    assert found["verdict"].startswith("no policy score can be measured") and found["reward_model"]["pairs"] == 30
    rows = answers({"logprobs": 2.0}, prompts=30)
    rows[0]["logprobs"] = [1.0] * 4
    rows[1]["rewards"] = [1.0] * 4
    rows[2]["logprobs"] = None
    found = measure_scores(judged(rows))["scores"]["logprob"]
    assert found["pairs"] == 29 and found["finds_uncovered"] == {"value": None, "low": None, "high": None}
    assert found["finds_errors"]["value"] is not None


# -- the rule -------------------------------------------------------------------------------------------------

FOUR = ("logprobs", "contrast_a", "contrast_b", "contrast_c")


def test_the_one_score_that_knows_is_recommended() -> None:
    know = dict.fromkeys(FOUR, 0.0) | {"contrast_b": 1.5}
    found = measure_scores(judged(answers(know, prompts=100)), principles=PRINCIPLES)
    assert found["recommended"] == "contrast_b" and found["needed"] == []
    assert found["verdict"].startswith(
        'use policy_score contrast with the wording "be short" alone (contrast_b): it orders'
    )
    assert "logprob" not in found["indistinguishable"] and "logprob" not in found["verdict"]
    assert found["scores"]["contrast_b"]["agreement"]["low"] > 0.5
    assert found["scores"]["logprob"]["behind"]["low"] > 0
    assert found["scores"]["contrast_b"]["behind"]["value"] is None


def test_a_best_score_that_log_prob_may_equal_is_said_to_be_one() -> None:
    found = measure_scores(judged(answers({"logprobs": 1.5, "contrast_a": 1.6}, prompts=100)), principles=PRINCIPLES)
    best, other = found["recommended"], ({"logprob", "contrast_a"} - {found["recommended"]}).pop()
    assert found["indistinguishable"] == [other]
    behind = found["scores"][other]["behind"]
    gap = found["scores"][best]["agreement"]["value"] - found["scores"][other]["agreement"]["value"]
    assert behind["value"] == pytest.approx(gap) and behind["low"] <= 0
    assert found["verdict"].endswith("logprob is not clearly worse") == (best == "contrast_a")


def test_of_equal_scores_the_first_is_recommended() -> None:
    rows = [{**row, "contrast_a": row["logprobs"]} for row in answers({"logprobs": 2.0})]
    assert measure_scores(judged(rows))["recommended"] == "logprob"


@pytest.mark.parametrize("per_prompt", [1, 4])
def test_none_is_recommended_where_none_knows(per_prompt: int) -> None:
    """At most 5 % of 200 samples are mistaken, with one pair per prompt and with several."""
    mistaken, every = 0, list(itertools.combinations(range(5), 2))
    for seed in range(200):
        rng = np.random.default_rng(seed)
        rows = [{name: rng.normal(size=5).tolist() for name in FOUR} for _ in range(40)]
        pairs = [(i, *every[k]) for i in range(40) for k in rng.choice(10, per_prompt, replace=False)]
        mistaken += measure_scores(JudgedSample(rows, pairs), seed=seed)["recommended"] is not None
    assert mistaken <= 10


@pytest.mark.parametrize(("agreement", "scores"), [(0.6, 4), (0.6, 1), (0.55, 8)])
def test_the_number_of_pairs_that_would_tell_is_that_of_a_simulation(agreement: float, scores: int) -> None:
    """80 % of samples of so many pairs have a corrected interval above 0.5; of half as many, half or fewer do."""
    needed, rng = pairs_needed(agreement, scores), np.random.default_rng(0)
    for pairs, low, high in ((needed, 0.77, 0.83), (needed // 2, 0.2, 0.52)):
        means = rng.binomial(pairs, agreement, 4000) / pairs
        lower = means - norm.ppf(1 - 0.025 / scores) * np.sqrt(means * (1 - means) / pairs)
        assert low < (lower > 0.5).mean() < high


def test_so_many_pairs_are_recommended_upon_also_where_pairs_of_a_prompt_go_together() -> None:
    """Of three pairs per prompt, half of all prompts have three alike, which is a design effect of 2."""
    prompts, recommended = math.ceil(pairs_needed(0.65, 1, effect=2.0) / 3), 0
    rng = np.random.default_rng(0)
    for seed in range(150):
        right = rng.random((prompts, 3)) < 0.65
        right[: prompts // 2] = right[: prompts // 2, :1]
        pairs = [(i, *((0, 1) if yes else (1, 0))) for i in range(prompts) for yes in right[i]]
        sample = JudgedSample([{"logprobs": [1.0, 0.0]}] * prompts, pairs)
        recommended += measure_scores(sample, seed=seed)["recommended"] is not None
    assert 0.7 < recommended / 150 < 0.9
    assert pairs_needed(0.6, 4) == 268 and pairs_needed(0.6, 4, effect=2.0) == 536


def test_pairs_of_one_prompt_count_for_less_in_what_is_needed() -> None:
    """All five pairs of a prompt are right or wrong together: 22 prompts right, 18 wrong."""
    rng = np.random.default_rng(0)
    rows = [{"logprobs": [1.0, 0.0], "contrast_a": rng.normal(size=2).tolist()} for _ in range(40)]
    pairs = [(i, *((0, 1) if i < 22 else (1, 0))) for i in range(40) for _ in range(5)]
    found = measure_scores(JudgedSample(rows, pairs), principles={"contrast_a": ("kind", "rude")})
    assert found["recommended"] is None
    best = found["scores"][max(found["scores"], key=lambda name: found["scores"][name]["agreement"]["value"])]
    assert best["design_effect"] == pytest.approx(5 * 40 / 39)
    target = found["needed"][-1]
    assert target["agreement"] == 0.6 and target["pairs"] == pytest.approx(pairs_needed(0.6, 2, 5 * 40 / 39), abs=5)
    assert target["more_pairs"] == target["pairs"] - 200 and target["more_prompts"] == target["prompts"] - 40
    assert f"{target['more_pairs']:,} more pairs" in found["verdict"]


# -- original pairs -------------------------------------------------------------------------------------------


def test_original_pairs_are_measured_and_never_recommend() -> None:
    blank = answers(dict.fromkeys(("logprobs", "contrast_a"), 0.0), prompts=60)
    known = judged(answers({"logprobs": 3.0, "contrast_a": 3.0}, prompts=60))
    alone, both = measure_scores(judged(blank)), measure_scores(judged(blank), original=known)
    assert both["recommended"] is None and alone["original"] is None
    assert {**both, "original": None} == alone
    assert both["original"]["scores"]["logprob"]["agreement"]["low"] > 0.5
    assert "biased" in both["original"]["bias"] and both["original"]["reward_model"]["pairs"] == 60


def test_a_draw_of_preferences_depends_on_no_order() -> None:
    made = [Preference(f"question {i // 2}", f"good {i}", f"bad {i}") for i in range(40)]
    one, two = (JudgedSample.of_texts(p, prompts=5, seed=3) for p in (made, made[::-1]))
    assert len(one.rows) == 5 and len(one.pairs) == 10
    assert {row["prompt"] for row in one.rows} == {row["prompt"] for row in two.rows}
    for row, better, worse in one.pairs:
        texts = one.rows[row]["completions"]
        assert texts[better].replace("good", "bad") == texts[worse]


def test_a_sample_of_preferences_keeps_pairs_without_a_verdict_on_the_reward_model() -> None:
    rows = answers({"logprobs": 1.0}, prompts=20)
    rows[0]["rewards"] = [1.0] * 4
    table = add_conflicts(CandidateTable.from_rows(rows))
    preferences = [Preference(r["prompt"], r["completions"][0], r["completions"][1]) for r in rows]
    pairs = from_preferences(table.rows(), preferences)
    assert len(pairs) == 19 and len(pairs.sample.pairs) == 20


# -- the command ----------------------------------------------------------------------------------------------

WORDINGS = [Principle("the good soup", "the bad soup"), Principle("a happy day", "a cold day")]
FLAG = '[{good: the good soup, bad: the bad soup}, {good: "a happy day", bad: a cold day}]'


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A scored table, a judged sample of it, and training pairs of which some are in the table."""
    table = add_conflicts(CandidateTable.from_rows(answers({"logprobs": 1.5}, prompts=24)))
    pairs = [
        Preference(row["prompt"], *(row["completions"][k] for k in np.argsort(row["gold"])[[-1, 0]]))
        for row in table.rows()
    ]
    other = [Preference(f"how was the {thing}?", "good day", "bad day") for thing in ("soup", "film", "match")]
    names = {name: str(tmp_path / name) for name in ("conflicts.parquet", "judged.jsonl", "original.jsonl", "o.jsonl")}
    write_candidates(names["conflicts.parquet"], table)
    write_preferences(names["judged.jsonl"], pairs)
    write_preferences(names["original.jsonl"], pairs[:4] + other)
    write_preferences(names["o.jsonl"], other)
    return names


def test_wordings_are_tried_on_the_sample_alone(
    tiny_models: dict[str, str], files: dict[str, str], capsys: pytest.CaptureFixture
) -> None:
    command = ["diagnose", files["conflicts.parquet"], "--preferences", files["judged.jsonl"]]
    command += ["--original", files["original.jsonl"], "--prompts", "2"]
    asked = ["--principles", FLAG, "--policy_score_model", tiny_models["policy"]]
    assert main([*command, *asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["policy_scores"]
    columns = [p.column for p in WORDINGS]
    assert list(found["scores"]) == ["logprob", *columns, "contrast"] and found["recommended"] == "logprob"
    assert [found["scores"][name]["label"] for name in columns] == ["the good soup", "a happy day"]
    assert all(found["scores"][name]["pairs"] == 24 for name in columns)
    original = found["original"]["scores"]  # 4 pairs in the table, and 2 drawn of 3 others
    assert [original[name]["pairs"] for name in ("logprob", *columns)] == [4, 6, 6]
    assert main([*command, *asked]) == 0
    text = capsys.readouterr().out
    assert "policy scores: use policy_score logprob (log-probability): it orders " in text
    assert "biased: the reward model learned from these pairs; they share its errors" in text
    assert all(f"{column:<18}     24  " in text for column in columns)
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "logprob                 4  " in text and "contrast" not in text


def test_contrasts_of_the_table_are_those_that_scoring_made(
    tiny_models: dict[str, str], files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    scored = str(tmp_path / "scored.parquet")
    asked = ["--principles", FLAG, "--policy_score_model", tiny_models["policy"]]
    command = ["score", files["conflicts.parquet"], "--output", scored, "--policy_score", "contrast", *asked]
    assert main(command) == 0
    capsys.readouterr()
    results = []
    for table, more in ((files["conflicts.parquet"], asked), (scored, [])):
        assert main(["diagnose", table, "--preferences", files["judged.jsonl"], *more, "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out)["policy_scores"])
    assert results[0] == results[1]


def test_errors(files: dict[str, str], capsys: pytest.CaptureFixture) -> None:
    for arguments, message in (
        (["--principles", FLAG], "policy_score_model: expected a model to ask under the principles"),
        (["--original", files["o.jsonl"]], "original: expected preferences about answers in the table, got 3 about"),
    ):
        assert main(["diagnose", files["conflicts.parquet"], *arguments]) > 0
        assert message in capsys.readouterr().err
