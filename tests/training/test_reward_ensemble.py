"""Ensembles: members by seed, each trained once, scored together; or their weights averaged into one model."""

import json
from pathlib import Path
from statistics import fmean, variance
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shfcas.data.candidates import CandidateTable, read_candidates, write_candidates
from shfcas.rewards.metrics import pair_accuracy
from shfcas.rewards.scorers import EnsembleScorer, ensemble_members, load_scorer
from shfcas.rewards.table import add_rewards
from shfcas.training.reward import train as reward_training
from shfcas.training.reward.config import RewardModelConfig
from shfcas.training.reward.train import train_reward_model
from shfcas.utils.errors import UserError
from tests.support.reward_pairs import HELD_OUT, TRAIN, Kill

SETTINGS = {"num_train_epochs": 1, "batch_size": 8, "learning_rate": 3e-3, "ensemble_size": 3}


def train(model: str, folder: Path, **settings: Any) -> dict[str, Any]:
    chosen = RewardModelConfig(**{**SETTINGS, **settings})
    return train_reward_model(
        model, TRAIN[:32], settings=chosen, output=folder / "out", work_dir=folder / "work", seed=0, held_out=HELD_OUT
    )


@pytest.fixture(scope="module")
def ensemble(tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ensemble")
    return str(folder / "out"), train(tiny_models["policy"], folder)


def table() -> CandidateTable:
    answers = ["the film was good", "the film was bad", "late"]
    rows = [{"prompt_id": f"p{i}", "prompt": f"how was it {i}?", "completions": answers[: 2 + i % 2]} for i in range(4)]
    return CandidateTable.from_rows(rows)


def test_members_differ_and_are_scored_by_their_mean(ensemble: tuple[str, dict[str, Any]]) -> None:
    output, result = ensemble
    members = ensemble_members(output)
    assert [Path(m).name for m in members] == ["member-0", "member-1", "member-2"] and len(result["members"]) == 3
    scorer = load_scorer(output)
    assert isinstance(scorer, EnsembleScorer)
    prompts, answers = ["how was it?"] * 2, ["a good film", "a late train"]
    each = [load_scorer(member)(prompts, answers) for member in members]
    assert len({tuple(rewards) for rewards in each}) == 3
    assert scorer(prompts, answers) == pytest.approx([fmean(r) for r in zip(*each, strict=True)])
    assert result["held_out_accuracy"] == pair_accuracy(scorer, HELD_OUT)
    accuracies = [pair_accuracy(load_scorer(m), HELD_OUT) for m in members]
    assert [m["held_out_accuracy"] for m in result["members"]] == accuracies


def test_a_table_gets_the_variance_of_every_reward(ensemble: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    scored = add_rewards(table(), load_scorer(ensemble[0]))
    assert [len(v) for v in scored.column("reward_variances")] == [2, 3, 2, 3]
    row = scored.rows()[1]
    for i, answer in enumerate(row["completions"]):
        rewards = [load_scorer(m)([row["prompt"]], [answer])[0] for m in ensemble_members(ensemble[0])]
        assert row["rewards"][i] == pytest.approx(fmean(rewards), abs=1e-5)
        assert row["member_rewards"][i] == pytest.approx(rewards, abs=1e-5)
        assert row["reward_variances"][i] == pytest.approx(variance(rewards), abs=1e-5) and variance(rewards) > 0
    write_candidates(tmp_path / "t.parquet", scored)
    for name in ("reward_variances", "member_rewards"):
        assert read_candidates(tmp_path / "t.parquet").column(name) == scored.column(name)
    for before in (table(), scored):  # what an ensemble said is not kept beside another scorer's rewards
        single = add_rewards(before, load_scorer(ensemble_members(ensemble[0])[0]))
        assert "reward_variances" not in single and "member_rewards" not in single


@pytest.mark.parametrize("value", [-0.5, float("nan")])
def test_a_variance_that_is_none_is_refused(value: float) -> None:
    rows = table().rows()
    rows[2]["reward_variances"] = [0.1, value]
    for row in (rows[0], rows[1], rows[3]):
        row["reward_variances"] = [0.1] * len(row["completions"])
    with pytest.raises(UserError, match="row 2, column reward_variances: a variance is negative or not a number"):
        CandidateTable.from_rows(rows)


def test_answers_with_different_numbers_of_members_are_refused() -> None:
    rows = [{**row, "member_rewards": [[0.1, 0.2]] * len(row["completions"])} for row in table().rows()]
    CandidateTable.from_rows(rows)
    rows[1]["member_rewards"] = [[0.1, 0.2], [0.1], [0.3, 0.4]]
    with pytest.raises(UserError, match="row 1, column member_rewards: the answers have different numbers of rewards"):
        CandidateTable.from_rows(rows)


def test_members_that_are_done_are_not_trained_again(
    ensemble: tuple[str, dict[str, Any]], tiny_models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = reward_training.train_member, []

    def counted(*models: Any, **settings: Any) -> dict[str, Any]:
        calls.append(models)
        if len(calls) == 2:
            raise Kill
        return real(*models, **settings)

    monkeypatch.setattr(reward_training, "train_member", counted)
    with pytest.raises(Kill):
        train(tiny_models["policy"], tmp_path)
    assert (tmp_path / "work" / "member-0" / "training.json").exists() and not (tmp_path / "out").exists()
    result = train(tiny_models["policy"], tmp_path)
    assert len(calls) == 4  # the one that was done, the one that was killed, and the two that were left
    assert json.loads(json.dumps(result)) == json.loads(json.dumps(ensemble[1]))
    for number in range(3):
        file = Path(f"member-{number}") / "model.safetensors"
        assert (tmp_path / "out" / file).read_bytes() == (Path(ensemble[0]) / file).read_bytes()


def test_weights_are_averaged_into_one_model(tiny_models: dict[str, str], tmp_path: Path) -> None:
    result = train(tiny_models["policy"], tmp_path, average_weights=True)
    members = [load_file(tmp_path / "work" / f"member-{k}" / "model.safetensors") for k in range(3)]
    mean = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in mean.items():
        assert torch.allclose(value, sum(m[name] for m in members) / 3, atol=1e-6), name
    assert not torch.equal(members[0]["score.weight"], members[1]["score.weight"])  # another order of the pairs
    assert ensemble_members(str(tmp_path / "out")) == []
    assert pair_accuracy(load_scorer(str(tmp_path / "out")), HELD_OUT) == result["held_out_accuracy"]


@pytest.mark.parametrize("average", [True, False])
def test_only_models_that_are_averaged_share_their_first_head(
    average: bool, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    train(tiny_models["policy"], tmp_path, average_weights=average, learning_rate=1e-12, ensemble_size=2)
    heads = [load_file(tmp_path / "work" / f"member-{k}" / "model.safetensors")["score.weight"] for k in range(2)]
    assert torch.allclose(heads[0], heads[1], atol=1e-6) == average


def test_an_ensemble_is_refined_member_by_member(ensemble: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    result = train(ensemble[0], tmp_path, learning_rate=1e-12)
    before = [pair_accuracy(load_scorer(m), HELD_OUT) for m in ensemble_members(ensemble[0])]
    assert [m["held_out_accuracy"] for m in result["members"]] == before
    with pytest.raises(UserError, match="is an ensemble of 3, and ensemble_size is 1"):
        train(ensemble[0], tmp_path / "one", ensemble_size=1)


def test_an_ensemble_of_costs_is_turned_into_rewards(tiny_models: dict[str, str], tmp_path: Path) -> None:
    train(tiny_models["reward_model"], tmp_path, objective="cost", ensemble_size=2, num_train_epochs=4)
    assert pair_accuracy(load_scorer(str(tmp_path / "out")), TRAIN[:32]) > 0.8
