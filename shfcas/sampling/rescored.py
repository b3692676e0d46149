"""Sampler that samples with vLLM or a server and rescores with transformers.

Generators compute log-probabilities with different kernels and precisions, sometimes at different temperatures. PACS
compares answers by log-probability, so all of them come from one forward pass of transformers over the sampled tokens.
The generator's own log-probabilities are stored for diagnosis.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from shfcas.data.chat import answer_text, end_token_ids, render_prompt
from shfcas.models.loading import context_length, load_policy
from shfcas.rewards.scorers import padded
from shfcas.sampling import vllm as vllm_generator
from shfcas.sampling.config import SamplingConfig
from shfcas.sampling.local import LocalSampler, table_row
from shfcas.sampling.logprobs import response_logprobs
from shfcas.sampling.protocol import Answer, Generator, Request
from shfcas.sampling.server import ServerGenerator
from shfcas.utils.errors import UserError
from shfcas.utils.seeds import derive_seed

logger = logging.getLogger(__name__)


@dataclass
class _Drawn:
    """A sampled answer, before it becomes part of a table row."""

    prompt: list[int]
    tokens: list[int]
    finished: bool
    text: str
    columns: dict[str, Any]


class RescoredSampler(LocalSampler):
    """Sampler that uses a generator and rescores its answers with transformers.

    Args:
        model: a causal language model for scoring.
        tokenizer: its tokenizer.
        generator: generator of the answers.
        config: sampling parameters.
        seed: base seed of every answer's seed.
        references: see `LocalSampler`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        generator: Generator,
        config: SamplingConfig,
        seed: int = 0,
        references: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, tokenizer, config=config, seed=seed, references=references)
        self.generator = generator
        self.vocabulary = model.get_input_embeddings().weight.shape[0]

    def __call__(self, prompts: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yields one row per prompt, in order: the prompt's own columns, and the sampled ones."""
        requests = [self._requests(row) for row in prompts]
        replies = self.generator([request for group in requests for request in group])
        answers = []
        for row, group in zip(prompts, requests, strict=True):
            pairs = [(request, answer) for request in group for answer in next(replies)]
            answers.append([self._drawn(row, request, answer) for request, answer in pairs])
        flat = [answer for group in answers for answer in group]
        self._score(flat)
        self._check_gap(flat)
        columns = set.intersection(*(set(answer.columns) for answer in flat))  # known for all answers
        for row, drawn in zip(prompts, answers, strict=True):
            yield table_row(
                row,
                [
                    {
                        "completions": answer.text,
                        "num_tokens": len(answer.tokens),
                        "completion_ids": answer.tokens,
                        "finished": answer.finished,
                        **{name: answer.columns[name] for name in sorted(columns)},
                    }
                    for answer in drawn
                ],
            )

    def close(self) -> None:
        """Closes the generator."""
        self.generator.close()

    def _requests(self, row: dict[str, Any]) -> list[Request]:
        """Returns the requests for one prompt, each with its own seed."""
        ids, total = self._encode(row), self.config.num_completions
        each = self.config.server.answers_per_request if self.config.generator == "openai" else 1
        return [
            Request(
                prompt=ids,
                text=render_prompt(self.tokenizer, row["prompt"]),
                special=isinstance(row["prompt"], str),
                seed=derive_seed(self.seed, row["prompt_id"], first, bits=53),  # exact in every JSON parser
                count=min(each, total - first),
            )
            for first in range(0, total, each)
        ]

    def _drawn(self, row: dict[str, Any], request: Request, answer: Answer) -> _Drawn:
        if answer.tokens is None:
            return self._retokenised(row, request, answer)
        where = f"an answer to prompt {row['prompt_id']!r}"
        tokens, logprobs = list(answer.tokens), answer.logprobs
        if not tokens or not all(0 <= token < self.vocabulary for token in tokens):
            raise UserError(f"{where} has tokens outside the policy's vocabulary: the generator has a different model")
        # The first end token ends the answer, as in `LocalSampler`.
        end = next((k for k, token in enumerate(tokens) if token in self.end_ids), None)
        if end is not None:
            tokens = tokens[: end + 1]
        elif answer.finished:
            raise UserError(
                f"{where} ended with token {tokens[-1]}, which is not an end token of the policy "
                f"({', '.join(map(str, sorted(self.end_ids)))}): the generator has a different model or stop tokens"
            )
        elif len(tokens) < self.config.max_new_tokens:
            raise UserError(
                f"{where} was truncated after {len(tokens)} of {self.config.max_new_tokens} tokens: the generator's "
                "context is too short (vLLM: --max-model-len); increase it, or lower max_new_tokens"
            )
        columns: dict[str, Any] = {"same_tokens": self._tokens_of(tokens, end is not None)}
        if logprobs is not None:
            columns["engine_logprobs"] = float(sum(logprobs[: len(tokens)]))
        return _Drawn(
            request.prompt, tokens, end is not None, answer_text(self.tokenizer, tokens, end is not None), columns
        )

    def _tokens_of(self, tokens: list[int], finished: bool) -> bool:
        """Returns whether tokenising an answer's text again gives the sampled tokens."""
        body = tokens[:-1] if finished else tokens
        text = self.tokenizer.decode(body, skip_special_tokens=False)
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] == body

    def _retokenised(self, row: dict[str, Any], request: Request, answer: Answer) -> _Drawn:
        """Tokenises an answer of which only the text is known."""
        tokens = list(self.tokenizer(answer.text, add_special_tokens=False, verbose=False)["input_ids"])
        if answer.finished:
            tokens.append(answer.end if answer.end in self.end_ids else self.tokenizer.eos_token_id)
        if not tokens or len(request.prompt) + len(tokens) > context_length(self.model):
            raise UserError(
                f"an answer to prompt {row['prompt_id']!r} has {len(tokens)} tokens with the policy's tokenizer, which "
                "cannot be scored; use a server that returns token ids, such as vLLM"
            )
        columns = {} if answer.logprobs is None else {"engine_logprobs": float(sum(answer.logprobs))}
        return _Drawn(request.prompt, tokens, answer.finished, answer.text.strip(), columns)

    def _score(self, answers: Sequence[_Drawn]) -> None:
        """Adds the log-probabilities under the policy and the references, in batches of similar length."""
        models = {"logprobs": self.model, **self.references}
        for batch in self._batches(answers):
            prompts = padded([a.prompt for a in batch], self.tokenizer.pad_token_id, self.model.device, "left")
            tails = padded([a.tokens for a in batch], self.tokenizer.pad_token_id, self.model.device)
            sequences = torch.cat([prompts["input_ids"], tails["input_ids"]], dim=1)
            for column, model in models.items():
                values = response_logprobs(model, sequences, prompts["attention_mask"]).double().cpu()
                for answer, row in zip(batch, values, strict=True):
                    answer.columns[column] = row[: len(answer.tokens)].sum().item()

    def _batches(self, answers: Sequence[_Drawn]) -> Iterator[list[_Drawn]]:
        limit, batch = context_length(self.model), list[_Drawn]()
        for answer in sorted(answers, key=lambda a: (len(a.prompt) + len(a.tokens), len(a.prompt))):
            grown = [*batch, answer]
            width = max(len(a.prompt) for a in grown) + max(len(a.tokens) for a in grown)
            if batch and (len(grown) > self.config.batch_size or width > limit):
                yield batch
                grown = [answer]
            batch = grown
        if batch:
            yield batch

    def _check_gap(self, answers: Sequence[_Drawn]) -> None:
        """Checks that the generator assigns about the same log-probabilities as the policy.

        Raises:
            UserError: the mean difference per token exceeds `max_logprob_gap`.
        """
        if self.config.max_logprob_gap is None:
            return
        known = [a for a in answers if a.columns.keys() >= {"engine_logprobs", "same_tokens"}]  # of sampled tokens
        if not known:
            logger.warning(
                "the generator does not return both token ids and log-probabilities, so it cannot be checked that it "
                "has the policy's weights"
            )
            return
        gap = fmean(abs(a.columns["engine_logprobs"] - a.columns["logprobs"]) / len(a.tokens) for a in known)
        if not gap <= self.config.max_logprob_gap:
            raise UserError(
                f"the generator's log-probabilities differ by {gap:.3g} per token from those of "
                f"{self.model.config._name_or_path}, more than sampling.max_logprob_gap="
                f"{self.config.max_logprob_gap:g}: it has a different model (in a run, an earlier policy), "
                "or computes them at another temperature (vLLM: --logprobs-mode raw_logprobs)"
            )


def generator_identity(config: SamplingConfig, policy: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Identifies the configured generator.

    Returns:
        the identity, which must be the same for all shards of a table, and additional metadata.
    """
    if config.generator == "transformers":
        return {"name": "transformers"}, {}
    if config.generator == "vllm":
        return vllm_generator.identity(), {"repeatable": vllm_generator.repeats()}
    server = ServerGenerator(config, policy)
    return server.identity(), {"model": server.model, "repeatable": server.repeats()}


def load_sampler(
    policy: str, references: Mapping[str, str], *, chat_template: str | None, config: SamplingConfig, seed: int
) -> RescoredSampler:
    """Loads the models for scoring, and the generator of `config.generator`."""
    model, tokenizer = load_policy(policy, chat_template, float32_head=config.float32_head)
    others = {column: load_policy(name, float32_head=config.float32_head)[0] for column, name in references.items()}
    ends = end_token_ids(model, tokenizer)
    generator: Generator
    if config.generator == "vllm":
        generator = vllm_generator.VLLMGenerator(config, policy, model=model, tokenizer=tokenizer, end_ids=ends)
    else:
        generator = server = ServerGenerator(config, policy, ends)
        server.check_tokenizer(tokenizer)
    return RescoredSampler(model, tokenizer, generator=generator, config=config, seed=seed, references=others)
