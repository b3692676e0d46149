"""Sampling of whole prompt sets into candidate tables: resumable shards, on any engine."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from shfcas.data.candidates import CandidateTable, concatenate, read_candidates, read_metadata, write_candidates
from shfcas.engines import Engine, Tick
from shfcas.engines.local import LocalEngine
from shfcas.models.loading import load_policy, policy_template
from shfcas.models.resolve import provenance
from shfcas.sampling.config import SamplingConfig
from shfcas.sampling.local import LocalSampler
from shfcas.sampling.protocol import Sampler, generator_label
from shfcas.utils.config import fingerprint, lasting
from shfcas.utils.errors import UserError
from shfcas.utils.progress import progress

logger = logging.getLogger(__name__)


def sample_table(
    sampler: Sampler,
    prompts: Sequence[dict[str, Any]],
    *,
    config: SamplingConfig,
    metadata: dict[str, Any],
    work_dir: Path,
) -> CandidateTable:
    """Samples all prompts, shard by shard; shards already in `work_dir` are not sampled again."""
    return _sample_shards(
        lambda: sampler, prompts, config=config, metadata=metadata, work_dir=work_dir, engine=LocalEngine()
    )


def _sample_shards(
    load: Callable[[], Sampler],
    prompts: Sequence[dict[str, Any]],
    *,
    config: SamplingConfig,
    metadata: dict[str, Any],
    work_dir: Path,
    engine: Engine,
) -> CandidateTable:
    """Samples like `sample_table`, on workers that each load the sampler."""
    _refuse_other_generators(work_dir, metadata)
    recipe = fingerprint([lasting(config), metadata, list(prompts)])
    starts = range(0, len(prompts), config.shard_size)
    shards = {
        work_dir / f"shard-{recipe}-{number:05d}.parquet": prompts[start : start + config.shard_size]
        for number, start in enumerate(starts)
    }
    work_dir.mkdir(parents=True, exist_ok=True)
    done = set(work_dir.iterdir())  # a listing: network file systems may cache that a file did not exist
    sampled = sum(len(rows) for path, rows in shards.items() if path in done)
    bar = progress(total=len(prompts), desc="sampling", initial=sampled)
    tasks = [(path, rows) for path, rows in shards.items() if path not in done]
    for _ in engine.map(partial(_ShardWriter, load, metadata), tasks, bar.update):
        pass
    bar.close()
    return concatenate(_read_shard(path) for path in shards)


def _read_shard(path: Path) -> CandidateTable:
    try:
        return read_candidates(path)
    except UserError as error:
        raise UserError(f"{error}; delete it and run the same command again") from error


class _ShardWriter:
    """Worker that samples a shard of prompts into its file."""

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
        """Releases resources of the sampler, such as the process of a generator."""
        getattr(self.sampler, "close", lambda: None)()


def _refuse_other_generators(work_dir: Path, metadata: dict[str, Any]) -> None:
    """Raises UserError if existing shards are from another generator; a table has one generator, also if resumed."""
    ours = generator_label(metadata.get("generator"))
    for path in sorted(work_dir.glob("shard-*.parquet")):
        theirs = generator_label(read_metadata(path).get("generator"))
        if theirs != ours:
            raise UserError(
                f"{work_dir}: expected shards sampled by {ours}, got {theirs}; a table has one generator: "
                f"resume with {theirs}, or delete that folder to start again"
            )


def sample_policy(
    policy: str | Path,
    prompts: Sequence[dict[str, Any]],
    *,
    config: SamplingConfig,
    seed: int,
    work_dir: Path,
    references: Mapping[str, str | Path] | None = None,
    chat_template: str | None = None,
    engine: Engine | None = None,
) -> CandidateTable:
    """Samples all prompts from a policy loaded by name; the table's metadata records how.

    Log-probabilities come from transformers for every `config.generator`.

    Args:
        policy: see `shfcas.models.loading`.
        prompts: rows with `prompt_id` and `prompt`.
        config: sampling parameters.
        seed: base seed of every answer's random stream.
        work_dir: folder of the shards, on storage that all workers share.
        references: names of reference models by column, see `LocalSampler`.
        chat_template: for a policy without a template, see `shfcas.models.loading.load_policy`.
        engine: engine that samples the shards; None samples in this process.
    """
    from shfcas.sampling.provenance import describe_generation, generation_summary
    from shfcas.sampling.rescored import generator_identity

    names = {column: str(name) for column, name in (references or {}).items()}
    generator, notes = generator_identity(config, str(policy))
    metadata = {
        "policy": str(policy),
        **names,
        **provenance(policy=str(policy), **names),
        "engine": "transformers",  # source of the log-probabilities
        "generator": generator,
        "template": fingerprint(policy_template(str(policy), chat_template)),
        "sampling": lasting(config),
        "seed": seed,
    }
    load = partial(_load_sampler, str(policy), names, chat_template=chat_template, config=config, seed=seed)
    table = _sample_shards(
        load, prompts, config=config, metadata=metadata, work_dir=work_dir, engine=engine or LocalEngine()
    )
    if config.generator == "transformers":
        return table
    table = table.with_metadata(generation={**notes, **generation_summary(table)})
    logger.info("%s", describe_generation(table))
    return table


def _load_sampler(
    policy: str, references: dict[str, str], *, chat_template: str | None, config: SamplingConfig, seed: int
) -> LocalSampler:
    if config.generator != "transformers":
        from shfcas.sampling.rescored import load_sampler

        return load_sampler(policy, references, chat_template=chat_template, config=config, seed=seed)
    model, tokenizer = load_policy(policy, chat_template, float32_head=config.float32_head)
    others = {column: load_policy(name, float32_head=config.float32_head)[0] for column, name in references.items()}
    return LocalSampler(model, tokenizer, config=config, seed=seed, references=others)
