"""Short runs of RLOO and GRPO on a tiny policy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shfcas.data.messages import completion_text
from shfcas.models.loading import load_policy
from shfcas.training.lora import AdapterConfig
from shfcas.training.online.config import GRPOConfig, OnlineConfig, RLOOConfig
from shfcas.training.online.train import train_online
from shfcas.training.online.trainer import make_trainer
from shfcas.utils.files import content_hash
from tests.support import ppo_tiny

BOTH = pytest.mark.parametrize("algorithm", [RLOOConfig, GRPOConfig], ids=["rloo", "grpo"])


LIKED = {f"w{i}" for i in range(0, 60, 4)}


def save_policy(folder: Path) -> str:
    """A tiny model with a word-level tokenizer, saved as any model is."""
    ppo_tiny.tiny_model().save_pretrained(folder)
    ppo_tiny.tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def prompts(chat: bool = False) -> list[dict[str, Any]]:
    texts = [row["prompt"] for row in ppo_tiny.prompts()]
    return [
        {"prompt_id": f"p{i}", "prompt": [{"role": "user", "content": text}] if chat else text, "number": i}
        for i, text in enumerate(texts)
    ]


def liked(completions: list[str], **columns: object) -> list[float]:
    """The share of words that are among the liked quarter of the vocabulary."""
    texts = [completion_text(completion) for completion in completions]
    return [sum(word in LIKED for word in text.split()) / max(1, len(text.split())) for text in texts]


def short(algorithm: type[OnlineConfig], **changes: Any) -> Any:
    settings = {
        "num_rollouts": 3,
        "rollout_batch_size": 16,
        "num_generations": 4,
        "mini_batch_size": 8,
        "learning_rate": 1e-2,
        "max_prompt_length": 32,
        "max_completion_length": 6,
        "save_rollouts": 0,
        "lora": AdapterConfig(r=4),
    }
    return algorithm(**settings | changes)


def run(
    policy: str, folder: Path, settings: Any, reward: Callable = liked, seed: int = 0, **more: Any
) -> tuple[list[dict], str]:
    """Trains; the history and the hash of the weights."""
    history = train_online(
        policy,
        prompts(),
        reward=reward,
        settings=settings,
        output=folder / "out",
        work_dir=folder / "work",
        seed=seed,
        **more,
    )
    return history, content_hash(next((folder / "out").glob("*model.safetensors")))


def trainer(policy: str, folder: Path, settings: Any, reward: Callable = liked, rows: Any = None) -> Any:
    model, tokenizer = load_policy(policy)
    return make_trainer(
        model,
        tokenizer,
        prompts=rows or prompts(),
        reward=reward,
        settings=settings,
        work_dir=folder,
        seed=0,
        metrics={},
    )
