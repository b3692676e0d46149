"""A run whose reward model is refined on soft labels, with labels as arbiters."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from shfcas.data.candidates import read_candidates
from shfcas.data.preferences import read_preferences
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.run import plan, run
from shfcas.utils.config import build
from shfcas.utils.errors import UsageError, UserError
from shfcas.utils.files import read_json
from shfcas.utils.numbers import interval
from tests.support import tiny


@pytest.fixture(scope="module")
def values(tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("values")
    further = [{"prompt": f"how was the {thing}?", "topic": "y"} for thing in ("soup", "bread", "rain")]
    values = tiny.run_values(folder, tiny_models)
    return {
        **values,
        "unlabelled_prompts": tiny.write_lines(folder / "further.jsonl", further),
        "preferences": tiny.pairs_file(folder),
        "policy_score": "contrast",
        "principles": [{"good": "a good day", "bad": "a bad day"}],
        "selection": {**values["selection"], "budget": 6},
        "reward": {**values["reward"], "refine": "arbitrate", "held_out": 0},
        "rl": {"algorithm": "best_of_n", "best_of_n": {"n": 2}},
    }


@pytest.fixture(scope="module")
def finished(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arbitrated") / "run"
    run(build(RunConfig, {**values, "output": str(path)}))
    return path


def test_labels_decide_whom_to_trust_and_soft_labels_cover_all_answers(finished: Path) -> None:
    report = read_json(finished / "round-1" / "second_opinion" / "arbiter.json")
    labels = read_preferences(finished / "round-1" / "preferences.jsonl")
    assert report["labels"] == len(labels) == sum(report["sided_with"]["all"].values()) > 0
    assert [row["source"] for row in report["trust"][:2]] == ["reward model", "policy"]
    assert "2 clusters" in report["evidence"]
    soft = read_preferences(finished / "round-1" / "second_opinion" / "soft_labels.jsonl")
    assert report["soft_labels"] == len(soft)
    assert all(p.source == "second_opinion" and 0.5 <= p.probability <= 1 for p in soft)
    rows = [
        row
        for name in ("conflicts", "unlabelled")
        for row in read_candidates(finished / f"round-1/{name}.parquet").rows()
    ]
    expected = {
        (row["prompt"], frozenset((a, b)))
        for row in rows
        for a in row["completions"]
        for b in row["completions"]
        if a != b
    }
    assert {(p.prompt, frozenset((p.chosen, p.rejected))) for p in soft} == expected
    training = read_json(finished / "round-1" / "reward_model" / "training.json")
    assert set(training["pairs_by_source"]) == {"second_opinion", "gold"}  # the original pairs are dropped


def test_the_report_shows_which_source_the_labels_sided_with(finished: Path) -> None:
    report = read_json(finished / "round-1" / "second_opinion" / "arbiter.json")
    page = " ".join((finished / "report.html").read_text(encoding="utf-8").split())
    assert "<h2>Second opinion: round 1</h2>" in page
    assert report["summary"][1:] in page and f"{report['soft_labels']} soft labels." in page
    trust = report["trust"][1]
    assert f"<td>policy</td><td>all</td><td>{interval({**trust, 'mean': trust['trust']})}</td>" in page


def test_the_contrast_is_asked_of_the_policy_and_recorded(finished: Path) -> None:
    about = read_candidates(finished / "round-1" / "conflicts.parquet").metadata
    assert about["policy_score"] == "contrast"
    assert [*about["principles"].values()] == [["a good day", "a bad day"]]


def test_a_change_makes_only_what_it_concerns_again(values: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "run")

    def stale(**changes: Any) -> list[str]:
        planned = plan(build(RunConfig, {**values, "output": str(copy), **changes}))
        return [stage.name for stage in planned.stages if stage.state != "done"]

    assert stale() == []
    refined = ["round-1/reward_model", "round-1/evaluation.parquet", "round-1/metrics.json"]
    trusted = {**values["reward"], "second_opinion": {"policy_trust": 1.0}}
    assert stale(reward=trusted) == ["round-1/second_opinion", *refined]
    assert stale(reward={**values["reward"], "second_opinion": {"old_pairs": "keep"}}) == refined
    other = [{"good": "a good day", "bad": "a cold day"}]
    assert "round-1/candidates.parquet" not in stale(principles=other)
    assert {"round-0/evaluation.parquet", "round-1/conflicts.parquet", "round-1/second_opinion"} < {
        *stale(principles=other)
    }


def test_killed_before_any_stage_it_ends_the_same(values: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    for lost in ("second_opinion", "reward_model", "unlabelled.parquet"):
        copy = shutil.copytree(finished, tmp_path / lost)
        target = copy / "round-1" / lost
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        run(build(RunConfig, {**values, "output": str(copy)}), approve=lambda planned: True)
        for name in ("second_opinion/soft_labels.jsonl", "reward_model/model.safetensors", "metrics.json"):
            assert (copy / "round-1" / name).read_bytes() == (finished / "round-1" / name).read_bytes(), (lost, name)


def test_without_labels_the_second_opinion_has_equal_trust(values: dict[str, Any], tmp_path: Path) -> None:
    reward = {**values["reward"], "refine": "second_opinion"}
    changes = {"feedback": "none", "reward": reward, "output": str(tmp_path / "run"), "unlabelled_prompts": None}
    run(build(RunConfig, {**values, **changes}))
    report = read_json(tmp_path / "run" / "round-1" / "second_opinion" / "arbiter.json")
    assert [row["trust"] for row in report["trust"]] == [0.5, 0.5] and report["labels"] == 0
    training = read_json(tmp_path / "run" / "round-1" / "reward_model" / "training.json")
    assert set(training["pairs_by_source"]) == {"second_opinion"}
    assert not (tmp_path / "run" / "round-1" / "queue.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"principles": []}, r"principles: expected at least one with policy_score contrast, got \[\]"),
        ({"reward": {"refine": "labels"}}, "reward.refine: expected soft labels with unlabelled_prompts, got 'labels'"),
        ({"reward": {"refine": "arbitrates"}}, "reward.refine: .* did you mean arbitrate?"),
        ({"principles": [{"good": "missing.md"}]}, "missing.md"),
    ],
)
def test_errors(values: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, UserError), match=message):
        build(RunConfig, {**values, **changes})
