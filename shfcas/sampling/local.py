"""Sampler that uses transformers: completions and their log-probabilities in one generation pass.

With references, all log-probabilities come from a forward pass over the sampled tokens instead, so that a model
compared with itself has a KL of exactly 0.

A prompt is read once for all of its completions in a batch. Each completion has its own random stream, derived from
(seed, prompt id, completion index). So the samples of a prompt do not depend on other prompts in the batch, on their
order, or on an interruption.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from shfcas.data.chat import answer_text, encode_prompt, end_token_ids
from shfcas.data.messages import plain_text
from shfcas.models.loading import context_length, has_key_value_cache
from shfcas.sampling.config import SamplingConfig
from shfcas.sampling.logprobs import response_logprobs
from shfcas.utils.errors import UserError
from shfcas.utils.seeded_choice import SeededChoice
from shfcas.utils.seeds import derive_seed


def _seeded_choice(seeds: Sequence[int], config: SamplingConfig) -> SeededChoice:
    from transformers import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    warpers = LogitsProcessorList()
    if config.temperature != 1:
        warpers.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        warpers.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        warpers.append(TopPLogitsWarper(config.top_p))
    return SeededChoice(seeds, config.max_new_tokens, warpers)


def table_row(prompt: dict[str, Any], answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns a prompt with its answers as a row of a candidate table, one list per column.

    An answer with the text of an earlier one is that answer again. So equal texts have one log-probability, not two
    that differ by rounding, and are a tie.
    """
    first: dict[str, dict[str, Any]] = {}
    answers = [first.setdefault(answer["completions"], answer) for answer in answers]
    return {**prompt, **{name: [answer[name] for answer in answers] for name in answers[0]}}


class LocalSampler:
    """Sampler that uses transformers' `generate`.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer, with a pad token (which may be the end token).
        config: sampling parameters.
        seed: base seed of every answer's random stream.
        references: models with the same vocabulary, by column name, such as `reference_logprobs`. Each column gets
            the log-probabilities of the sampled tokens under its model.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        config: SamplingConfig,
        seed: int = 0,
        references: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.config, self.seed = model, tokenizer, config, seed
        self.references = dict(references or {})
        self.end_ids = end_token_ids(model, tokenizer)
        for column, reference in self.references.items():
            ours, theirs = (m.config.get_text_config().vocab_size for m in (model, reference))
            if ours != theirs:
                raise UserError(
                    f"{column}: expected a model with the policy's vocabulary of {ours} tokens, got {theirs}; "
                    "use a model with the policy's tokenizer"
                )

    def __call__(self, prompts: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yields one row per prompt, in order: the prompt's own columns, and the sampled ones."""
        config = self.config
        encoded = [self._encode(row) for row in prompts]
        # Prompts of similar length share a batch, which needs little padding.
        order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
        requests = [(i, answer) for i in order for answer in range(config.num_completions)]
        answers: dict[int, list[dict[str, Any]]] = {i: [] for i in order}
        done: dict[int, dict[str, Any]] = {}
        following = 0
        for start in range(0, len(requests), config.batch_size):
            batch = requests[start : start + config.batch_size]
            seeds = [derive_seed(self.seed, prompts[i]["prompt_id"], answer, bits=64) for i, answer in batch]
            unique = [*dict.fromkeys(i for i, _ in batch)]
            which = [unique.index(i) for i, _ in batch]
            drawn_now = self._generate([encoded[i] for i in unique], which, seeds)
            for (i, _), answer in zip(batch, drawn_now, strict=True):
                answers[i].append(answer)
                if len(answers[i]) == config.num_completions:
                    done[i] = table_row(prompts[i], answers.pop(i))
            while following in done:
                yield done.pop(following)
                following += 1

    def close(self) -> None:
        """Does nothing: the sampler holds only the models."""

    def _encode(self, row: dict[str, Any]) -> list[int]:
        try:
            ids = encode_prompt(self.tokenizer, row["prompt"])
        except UserError as error:
            raise UserError(f"prompt {row['prompt_id']!r}: {error}") from error
        limit = context_length(self.model) - self.config.max_new_tokens
        if len(ids) > limit:
            raise UserError(
                f"prompt {row['prompt_id']!r} has {len(ids)} tokens; the model's context of "
                f"{context_length(self.model)} allows {limit} with {self.config.max_new_tokens} new tokens: "
                f"shorten it ({plain_text(row['prompt'])[:60]!r}) or lower max_new_tokens"
            )
        return ids

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], which: list[int], seeds: list[int]) -> list[dict[str, Any]]:
        """Samples one left-padded batch; returns one dictionary of table columns per sequence.

        Args:
            prompts: the different prompts of the batch.
            which: the prompt of each sequence.
            seeds: seed of each sequence.
        """
        from transformers import GenerationConfig, LogitsProcessorList

        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        cache = self._read(ids, mask, which)
        ids, mask = ids[which], mask[which]
        choice = _seeded_choice(seeds, self.config)
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.config.max_new_tokens,
            eos_token_id=sorted(self.end_ids) or None,
            pad_token_id=pad,
        )
        # `generate` takes missing settings from the model's generation config. A repetition penalty, for example,
        # would change the probabilities before they are recorded.
        own_config, self.model.generation_config = self.model.generation_config, config
        try:
            sequences = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=LogitsProcessorList([choice]),
                **({} if cache is None else {"past_key_values": cache}),
            )
        finally:
            self.model.generation_config = own_config
        # Log-probabilities that are compared come from the same kernel: decoding and a forward pass over the whole
        # answer round differently, by up to 0.1 nats per answer in bfloat16.
        models = {"logprobs": self.model, **self.references} if self.references else {}
        logprobs = {column: response_logprobs(model, sequences, mask) for column, model in models.items()}
        logprobs = logprobs or {"logprobs": torch.stack(choice.logprobs, dim=1)}
        results = []
        for row, tokens in enumerate(sequences[:, width:].tolist()):
            # The first end token ends the answer. Everything after it is padding, with any id.
            end = next((k for k, token in enumerate(tokens) if token in self.end_ids), None)
            length = len(tokens) if end is None else end + 1
            text = answer_text(self.tokenizer, tokens[:length], end is not None)
            sums = {column: values[row, :length].double().sum().item() for column, values in logprobs.items()}
            drawn = {"completions": text, "num_tokens": length, "completion_ids": tokens[:length]}
            results.append({**drawn, "finished": end is not None, **sums})
        return results

    def _read(self, ids: torch.Tensor, mask: torch.Tensor, which: list[int]) -> Any:
        """Reads the prompts except for their last token; returns the cache for all sequences.

        None where no prompt is shared, or the model's cache is not one of keys and values.
        """
        from transformers import DynamicCache

        if len(which) == len(ids) or ids.shape[1] < 2 or not has_key_value_cache(self.model):
            return None
        cache = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        positions = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, :-1]}
        accepted = inspect.signature(self.model.forward).parameters
        few = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        where = positions if "position_ids" in accepted else {}
        self.model(ids[:, :-1], attention_mask=mask[:, :-1], past_key_values=cache, use_cache=True, **where, **few)
        cache.batch_select_indices(torch.tensor(which, device=ids.device))
        return cache
