"""Answers from the policy, with their log-probabilities, from one generation pass.

Each answer has its own stream of random numbers, derived from (seed, prompt id, answer), so that what is
sampled for a prompt does not depend on the other prompts of its batch, on their order, or on an interruption.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from shfcas.candidates import CandidateTable, concatenate, read_candidates, read_metadata, write_candidates
from shfcas.chat import answer_text, encode_prompt, end_token_ids, plain_text
from shfcas.config import fingerprint, lasting, option
from shfcas.engines import Engine, Tick
from shfcas.engines.local import LocalEngine
from shfcas.errors import UserError
from shfcas.generators import label
from shfcas.generators.settings import GENERATORS, ServerSettings, VLLMSettings
from shfcas.models import context_length, load_policy, policy_template, provenance
from shfcas.progress import progress
from shfcas.seeded_choice import SeededChoice
from shfcas.seeds import derive_seed

logger = logging.getLogger(__name__)


@dataclass
class SamplingConfig:
    """How answers are drawn; the defaults are the authors'."""

    num_completions: int = option(8, "answers per prompt (N)")
    temperature: float = option(0.7, "sampling temperature; log-probabilities are always at temperature 1")
    top_p: float = option(1.0, "nucleus sampling; 1 keeps every token")
    top_k: int = option(0, "keep the k most likely tokens; 0 keeps every token")
    max_new_tokens: int = option(128, "an answer ends here if it has not ended by itself")
    batch_size: int = option(64, "sequences generated at once")
    shard_size: int = option(64, "prompts per resumable shard")
    generator: str = option(
        "transformers", "who draws: transformers, vLLM in this process, or a completions server", GENERATORS
    )
    max_logprob_gap: float | None = option(
        0.05, "refuse a generator whose log-probabilities lie further from the policy's, a token (none: never)"
    )
    server: ServerSettings = option(ServerSettings, "generator openai: the server")
    vllm: VLLMSettings = option(VLLMSettings, "generator vllm")

    def __post_init__(self) -> None:
        for name in ("num_completions", "max_new_tokens", "batch_size", "shard_size"):
            if getattr(self, name) < 1:
                raise UserError(f"sampling.{name}: expected at least 1, got {getattr(self, name)}")
        if self.temperature <= 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise UserError("sampling: expected temperature > 0, 0 < top_p <= 1, top_k >= 0")


class Sampler(Protocol):
    """Anything that turns prompts into rows of a candidate table."""

    def __call__(self, prompts: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yields one candidate row a prompt, in the given order."""


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


@torch.inference_mode()
def response_logprobs(
    model: Any, sequences: torch.Tensor, prompt_mask: torch.Tensor, chunk_size: int = 16
) -> torch.Tensor:
    """Log-probability, at temperature 1, of every token that follows the prompts of a left-padded batch.

    Args:
        model: a causal language model.
        sequences: (B, P + T) token ids, prompts of width P and responses of width T.
        prompt_mask: (B, P), 0 where the prompt is padding.
        chunk_size: sequences a forward pass; bounds the memory that logits take.

    Returns:
        (B, T) float32. Positions after an end token are the caller's to leave out.
    """
    length = sequences.shape[1] - prompt_mask.shape[1]
    mask = torch.cat([prompt_mask, prompt_mask.new_ones(len(sequences), length)], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    accepted = inspect.signature(model.forward).parameters
    keep = {"logits_to_keep": length + 1} if "logits_to_keep" in accepted else {}
    rows = []
    for start in range(0, len(sequences), chunk_size):
        part = slice(start, start + chunk_size)
        # Architectures with relative positions only take none.
        where = {"position_ids": positions[part]} if "position_ids" in accepted else {}
        output = model(input_ids=sequences[part], attention_mask=mask[part], **where, **keep)
        logits = output.logits[:, -length - 1 : -1]
        chosen = logits.gather(-1, sequences[part, -length:, None]).squeeze(-1)
        rows.append(chosen.float() - logits.float().logsumexp(-1))
    return torch.cat(rows)


def sample_table(
    sampler: Sampler,
    prompts: Sequence[dict[str, Any]],
    config: SamplingConfig,
    metadata: dict[str, Any],
    work_dir: Path,
) -> CandidateTable:
    """Samples all prompts, shard by shard; shards already in `work_dir` are not sampled again."""
    return _sample_shards(lambda: sampler, prompts, config, metadata, work_dir, LocalEngine())


def _sample_shards(
    load: Callable[[], Sampler],
    prompts: Sequence[dict[str, Any]],
    config: SamplingConfig,
    metadata: dict[str, Any],
    work_dir: Path,
    engine: Engine,
) -> CandidateTable:
    """As `sample_table`, by workers that load the sampler each."""
    _refuse_other_generators(work_dir, metadata)
    recipe = fingerprint([lasting(config), metadata, list(prompts)])
    starts = range(0, len(prompts), config.shard_size)
    shards = {
        work_dir / f"shard-{recipe}-{number:05d}.parquet": prompts[start : start + config.shard_size]
        for number, start in enumerate(starts)
    }
    work_dir.mkdir(parents=True, exist_ok=True)
    done = set(work_dir.iterdir())  # listed, since a network's file system may remember that a name was missing
    bar = progress(total=len(prompts), desc="sampling")
    bar.update(sum(len(rows) for path, rows in shards.items() if path in done))
    tasks = [(path, rows) for path, rows in shards.items() if path not in done]
    for _ in engine.map(partial(_ShardWriter, load, metadata), tasks, bar.update):
        pass
    bar.close()
    return concatenate(read_candidates(path) for path in shards)


class _ShardWriter:
    """Samples a shard of prompts into its file."""

    def __init__(self, load: Callable[[], Sampler], metadata: dict[str, Any]) -> None:
        self.sampler, self.metadata = load(), metadata

    def __call__(self, task: tuple[Path, Sequence[dict[str, Any]]], tick: Tick) -> None:
        path, prompts = task
        rows = []
        for row in self.sampler(prompts):
            rows.append(row)
            tick(1)
        write_candidates(path, CandidateTable.from_rows(rows, self.metadata))

    def close(self) -> None:
        """Gives back what the sampler holds, such as the process of a generator."""
        getattr(self.sampler, "close", lambda: None)()


def _refuse_other_generators(work_dir: Path, metadata: dict[str, Any]) -> None:
    """One table has one generator, also when it is continued."""
    ours = metadata.get("generator")
    for path in sorted(work_dir.glob("shard-*.parquet")):
        theirs = read_metadata(path).get("generator")
        if label(theirs) != label(ours):
            raise UserError(
                f"{work_dir} holds answers drawn by {label(theirs)}, and now {label(ours)} would draw the others; "
                f"a table has one generator: go on with {label(theirs)}, or delete that folder to start anew"
            )


def sample_policy(
    policy: str | Path,
    prompts: Sequence[dict[str, Any]],
    config: SamplingConfig,
    seed: int,
    work_dir: Path,
    references: Mapping[str, str | Path] | None = None,
    chat_template: str | None = None,
    engine: Engine | None = None,
) -> CandidateTable:
    """Samples all prompts from a policy that is loaded by name; the table records how.

    Whoever draws the answers (`config.generator`), their log-probabilities are those of transformers.

    Args:
        policy: see `shfcas.models`.
        prompts: rows with `prompt_id` and `prompt`.
        config: sampling parameters.
        seed: the root of every answer's random stream.
        work_dir: for the shards; on storage that all workers share.
        references: names of reference models by column, see `LocalSampler`.
        chat_template: for a policy without a template of its own, see `shfcas.models.load_policy`.
        engine: where shards are sampled; None samples them here.
    """
    from shfcas.generators.facts import sentence, summary
    from shfcas.generators.rescored import identity

    names = {column: str(name) for column, name in (references or {}).items()}
    generator, notes = identity(config, str(policy))
    metadata = {
        "policy": str(policy),
        **names,
        **provenance(policy=str(policy), **names),
        "engine": "transformers",  # whose the log-probabilities are
        "generator": generator,
        "template": fingerprint(policy_template(str(policy), chat_template)),
        "sampling": lasting(config),
        "seed": seed,
    }
    load = partial(_load_sampler, str(policy), names, chat_template, config, seed)
    table = _sample_shards(load, prompts, config, metadata, work_dir, engine or LocalEngine())
    if config.generator == "transformers":
        return table
    table = table.with_metadata(generation={**notes, **summary(table)})
    logger.info("%s", sentence(table))
    return table


def _load_sampler(
    policy: str, references: dict[str, str], chat_template: str | None, config: SamplingConfig, seed: int
) -> LocalSampler:
    if config.generator != "transformers":
        from shfcas.generators.rescored import load_sampler

        return load_sampler(policy, references, chat_template, config, seed)
    model, tokenizer = load_policy(policy, chat_template)
    others = {column: load_policy(name)[0] for column, name in references.items()}
    return LocalSampler(model, tokenizer, config, seed, others)
