"""RSO: the accepted candidates follow the target, pairs are what the reward says, and the policy learns from them."""

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import TrainerCallback

from shfcas.data.chat import encode_prompt
from shfcas.models.loading import load_policy
from shfcas.rewards.table import score_rows
from shfcas.training import pairs, rso
from shfcas.training.lora import AdapterConfig
from shfcas.training.rso import RSOConfig, encode_pair, first_round, rejection_sample, tournament, train_rso
from shfcas.utils.errors import UserError
from shfcas.utils.files import content_hash, read_json
from tests.support import architectures, ppo_tiny
from tests.support.liked_words import liked, sample, save_policy


def distance(p: dict, q: dict) -> float:
    """Total variation."""
    return 0.5 * sum(abs(p.get(x, 0) - q.get(x, 0)) for x in {*p, *q})


# Rejection sampling


def test_accepted_candidates_follow_the_optimum_in_closed_form() -> None:
    """64 draws of pi_ref over five answers; the first accepted one is a draw of pi_ref exp(r / beta).

    20000 repetitions leave a total variation of about 0.006 by chance; pi_ref itself is 0.37 away, the wrong sign
    or twice the beta more than 0.1.
    """
    reference, rewards, beta = np.array([0.4, 0.3, 0.15, 0.1, 0.05]), np.array([0.0, 0.5, 1.0, 1.5, 0.2]), 0.7
    weights = reference * np.exp(rewards / beta)
    target = dict(enumerate(weights / weights.sum()))
    rng = np.random.default_rng(0)
    drawn = rng.choice(5, size=(20_000, 64), p=reference)
    counts = Counter(int(row[rejection_sample(rewards[row], 1, beta, rng)[0]]) for row in drawn)
    found = {answer: count / len(drawn) for answer, count in counts.items()}
    assert distance(target, dict(enumerate(reference))) > 0.3
    assert distance(found, target) < 0.02


def test_the_order_of_acceptance_has_the_probability_that_enumeration_gives_it() -> None:
    """Every order of three candidates and every outcome of every pass, with the best reward left as r_max."""
    rewards, beta, wanted = [0.0, 0.4, 1.0], 0.5, 2
    exact: Counter = Counter()

    def go_on(left: tuple, accepted: tuple, probability: float) -> None:
        if len(accepted) >= wanted:
            exact[accepted[:wanted]] += probability
            return
        best = max(rewards[i] for i in left)
        odds = [math.exp((rewards[i] - best) / beta) for i in left]
        for taken in itertools.product((True, False), repeat=len(left)):
            p = math.prod(o if t else 1 - o for o, t in zip(odds, taken, strict=True))
            if p:
                now = tuple(i for i, t in zip(left, taken, strict=True) if t)
                go_on(tuple(i for i in left if i not in now), accepted + now, probability * p)

    for order in itertools.permutations(range(3)):
        go_on(order, (), 1 / 6)
    assert sum(exact.values()) == pytest.approx(1)
    rng = np.random.default_rng(1)
    counts = Counter(tuple(rejection_sample(rewards, wanted, beta, rng)) for _ in range(20_000))
    assert distance({pair: count / 20_000 for pair, count in counts.items()}, exact) < 0.02


# Pairs


def test_pairs_of_the_first_round_and_of_a_tournament() -> None:
    rewards = [0.0, 1.0, 2.0, 3.0, 4.0]
    assert first_round([0, 1, 4, 2, 3], rewards) == [(1, 0), (4, 2)]  # the fifth has no opponent
    assert tournament([0, 1, 4, 2, 3], rewards) == [(1, 0), (4, 2), (4, 1), (4, 3)]
    eight = list(range(8))
    assert len(first_round(eight, eight)) == 4 and len(tournament(eight, eight)) == 7  # as in the paper


def test_a_tie_makes_no_pair_and_the_first_goes_on() -> None:
    assert first_round([0, 1, 2, 3], [1.0, 1.0, 0.0, 2.0]) == [(3, 2)]
    assert tournament([0, 1, 2, 3], [1.0, 1.0, 0.0, 2.0]) == [(3, 2), (3, 0)]
    assert tournament([0, 1], [1.0, 1.0]) == []


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("models") / "policy")


@pytest.fixture(scope="module")
def candidates(policy: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return sample(policy, tmp_path_factory.mktemp("candidates"))


def test_a_pair_has_the_tokens_that_the_policy_sampled(policy: str) -> None:
    tokenizer = load_policy(policy)[1]
    words = tokenizer.get_vocab()
    for prompt in ("w1 w2", [{"role": "user", "content": "w1 w2"}]):
        row = {"prompt_id": "p", "prompt": prompt, "completions": ["w3 w4", "w5", ""], "finished": [True, False, True]}
        pair = encode_pair(tokenizer, row, better=0, worse=1, limit=10)
        assert pair["prompt_ids"] == encode_prompt(tokenizer, prompt)
        assert pair["chosen_ids"] == [words["w3"], words["w4"], ppo_tiny.EOS]
        assert pair["rejected_ids"] == [words["w5"]]  # cut off, so no end token was sampled
        assert encode_pair(tokenizer, row, better=2, worse=1, limit=10)["chosen_ids"] == [ppo_tiny.EOS]
        row.pop("finished")
        assert encode_pair(tokenizer, row, better=0, worse=1, limit=10)["rejected_ids"] == [words["w5"], ppo_tiny.EOS]
        with pytest.raises(
            UserError, match=r"answer 0 of prompt 'p' has \d tokens with its prompt, more than 4: 'w1 w2'"
        ):
            encode_pair(tokenizer, row, better=0, worse=1, limit=4)


ASKED = [{"role": "user", "content": "how was the soup?"}]


def encoded(tokenizer: Any, prompt: Any, answer: str, ids: list[int] | None = None) -> tuple[list[int], list[int]]:
    """The prompt's and the chosen tokens of a pair whose answers are alike."""
    row = {"prompt_id": "p", "prompt": prompt, "completions": [answer] * 2, "finished": [True] * 2}
    row |= {} if ids is None else {"completion_ids": [ids, ids]}
    pair = encode_pair(tokenizer, row, better=0, worse=1, limit=100)
    return pair["prompt_ids"], pair["chosen_ids"]


@pytest.mark.parametrize(("kind", "end"), [("gemma", "<end_of_turn>"), ("llama", "<|eot_id|>"), ("mistral", "</s>")])
def test_answers_end_as_their_template_ends_turns(kind: str, end: str) -> None:
    tokenizer = getattr(architectures, kind)()
    prompt, answer = encoded(tokenizer, ASKED, "a good day")
    assert answer[-1] == tokenizer.convert_tokens_to_ids(end)
    assert tokenizer.decode(prompt + answer).endswith(f"a good day{end}")


def test_the_sampled_tokens_are_trained_on_and_those_of_another_tokenizer_are_not() -> None:
    tokenizer = architectures.llama()
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    spelled = [*tokenizer.convert_tokens_to_ids(list("good")), end]
    assert spelled[:-1] != tokenizer("good", add_special_tokens=False)["input_ids"]
    for prompt in ("how was the soup?", ASKED):
        assert encoded(tokenizer, prompt, "good", spelled)[1] == spelled
        assert encoded(tokenizer, prompt, "fine", spelled) == encoded(tokenizer, prompt, "fine")


def test_a_text_answer_follows_its_prompt_behind_a_space() -> None:
    tokenizer = architectures.llama()
    for prompt in ("how was the soup?", "how was the soup? "):
        ids, answer = encoded(tokenizer, prompt, "the bread")
        assert tokenizer.decode(ids + answer, skip_special_tokens=True) == "how was the soup? the bread"


# Training


def short(**changes: Any) -> RSOConfig:
    settings = {
        "num_samples": 16,
        "rejection_beta": 0.2,
        "ranking": "tournament",
        "dpo_beta": 0.1,
        "learning_rate": 1e-2,
        "num_train_epochs": 2,
        "lora": AdapterConfig(r=4),
    }
    return RSOConfig(**settings | changes)


def run(policy: str, candidates: list, folder: Path, settings: RSOConfig, seed: int = 0) -> tuple[list[dict], str]:
    history = train_rso(
        policy,
        candidates,
        reward=liked,
        settings=settings,
        output=folder / "out",
        work_dir=folder / "work",
        seed=seed,
        metrics={"gold": liked},
    )
    return history, content_hash(next((folder / "out").glob("*model.safetensors")))


@pytest.mark.parametrize("loss", ["sigmoid", "hinge"])
def test_the_reward_rises(loss: str, policy: str, candidates: list, tmp_path: Path) -> None:
    history, _ = run(policy, candidates, tmp_path, short(loss_type=loss, num_train_epochs=4))
    first, *steps = history
    before = np.mean(score_rows(liked, candidates))
    assert first["rollout"] == 0 and first["objective/scores"] == pytest.approx(before) == first["objective/gold"]
    assert first["rso/accepted_scores"] > before + 0.05
    assert steps[0]["loss"] == pytest.approx(math.log(2) if loss == "sigmoid" else 1.0, abs=1e-4)  # it is the reference
    assert steps[-1]["rewards/margins"] > 0.1
    after = np.mean(score_rows(liked, sample(str(tmp_path / "out"), tmp_path / "after", seed=1)))
    assert after > before + 0.08


def test_the_reference_of_all_weights_is_the_policy_in_memory(
    policy: str, candidates: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def renamed(name: str, *options: object) -> tuple:
        model, tokenizer = load_policy(name)
        model.config._name_or_path = "nobody/nothing"
        return model, tokenizer

    monkeypatch.setattr(rso, "load_policy", renamed)
    history, _ = run(policy, candidates, tmp_path, short(lora=AdapterConfig(r=0), learning_rate=1e-3))
    assert history[1]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert history[-1]["rewards/margins"] > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_policy_of_two_rounds_is_one_adapter_of_the_first_base(
    dtype: torch.dtype, policy: str, candidates: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranks add up, PEFT loads it, and the second round starts where the first ended."""
    monkeypatch.setattr("shfcas.models.loading._dtype", lambda: dtype)
    settings = short(num_train_epochs=1)
    run(policy, candidates, tmp_path / "a", settings)
    first = str(tmp_path / "a" / "out")
    history, _ = run(first, candidates, tmp_path / "b", settings)
    assert history[1]["loss"] == pytest.approx(math.log(2), abs=1e-4)  # the start is the reference
    second = tmp_path / "b" / "out"
    config = read_json(second / "adapter_config.json")
    assert (config["r"], config["base_model_name_or_path"]) == (8, str(Path(policy).resolve()))
    ids = torch.arange(40)[None]
    with torch.no_grad():
        found = [load_policy(name, dtype=torch.float32)[0](ids).logits for name in (policy, first, str(second))]
        base = load_policy(policy, dtype=torch.float32)[0]
        torch.testing.assert_close(PeftModel.from_pretrained(base, second)(ids).logits, found[2], atol=1e-4, rtol=1e-4)
    assert min((found[i] - found[i + 1]).abs().max() for i in (0, 1)) > 0.01


def test_a_seed_gives_the_same_weights_twice(policy: str, candidates: list, tmp_path: Path) -> None:
    first, second = (run(policy, candidates, tmp_path / name, short()) for name in "ab")
    assert first == second
    assert run(policy, candidates, tmp_path / "c", short(), seed=1)[1] != first[1]


def test_killed_and_resumed_gives_the_weights_of_an_unbroken_run(
    policy: str, candidates: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    class Killer(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 9:  # in the second epoch
                raise KilledError

    def deadly(trainer: Any, *arguments: Any) -> list:
        trainer.add_callback(Killer())
        return train(trainer, *arguments)

    train = pairs.train
    settings = short(checkpoint_steps=2)
    unbroken = run(policy, candidates, tmp_path / "unbroken", settings)
    assert unbroken[0][-1]["step"] == 12
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(pairs, "train", deadly)
        run(policy, candidates, tmp_path / "broken", settings)
    half = max((tmp_path / "broken" / "work").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    (half / "trainer_state.json").write_text('{"epoch": 1')  # killed while it was written
    assert run(policy, candidates, tmp_path / "broken", settings) == unbroken


def test_nothing_is_reported(policy: str, candidates: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ping(*arguments: Any, **more: Any) -> None:
        raise AssertionError("telemetry")

    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", ping)
    run(policy, candidates[:2], tmp_path, short(num_train_epochs=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 1}, "num_samples: expected at least 2, got 1; a pair needs two answers"),
        ({"num_samples": 33}, r"prompt 'p0' has 32 candidates, fewer than num_samples=33; sample more"),
        ({"rejection_beta": 0.0}, "rejection_beta: expected above 0, got 0.0"),
        ({"dpo_beta": -1.0}, "dpo_beta: expected above 0, got -1.0"),
        ({"max_length": 3}, r"RSO: answer \d+ of prompt 'p\d' has \d+ tokens with its prompt, more than 3"),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict, message: str, policy: str, candidates: list, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run(policy, candidates, tmp_path, short(**changes))


def test_rewards_that_order_nothing_are_an_error(policy: str, candidates: list, tmp_path: Path) -> None:
    def alike(completions: list, **columns: object) -> list[float]:
        return [1.0] * len(completions)

    with pytest.raises(UserError, match="orders no pair of accepted answers"):
        train_rso(
            policy,
            candidates,
            reward=alike,
            settings=short(),
            output=tmp_path / "out",
            work_dir=tmp_path / "work",
            seed=0,
        )
