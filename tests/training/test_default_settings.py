"""Every algorithm at its default settings, on a task whose optimum under the KL penalty is known in closed form.

One prompt, one token out of eight, all answers listed. The policy is a random model that gets the default adapter.
Only lengths and checkpoints are not the defaults. Rewards are scaled so that the optimum lies at 0.3 to 0.5 nats.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shfcas.data.preferences import Preference
from shfcas.models.loading import load_policy
from shfcas.sampling.config import SamplingConfig
from shfcas.sampling.table import sample_policy
from shfcas.training.algorithms import RLConfig
from shfcas.training.dpo import DPOConfig, train_dpo
from shfcas.training.online.config import GRPOConfig, RLOOConfig
from shfcas.training.online.train import train_online
from shfcas.training.ppo.options import PPOStageConfig
from shfcas.training.ppo.train import train_ppo
from shfcas.training.rso import train_rso
from tests.support.closed_form import EOS, PROMPT, answers, distance, distribution, optimum, tokenizer
from tests.support.ppo_tiny import tiny_model

pytestmark = pytest.mark.slow

SIZE, PROMPTS = 8, 256


class Trained:
    """A policy after training, with the one before and the optimum."""

    def __init__(self, algorithm: str, folder: Path, seed: int) -> None:
        outcomes = answers(SIZE, 1)
        settings = getattr(RLConfig(), algorithm)
        self.beta = getattr(settings, {"rso": "rejection_beta", "dpo": "beta"}.get(algorithm, "kl_coef"))
        random = torch.randn(SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.rewards = self.beta * random
        model = tiny_model(seed, vocab_size=SIZE, tie_word_embeddings=False, initializer_range=0.2)
        for part in (model, tokenizer(SIZE)):
            part.save_pretrained(folder / "policy")
        self.reference = distribution(model, outcomes)
        self.target = optimum(self.reference, self.rewards, self.beta)
        text = " ".join(f"w{i}" for i in PROMPT)
        prompts = [{"prompt_id": f"p{i}", "prompt": text} for i in range(PROMPTS)]
        train(algorithm, folder, prompts, self.reward, seed)
        self.policy = distribution(load_policy(str(folder / "output"))[0], outcomes)

    def reward(self, completions: list[str], **columns: object) -> list[float]:
        return [self.rewards[int(text[1:]) if text else EOS].item() for text in completions]

    def gain(self, policy: Tensor) -> float:
        """How much more reward a policy gets than the reference."""
        return ((policy - self.reference) * self.rewards).sum().item()

    @property
    def kl(self) -> float:
        return (self.policy * (self.policy / self.reference).log()).sum().item()


def train(algorithm: str, folder: Path, prompts: list[dict[str, Any]], reward: Any, seed: int) -> None:
    places: dict[str, Any] = {"output": folder / "output", "work_dir": folder / "work", "seed": seed, "reward": reward}
    policy, short = str(folder / "policy"), {"max_completion_length": 1, "save_rollouts": 0}
    if algorithm == "ppo":
        train_ppo(policy, prompts, settings=PPOStageConfig(**short), **places)
    elif algorithm in ("rso", "dpo"):
        sampling = SamplingConfig(temperature=1.0, max_new_tokens=1)
        table = sample_policy(policy, prompts, config=sampling, seed=seed, work_dir=folder / "shards")
        rows = table.rows()
        if algorithm == "rso":
            train_rso(policy, rows, settings=RLConfig().rso, **places)
        else:
            train_dpo(policy, two_pairs_each(rows, reward), candidates=rows, settings=RLConfig().dpo, **places)
    else:
        settings = (RLOOConfig if algorithm == "rloo" else GRPOConfig)(**short)
        train_online(policy, prompts, settings=settings, **places)


def two_pairs_each(rows: list[dict[str, Any]], reward: Any) -> list[Preference]:
    """Labels of the first four answers to each prompt, two and two; equal ones are a tie."""
    pairs = []
    for row in rows:
        scores = reward(row["completions"])
        for a, b in ((0, 1), (2, 3)):
            better, worse = (a, b) if scores[a] >= scores[b] else (b, a)
            texts = row["completions"]
            pairs.append(Preference(row["prompt"], texts[better], texts[worse], prompt_id=row["prompt_id"]))
    return pairs


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("algorithm", ["ppo", "rloo"])
def test_the_optimum_is_reached(algorithm: str, seed: int, tmp_path: Path) -> None:
    """Up to a total variation of 0.05, from 0.33 and 0.19 at the start.

    Measured, seeds 0 and 1: PPO 0.005 and 0.001, RLOO 0.009 and 0.007.
    """
    trained = Trained(algorithm, tmp_path, seed)
    print(algorithm, seed, distance(trained.reference, trained.target), distance(trained.policy, trained.target))
    assert distance(trained.reference, trained.target) > 0.15
    assert distance(trained.policy, trained.target) < 0.05


@pytest.mark.parametrize("seed", range(2))
def test_grpo_goes_beyond_the_optimum_of_its_coefficient(seed: int, tmp_path: Path) -> None:
    """Its advantages are divided by the deviation of the rewards, so `kl_coef` counts in units of that deviation.

    Here it is 25 times weaker than in the other algorithms: more reward is gained than at the optimum of those, at more
    KL, and one answer gets nearly all of the probability, though not always the best one.
    """
    trained = Trained("grpo", tmp_path, seed)
    print("grpo", seed, trained.gain(trained.policy) / trained.gain(trained.target), trained.kl)
    assert trained.gain(trained.policy) > trained.gain(trained.target)
    assert trained.kl > 0.5


@pytest.mark.parametrize("seed", range(2))
def test_rso_learns_from_the_candidates(seed: int, tmp_path: Path) -> None:
    """Pairs say which answer is better and not by how much, so RSO has no optimum in closed form.

    Measured, seeds 0 and 1: 0.65 and 0.91 of the reward that the optimum gains, at 0.35 and 0.43 nats.
    """
    trained = Trained("rso", tmp_path, seed)
    print("rso", seed, trained.gain(trained.policy) / trained.gain(trained.target), trained.kl)
    assert trained.gain(trained.policy) > 0.5 * trained.gain(trained.target)
    assert 0.1 < trained.kl < 2


@pytest.mark.parametrize("seed", range(2))
def test_dpo_learns_from_labels(seed: int, tmp_path: Path) -> None:
    """Verdicts without noise have no optimum at a finite KL, so the effect of 512 pairs is measured, as for RSO.

    Measured, seeds 0 and 1: 0.69 and 0.88 of the reward that the optimum under `beta` gains, at 0.41 and 0.13 nats.
    """
    trained = Trained("dpo", tmp_path, seed)
    print("dpo", seed, trained.gain(trained.policy) / trained.gain(trained.target), trained.kl)
    assert trained.gain(trained.policy) > 0.5 * trained.gain(trained.target)
    assert 0.05 < trained.kl < 2


@pytest.mark.parametrize("seed", range(2))
def test_dpo_reaches_the_optimum_of_noisy_verdicts(seed: int, tmp_path: Path) -> None:
    """Labels drawn by Bradley and Terry's model of a reward: the optimum is pi_ref exp(reward / beta).

    Not at the defaults: a beta of 1 instead of 0.1, with rewards of that scale. 8,192 pairs leave some noise. Measured,
    seeds 0 and 1: a total variation of 0.037 and 0.011, from 0.33 and 0.19 at the start.
    """
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    model = tiny_model(seed, vocab_size=SIZE, tie_word_embeddings=False, initializer_range=0.2)
    for part in (model, tokenizer(SIZE)):
        part.save_pretrained(tmp_path / "policy")
    reference = distribution(model, answers(SIZE, 1))
    target = optimum(reference, rewards, 1.0)
    prompt, texts = " ".join(f"w{i}" for i in PROMPT), ["", *(f"w{i}" for i in range(1, SIZE))]
    row = {"prompt_id": "p", "prompt": prompt, "completions": texts, "finished": [True] + [False] * (SIZE - 1)}
    pairs = []
    for a, b in torch.randint(SIZE, (8192, 2), generator=generator).tolist():
        first = torch.rand(1, generator=generator).item() < torch.sigmoid(rewards[a] - rewards[b]).item()
        better, worse = (a, b) if first else (b, a)
        pairs.append(Preference(prompt, texts[better], texts[worse], prompt_id="p"))
    settings = DPOConfig(beta=1.0, batch_size=128, learning_rate=3e-3)
    places: dict[str, Any] = {"output": tmp_path / "output", "work_dir": tmp_path / "work", "seed": seed}
    train_dpo(str(tmp_path / "policy"), pairs, candidates=[row], settings=settings, **places)
    policy = distribution(load_policy(str(tmp_path / "output"))[0], answers(SIZE, 1))
    print("dpo", seed, distance(reference, target), distance(policy, target))
    assert distance(reference, target) > 0.15
    assert distance(policy, target) < 0.05
