"""A tiny random language model, a word tokenizer and settings to train them with, made on the spot."""

import os
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from shfcas.training.ppo.losses import completion_mask
from shfcas.training.ppo.rollout import Rollout, pad_rows
from shfcas.training.ppo.trainer import PPOConfig

torch.set_num_threads(1)

WORDS = [f"w{i}" for i in range(60)]
EOS = 0


def tiny_tokenizer(template: bool = True) -> PreTrainedTokenizerFast:
    """Word-level; the padding token is the end token, as in many released models."""
    vocabulary = {word: i for i, word in enumerate(["</s>", "<unk>", "<u>", "<a>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="</s>")
    if template:
        fast.chat_template = (
            "{% for m in messages %}{{ '<u> ' if m['role'] == 'user' else '<a> ' }}{{ m['content'] + ' ' }}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
        )
    return fast


def tiny_config(**changes: object) -> LlamaConfig:
    """Two Llama layers of width 32 over 64 words."""
    settings = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "eos_token_id": EOS,
        "bos_token_id": None,
        "pad_token_id": EOS,
        "initializer_range": 0.3,
    }
    return LlamaConfig(**settings | changes)


def tiny_model(seed: int = 0, **changes: object) -> LlamaForCausalLM:
    """A random policy; ends a completion now and then."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(tiny_config(**changes)).eval()


def tiny_classifier(seed: int = 0, **changes: object) -> LlamaForSequenceClassification:
    """A random reward model that reads the policy's tokens."""
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(tiny_config(**{"num_labels": 1} | changes)).eval()


def lora() -> LoraConfig:
    """An adapter on every linear layer, with a dropout that PPO has to switch off."""
    return LoraConfig(r=4, lora_alpha=16, lora_dropout=0.5, target_modules="all-linear", task_type="CAUSAL_LM")


def prompts() -> Dataset:
    """Eight prompts of different length."""
    texts = ["w1", "w2 w3", "w4 w5 w6", "w7", "w8 w9 w10 w11", "w12", "w13 w14", "w15 w16 w17"]
    return Dataset.from_dict({"prompt": texts, "number": list(range(8))})


def config(folder: Path | str, **changes: object) -> PPOConfig:
    """Small and quick."""
    settings = {
        "num_rollouts": 2,
        "rollout_batch_size": 8,
        "generation_batch_size": 8,
        "per_device_train_batch_size": 4,
        "num_ppo_epochs": 2,
        "max_completion_length": 6,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return PPOConfig(str(folder), **settings | changes)


def share_of(word: str) -> Callable[..., list[float]]:
    """A reward: the share of a completion's words that are this one."""

    def share(completions: list[str], **columns: object) -> list[float]:
        return [text.split().count(word) / max(1, len(text.split())) for text in completions]

    return share


class Crash(RuntimeError):
    """What a killed process looks like from inside."""


class CrashAt(TrainerCallback):
    """Dies after so many steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Crash


PROMPTS = [[5], [6, 7, 8, 9], [10, 11]]


# Finished early, then padded with the end token; truncated; finished at once.
COMPLETIONS = [[12, 13, EOS], [14, 15, 16, 17, 18], [EOS]]


def rollout() -> Rollout:
    completion_ids, _ = pad_rows(COMPLETIONS, EOS, "right", torch.device("cpu"))
    return Rollout(
        *pad_rows(PROMPTS, EOS, "left", torch.device("cpu")),
        completion_ids,
        *completion_mask(completion_ids, [EOS]),
    )
