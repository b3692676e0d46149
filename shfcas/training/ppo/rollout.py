"""Rollouts: prompts, sampled answers, and the tensors for PPO training.

All random numbers are functions of (seed, rollout). So a run interrupted between two rollouts resumes exactly, without
generator state.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedTokenizerBase, TemperatureLogitsWarper

from shfcas.data.chat import answer_text, encode_prompt, end_token_ids
from shfcas.data.messages import completion_message
from shfcas.training.ppo.losses import RewardMoments, completion_mask
from shfcas.training.ppo.value_head import LanguageModel, causal_lm
from shfcas.utils.errors import UserError
from shfcas.utils.seeded_choice import SeededChoice
from shfcas.utils.seeds import derive_seed


def permutation(size: int, *parts: int | str) -> list[int]:
    """Returns a random permutation of range(size), determined by the parts of its seed."""
    generator = torch.Generator().manual_seed(derive_seed(*parts, bits=63))
    return torch.randperm(size, generator=generator).tolist()


def prompt_rows(rollout: int, batch_size: int, num_prompts: int, seed: int) -> list[int]:
    """Returns the dataset rows of one rollout: consecutive pieces of reshuffled passes over the dataset."""
    positions = range(rollout * batch_size, (rollout + 1) * batch_size)
    passes = {p: permutation(num_prompts, "prompts", seed, p) for p in {i // num_prompts for i in positions}}
    return [passes[i // num_prompts][i % num_prompts] for i in positions]


@dataclass(frozen=True)
class Prompts:
    """Dataset with the token ids of its prompts, row by row."""

    dataset: Dataset
    ids: list[list[int]]

    def __len__(self) -> int:
        return len(self.ids)


def encode_prompts(
    dataset: Dataset,
    tokenizer: Any,
    *,
    max_prompt_length: int,
    max_completion_length: int,
    context_length: int,
    name: str = "train_dataset",
) -> Prompts:
    """Tokenises the `prompt` column, text or messages (rendered with the chat template).

    Raises:
        ValueError: the prompt column is missing, the dataset is empty, or a prompt is empty, longer than
            `max_prompt_length`, or too long for a completion within the context. Nothing is truncated.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(f"{name}: expected a datasets.Dataset, got {type(dataset).__name__}")
    if "prompt" not in dataset.column_names:
        raise ValueError(f"{name} has no 'prompt' column; its columns are {dataset.column_names}")
    if len(dataset) == 0:
        raise ValueError(f"{name} is empty")
    prompts = dataset["prompt"]
    if not isinstance(prompts[0], str) and tokenizer.chat_template is None:
        raise ValueError(f"{name}: expected text prompts, since the tokenizer has no chat template, got messages")
    encoded = []
    for row, prompt in enumerate(prompts):
        try:
            ids = encode_prompt(tokenizer, prompt)
        except UserError as error:
            raise ValueError(f"{name} row {row}: {error}") from error
        encoded.append(ids)
        if not ids:
            raise ValueError(f"{name} row {row}: the prompt is empty")
        if len(ids) > max_prompt_length:
            raise ValueError(
                f"{name} row {row}: the prompt has {len(ids)} tokens, more than "
                f"max_prompt_length={max_prompt_length}; shorten it, drop it, or raise max_prompt_length"
            )
        if len(ids) + max_completion_length > context_length:
            raise ValueError(
                f"{name} row {row}: a prompt of {len(ids)} tokens and max_completion_length="
                f"{max_completion_length} do not fit into the model's context of {context_length} tokens"
            )
    return Prompts(dataset, encoded)


def stop_ids(model: LanguageModel, tokenizer: PreTrainedTokenizerBase, requested: Sequence[int] | None) -> list[int]:
    """Returns the ids that end a completion: the requested ones, or those of generation config, tokenizer and template.

    Raises:
        ValueError: there are none.
    """
    if requested:
        return sorted(set(requested))
    ids = end_token_ids(model, tokenizer)
    if not ids:
        raise ValueError("neither the tokenizer nor the generation config has an EOS token; set stop_token_ids")
    return sorted(ids)


def pad_rows(rows: Sequence[Sequence[int]], value: int, side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pads rows of ids on one side to a (B, T) tensor; its mask depends only on the lengths."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), value, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        span = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, span] = torch.tensor(row, dtype=torch.long)
        mask[i, span] = True
    return ids.to(device), mask.to(device)


def chunks_by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yields row numbers in chunks of similar length, longest first, so that running out of memory happens early."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]


@torch.no_grad()
def generate(
    policy: LanguageModel,
    prompt_ids: Sequence[Sequence[int]],
    *,
    eos_ids: Sequence[int],
    pad_id: int,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    seeds: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples one completion per prompt from the whole distribution (no top-p, no top-k, no penalties).

    This makes the log-probabilities of the sampled tokens those of the policy, and the KL estimate unbiased. Each
    completion has its own random stream, from its seed, so it does not depend on the rest of the batch. The global
    random state does not change.

    Returns:
        `completion_ids` (N, K), `mask` (N, K) and `finished` (N,), see `completion_mask`.
    """
    lm = causal_lm(policy)
    config = GenerationConfig(
        do_sample=False,  # `SeededChoice` samples
        max_new_tokens=max_new_tokens,
        eos_token_id=list(eos_ids),
        pad_token_id=pad_id,
        use_cache=True,
    )
    completions = torch.full((len(prompt_ids), max_new_tokens), pad_id, dtype=torch.long, device=lm.device)
    mask = torch.zeros_like(completions, dtype=torch.bool)
    finished = torch.zeros(len(prompt_ids), dtype=torch.bool, device=lm.device)
    # `generate` takes missing settings from the model's own config, for example a repetition penalty.
    own_config, lm.generation_config = lm.generation_config, config
    warper = LogitsProcessorList([TemperatureLogitsWarper(temperature)] if temperature != 1 else [])
    try:
        for rows in chunks_by_length([len(ids) for ids in prompt_ids], batch_size):
            ids, attention_mask = pad_rows([prompt_ids[i] for i in rows], pad_id, "left", lm.device)
            choice = SeededChoice([seeds[i] for i in rows], max_new_tokens, warper)
            sequences = lm.generate(
                ids,
                attention_mask=attention_mask.long(),
                generation_config=config,
                logits_processor=LogitsProcessorList([choice]),
            )
            sampled = sequences[:, ids.shape[1] :]
            width = sampled.shape[1]
            completions[rows, :width] = sampled
            mask[rows, :width], finished[rows] = completion_mask(sampled, eos_ids)
    finally:
        lm.generation_config = own_config
    longest = int(mask.sum(dim=1).max())
    return completions[:, :longest], mask[:, :longest], finished


@dataclass
class Rollout:
    """Prompts, completions and per-token tensors; after collection, those of all processes.

    Attributes:
        prompt_ids: (N, P), left-padded.
        prompt_mask: (N, P), bool.
        completion_ids: (N, K), right-padded.
        mask: (N, K), bool.
        finished: (N,), bool: ended with a stop token.
        tokens: (N, K) float tensors by name: log-probabilities, values, advantages and so on.
        columns: (N,) values per answer, by name of the metric.
        metrics: averages of the columns over the whole rollout.
        moments: moments of all rewards up to this rollout; see `RewardMoments`.
        samples: one row of `completions/` per answer, if they are logged.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    mask: Tensor
    finished: Tensor
    tokens: dict[str, Tensor] = field(default_factory=dict)
    columns: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    moments: RewardMoments = field(default_factory=RewardMoments)
    samples: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def lengths(self) -> Tensor:
        """Returns the (N,) number of response tokens of each row, including the stop token."""
        return self.mask.sum(dim=1)

    def model_inputs(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Returns the model inputs of some rows, without columns that are padding in all of them."""
        prompt_mask, mask = self.prompt_mask[rows], self.mask[rows]
        first = self.prompt_mask.shape[1] - int(prompt_mask.sum(dim=1).max())
        width = int(mask.sum(dim=1).max())
        return {
            "input_ids": torch.cat([self.prompt_ids[rows, first:], self.completion_ids[rows, :width]], dim=1),
            "attention_mask": torch.cat([prompt_mask[:, first:], mask[:, :width]], dim=1).long(),
            "completion_mask": mask[:, :width],
        }

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Returns the model inputs and per-token tensors of some rows."""
        inputs = self.model_inputs(rows)
        width = inputs["completion_mask"].shape[1]
        return inputs | {name: values[rows, :width] for name, values in self.tokens.items()}

    def put(self, rows: Sequence[int], **values: Tensor) -> None:
        """Stores per-token results computed on `model_inputs(rows)`."""
        for name, part in values.items():
            if name not in self.tokens:
                self.tokens[name] = part.new_zeros(self.mask.shape)
            self.tokens[name][rows, : part.shape[1]] = part

    def completion_lists(self) -> list[list[int]]:
        """Returns the completion ids as lists, without padding."""
        return [ids[:n].tolist() for ids, n in zip(self.completion_ids.cpu(), self.lengths.tolist(), strict=True)]


class RolloutLoader:
    """Replacement of the base trainer's dataloader: one pass yields the micro-batches of one rollout."""

    def __init__(self, batches: Callable[[], Iterator[dict[str, Tensor]]], length: int) -> None:
        self._batches = batches
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self._batches()


def minibatch_rows(size: int, batch_size: int, *, num_epochs: int, seed: int, rollout: int) -> Iterator[list[int]]:
    """Yields the rows of each micro-batch: `num_epochs` passes over a rollout, each in its own order."""
    for epoch in range(num_epochs):
        order = permutation(size, "minibatches", seed, rollout, epoch)
        for start in range(0, size, batch_size):
            yield order[start : start + batch_size]


def decode(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    completion_ids: Sequence[list[int]],
    finished: Sequence[bool],
) -> list[Any]:
    """Decodes completions in the format of their prompts: text, or one assistant message."""
    return [
        completion_message(prompt, answer_text(tokenizer, ids, ended))
        for prompt, ids, ended in zip(prompts, completion_ids, finished, strict=True)
    ]
