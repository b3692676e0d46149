"""Samples completions with transformers, with their log-probabilities, in one generation pass.

Each completion has its own random stream, derived from (seed, prompt id, completion index), so that what is sampled
for a prompt does not depend on the other prompts of its batch, on their order, or on an interruption.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from shfcas.data.chat import answer_text, encode_prompt, end_token_ids, plain_text
from shfcas.models.loading import context_length
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


class LocalSampler:
    """Samples with transformers' `generate`.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer, with a pad token (which may well be the end token).
        config: sampling parameters.
        seed: the root of every answer's random stream.
        references: models of the same vocabulary by column name, such as `reference_logprobs`: the sampled
            tokens' log-probabilities under each become that column.
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
                    f"the model of {column} has a vocabulary of {theirs} tokens, the policy of {ours}; "
                    "a log-probability ratio needs the same tokenizer for both"
                )

    def __call__(self, prompts: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yields one row a prompt, in order: the prompt's own columns, and the sampled ones."""
        config = self.config
        encoded = [self._encode(row) for row in prompts]
        # Prompts of similar length share a batch, so little of it is padding.
        order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
        requests = [(i, answer) for i in order for answer in range(config.num_completions)]
        answers: dict[int, list[dict[str, Any]]] = {i: [] for i in order}
        done: dict[int, dict[str, Any]] = {}
        following = 0
        for start in range(0, len(requests), config.batch_size):
            batch = requests[start : start + config.batch_size]
            seeds = [derive_seed(self.seed, prompts[i]["prompt_id"], answer, bits=64) for i, answer in batch]
            for (i, _), answer in zip(batch, self._generate([encoded[i] for i, _ in batch], seeds), strict=True):
                answers[i].append(answer)
                if len(answers[i]) == config.num_completions:
                    drawn = answers.pop(i)
                    done[i] = {**prompts[i], **{name: [a[name] for a in drawn] for name in drawn[0]}}
            while following in done:
                yield done.pop(following)
                following += 1

    def close(self) -> None:
        """Nothing is held but the models."""

    def _encode(self, row: dict[str, Any]) -> list[int]:
        try:
            ids = encode_prompt(self.tokenizer, row["prompt"])
        except UserError as error:
            raise UserError(f"prompt {row['prompt_id']!r}: {error}") from error
        room = context_length(self.model) - self.config.max_new_tokens
        if len(ids) > room:
            raise UserError(
                f"prompt {row['prompt_id']!r} has {len(ids)} tokens; the model's context of "
                f"{context_length(self.model)} leaves {room} beside {self.config.max_new_tokens} new tokens: "
                f"shorten it ({plain_text(row['prompt'])[:60]!r}) or lower max_new_tokens"
            )
        return ids

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], seeds: list[int]) -> list[dict[str, Any]]:
        """Samples one left-padded batch; one dictionary of table columns for each sequence."""
        from transformers import GenerationConfig, LogitsProcessorList

        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        choice = _seeded_choice(seeds, self.config)
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.config.max_new_tokens,
            eos_token_id=sorted(self.end_ids) or None,
            pad_token_id=pad,
        )
        # `generate` fills what a config leaves open from the model's own, and a repetition penalty, say, would
        # change the probabilities before they are noted.
        own_config, self.model.generation_config = self.model.generation_config, config
        try:
            sequences = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=LogitsProcessorList([choice]),
            )
        finally:
            self.model.generation_config = own_config
        logprobs = {"logprobs": torch.stack(choice.logprobs, dim=1)}
        for column, reference in self.references.items():
            logprobs[column] = response_logprobs(reference, sequences, mask)
        results = []
        for row, tokens in enumerate(sequences[:, width:].tolist()):
            # The first end token closes the answer. What follows is padding, whichever id padding has.
            end = next((k for k, token in enumerate(tokens) if token in self.end_ids), None)
            length = len(tokens) if end is None else end + 1
            text = answer_text(self.tokenizer, tokens[:length], end is not None)
            sums = {column: values[row, :length].double().sum().item() for column, values in logprobs.items()}
            results.append({"completions": text, "num_tokens": length, "finished": end is not None, **sums})
        return results
