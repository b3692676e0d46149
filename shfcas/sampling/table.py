"""Samples whole prompt sets into candidate tables: resumable shards, on any engine."""

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
from shfcas.sampling.protocol import Sampler, label
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
    sampled = sum(len(rows) for path, rows in shards.items() if path in done)
    bar = progress(total=len(prompts), desc="sampling", initial=sampled)
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
    *,
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
        policy: see `shfcas.models.loading`.
        prompts: rows with `prompt_id` and `prompt`.
        config: sampling parameters.
        seed: the root of every answer's random stream.
        work_dir: for the shards; on storage that all workers share.
        references: names of reference models by column, see `LocalSampler`.
        chat_template: for a policy without a template of its own, see `shfcas.models.loading.load_policy`.
        engine: where shards are sampled; None samples them here.
    """
    from shfcas.sampling.provenance import sentence, summary
    from shfcas.sampling.rescored import identity

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
    load = partial(_load_sampler, str(policy), names, chat_template=chat_template, config=config, seed=seed)
    table = _sample_shards(
        load, prompts, config=config, metadata=metadata, work_dir=work_dir, engine=engine or LocalEngine()
    )
    if config.generator == "transformers":
        return table
    table = table.with_metadata(generation={**notes, **summary(table)})
    logger.info("%s", sentence(table))
    return table


def _load_sampler(
    policy: str, references: dict[str, str], *, chat_template: str | None, config: SamplingConfig, seed: int
) -> LocalSampler:
    if config.generator != "transformers":
        from shfcas.sampling.rescored import load_sampler

        return load_sampler(policy, references, chat_template=chat_template, config=config, seed=seed)
    model, tokenizer = load_policy(policy, chat_template)
    others = {column: load_policy(name)[0] for column, name in references.items()}
    return LocalSampler(model, tokenizer, config=config, seed=seed, references=others)
