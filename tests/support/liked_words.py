"""A tiny policy on disk, a table of its answers, and a taste that training can teach it."""

from pathlib import Path
from typing import Any

from shfcas.sampling.config import SamplingConfig
from shfcas.sampling.table import sample_policy
from tests.support import ppo_tiny

LIKED = {f"w{i}" for i in range(0, 60, 4)}


def save_policy(folder: Path) -> str:
    ppo_tiny.tiny_model().save_pretrained(folder)
    ppo_tiny.tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def sample(policy: str, folder: Path, seed: int = 0) -> list[dict[str, Any]]:
    prompts = [{"prompt_id": f"p{i}", "prompt": text} for i, text in enumerate(ppo_tiny.prompts()["prompt"])]
    config = SamplingConfig(num_completions=32, temperature=1.0, max_new_tokens=6)
    return sample_policy(policy, prompts, config=config, seed=seed, work_dir=folder).rows()


def liked(completions: list[str], **columns: object) -> list[float]:
    """The share of words that are among the liked quarter of the vocabulary."""
    return [sum(word in LIKED for word in text.split()) / max(1, len(text.split())) for text in completions]
