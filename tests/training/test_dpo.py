"""DPO: which tokens a pair has, which pairs are learned, and that the policy learns them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import TrainerCallback

from shfcas.cli import main
from shfcas.data.preferences import Preference, write_preferences
from shfcas.rewards.table import score_rows
from shfcas.training import pairs
from shfcas.training.dpo import DPOConfig, PairEncoder, best_and_worst, train_dpo
from shfcas.training.lora import AdapterConfig
from shfcas.utils.errors import UserError
from shfcas.utils.files import content_hash, read_json
from tests.support import ppo_tiny
from tests.support.liked_words import liked, sample, save_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("models") / "policy")


@pytest.fixture(scope="module")
def candidates(policy: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return sample(policy, tmp_path_factory.mktemp("candidates"))


def labels(candidates: list[dict[str, Any]]) -> list[Preference]:
    """Neighbours in the table, the liked one first."""
    found = []
    for row in candidates:
        scores = liked(row["completions"])
        for a in range(0, len(scores), 2):
            better, worse = (a, a + 1) if scores[a] > scores[a + 1] else (a + 1, a)
            if scores[better] != scores[worse]:
                texts = row["completions"]
                found.append(Preference(row["prompt"], texts[better], texts[worse], prompt_id=row["prompt_id"]))
    return found


def short(**changes: Any) -> DPOConfig:
    settings = {"learning_rate": 1e-2, "num_train_epochs": 2, "lora": AdapterConfig(r=4)}
    return DPOConfig(**settings | changes)


def run(policy: str, candidates: list, folder: Path, settings: DPOConfig, **more: Any) -> tuple[list[dict], str]:
    history = train_dpo(
        policy,
        labels(candidates),
        candidates=candidates,
        reward=liked,
        settings=settings,
        output=folder / "out",
        work_dir=folder / "work",
        **{"seed": 0} | more,
    )
    return history, content_hash(next((folder / "out").glob("*model.safetensors")))


# Pairs


def test_answers_of_the_table_have_the_tokens_that_were_sampled() -> None:
    """A cut answer has no end token; one from elsewhere is complete."""
    tokenizer = ppo_tiny.tiny_tokenizer()
    w = tokenizer.get_vocab()
    row = {"prompt_id": "p", "prompt": "w1 w2", "completions": ["w3 w4", "w5"], "finished": [True, False]}
    encoder = PairEncoder(tokenizer, [row], end_ids={ppo_tiny.EOS}, limit=6)
    pair = Preference("w1 w2", "w3 w4", "w5", prompt_id="p", chosen_index=0, rejected_index=1)
    assert encoder.encode(pair) == {
        "prompt_ids": [w["w1"], w["w2"]],
        "chosen_ids": [w["w3"], w["w4"], ppo_tiny.EOS],
        "rejected_ids": [w["w5"]],
    }
    for other in (
        Preference("w1 w2", " w3 w4", " w5"),  # the user's own data
        Preference("w1 w2", "w3 w4", "w5", prompt_id="q", chosen_index=0, rejected_index=1),  # an earlier round
    ):
        assert encoder.encode(other)["rejected_ids"] == [w["w5"], ppo_tiny.EOS]
    with pytest.raises(UserError, match="'w1 w2' has 7 tokens with its prompt, more than 6; raise max_length"):
        encoder.encode(Preference("w1 w2", " w3 w4 w5 w6", " w5"))
    with pytest.raises(UserError, match="has several turns"):
        encoder.encode(Preference("w1", [{"role": "assistant", "content": "w2"}] * 2, "w3"))


def test_the_best_and_the_worst_answer() -> None:
    row = {"prompt_id": "p", "prompt": "w1", "completions": ["a", "b", "c", "b"]}
    pair = best_and_worst(row, [0.5, 1.0, -1.0, 1.0])
    assert pair is not None and (pair.chosen, pair.rejected) == ("b", "c")
    assert (pair.chosen_index, pair.rejected_index, pair.prompt_id) == (1, 2, "p")
    assert best_and_worst(row, [1.0] * 4) is None
    assert best_and_worst(row | {"completions": ["a", "b", "c", "b"]}, [0.0, 1.0, 0.5, -1.0]) is None  # b and b


# Training


@pytest.mark.parametrize("source", ["labels", "reward"])
@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_the_reward_rises(loss: str, source: str, policy: str, candidates: list, tmp_path: Path) -> None:
    """With labels that say what the reward says, and with the reward itself, which 8 pairs do not show as well."""
    epochs = 4 if source == "labels" else 40
    history, _ = run(policy, candidates, tmp_path, short(pairs=source, loss_type=loss, num_train_epochs=epochs))
    first, *steps = history
    before = np.mean(score_rows(liked, candidates))
    assert first["rollout"] == 0 and first["objective/scores"] == pytest.approx(before)
    assert first["dpo/pairs"] == (len(labels(candidates)) if source == "labels" else 8)
    start = math.log(2) if loss == "sigmoid" else (1 / (2 * 0.1)) ** 2  # the policy is its own reference
    assert steps[0]["loss"] == pytest.approx(start, rel=1e-4)
    assert steps[-1]["rewards/margins"] > 0.1
    after = np.mean(score_rows(liked, sample(str(tmp_path / "out"), tmp_path / "after", seed=1)))
    assert after > before + (0.08 if source == "labels" else 0.03)


def test_a_seed_gives_the_same_weights_twice(policy: str, candidates: list, tmp_path: Path) -> None:
    first, second = (run(policy, candidates, tmp_path / name, short()) for name in "ab")
    assert first == second
    assert run(policy, candidates, tmp_path / "c", short(), seed=1)[1] != first[1]


def test_another_reference_counts(policy: str, candidates: list, tmp_path: Path) -> None:
    ppo_tiny.tiny_model(5).save_pretrained(tmp_path / "reference")
    ppo_tiny.tiny_tokenizer().save_pretrained(tmp_path / "reference")
    settings = short(num_train_epochs=1)
    history, _ = run(policy, candidates, tmp_path / "a", settings, reference=str(tmp_path / "reference"))
    assert abs(history[1]["loss"] - math.log(2)) > 1e-2


def test_killed_and_resumed_gives_the_weights_of_an_unbroken_run(
    policy: str, candidates: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    class Killer(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 7:
                raise KilledError

    def deadly(trainer: Any, *arguments: Any) -> list:
        trainer.add_callback(Killer())
        return train(trainer, *arguments)

    train = pairs.train
    settings = short(checkpoint_steps=2)
    unbroken = run(policy, candidates, tmp_path / "unbroken", settings)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(pairs, "train", deadly)
        run(policy, candidates, tmp_path / "broken", settings)
    assert run(policy, candidates, tmp_path / "broken", settings) == unbroken


def test_what_cannot_be_learned_is_refused(policy: str, candidates: list, tmp_path: Path) -> None:
    def attempt(preferences: list[Preference], **changes: Any) -> None:
        train_dpo(
            policy,
            preferences,
            candidates=candidates,
            settings=short(**changes),
            output=tmp_path / "out",
            work_dir=tmp_path / "work",
            seed=0,
        )

    with pytest.raises(UserError, match="expected pairs to learn from, got none"):
        attempt([Preference("w1", "w2", "w2")])
    with pytest.raises(UserError, match="expected verdicts, got soft labels"):
        attempt([Preference("w1", "w2", "w3", probability=0.7)])
    with pytest.raises(UserError, match="more than 2; raise max_length"):
        attempt([Preference("w1", "w2", "w3")], max_length=2)


def test_the_command(policy: str, candidates: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    half = len(labels(candidates)) // 2
    write_preferences(tmp_path / "a.jsonl", labels(candidates)[:half])
    write_preferences(tmp_path / "b.jsonl", labels(candidates)[half:])
    flags = ["--policy", policy, "--preferences", "a.jsonl,b.jsonl", "--learning_rate", "1e-2", "--lora.r", "4"]
    assert main(["dpo", *flags]) == 0
    history = read_json(tmp_path / "policy" / "history.json")
    assert history[0]["dpo/pairs"] == len(labels(candidates)) and history[-1]["rewards/margins"] > 0.1
    assert main(["dpo", *flags, "--pairs", "reward", "--output", "other"]) == 2
