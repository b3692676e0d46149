"""Conflict scores of candidate tables of any size: streaming, in constant memory, resumable by shard."""

import json
import sys
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from shfcas.conflicts.columns import add_conflicts_to_batch, score_columns
from shfcas.conflicts.contrasts import ContrastColumns
from shfcas.conflicts.summary import ConflictSummary
from shfcas.data.candidates import CandidateTable, arrow_columns, check_lengths
from shfcas.data.reading import arrow_rows
from shfcas.data.shards import BATCH_ROWS, SHARD_ROWS, Shard, find_shards, prefetch, read_batches
from shfcas.engines import Engine, Tick
from shfcas.engines.local import LocalEngine
from shfcas.models.resolve import provenance
from shfcas.rewards.laplace import HeadPosterior, LaplaceScorer
from shfcas.rewards.scorers import RewardScorer, check_scorer, load_scorer
from shfcas.rewards.table import add_rewards
from shfcas.sampling.contrast import PREFIX
from shfcas.utils.callables import is_callable_name, load_callable, version
from shfcas.utils.config import differences
from shfcas.utils.errors import UserError
from shfcas.utils.files import (
    atomic_file,
    disk_errors,
    local_path,
    locked_folder,
    parse_jsonl,
    read_object,
    to_json,
    work_folder,
    write_json,
)
from shfcas.utils.parquet import damages, open_parquet, parquet_writer

SUMMARY_KEY = b"shfcas_summary"
AGAIN = "delete it and run the same command again"


def iter_score(
    inputs: Sequence[str],
    policy_score: str = "logprob",
    scorer: RewardScorer | None = None,
    columns: Sequence[str] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yields the batches of the tables, in order, with conflict columns added.

    Args:
        inputs: Parquet files, folders, globs or URLs.
        policy_score: policy score to compare rewards with; see `shfcas.conflicts.columns.policy_scores`.
        scorer: scorer of the rewards; None uses the column `rewards`.
        columns: columns to keep; None keeps all.

    Raises:
        UserError: a table is missing, malformed, or lacks a column; the message names file, row and column.
    """
    shards, schema = find_shards(inputs, SHARD_ROWS)
    recipe = _Recipe(schema, policy_score, scorer=scorer, columns=columns)
    for shard in shards:
        yield from (batch for _, batch in recipe.batches(shard))


def score_table(
    inputs: Sequence[str],
    output: str | Path,
    *,
    policy_score: str = "logprob",
    scorer: RewardScorer | None = None,
    columns: Sequence[str] | None = None,
    shard_rows: int = SHARD_ROWS,
    reward_model: str | None = None,
    cost_model: bool = False,
    posterior: HeadPosterior | None = None,
    too_long: str = "cut",
    contrasts: ContrastColumns | None = None,
    engine: Engine | None = None,
) -> ConflictSummary:
    """Adds conflict columns to tables of any size.

    Args:
        inputs: see `iter_score`.
        output: one Parquet file if the name ends with `.parquet`; otherwise a folder of `part-00000.parquet` and so
            on. An existing folder is resumed.
        policy_score: see `iter_score`.
        scorer: see `iter_score`. With an engine, workers load `reward_model` instead.
        columns: see `iter_score`.
        shard_rows: approximate rows per part.
        reward_model: the scorer's name, recorded in the parts.
        cost_model: whether the scorer flips the sign of that model.
        posterior: of the scorer's head, if it is a `LaplaceScorer`.
        too_long: what workers do with an answer beyond its limit, see `shfcas.rewards.scorers.TOO_LONG`.
        contrasts: adds the columns of contrasts; None: the tables have those that the policy score reads.
        engine: engine that scores the parts; None scores in this process.

    Returns:
        A summary of the conflicts.

    Raises:
        UserError: see `iter_score`; or the folder was made from other tables or with other settings.
    """
    output = local_path(output)
    shards, schema = find_shards(inputs, shard_rows)
    load: Callable[[], RewardScorer] | None = None
    if engine and reward_model:
        check_scorer(reward_model)  # fail here rather than in a worker
        load = partial(load_scorer, reward_model, cost_model, too_long)
        if posterior:
            load = partial(LaplaceScorer, reward_model, posterior, cost_model)
    recipe = _Recipe(
        schema,
        policy_score,
        scorer=scorer,
        columns=columns,
        reward_model=reward_model,
        cost_model=cost_model,
        posterior=posterior,
        contrasts=contrasts,
        load=load,
    )
    total = sum(shard.rows for shard in shards)
    single = output.suffix == ".parquet"
    if single and output.exists() and any(Path(shard.path).resolve() == output.resolve() for shard in shards):
        raise UserError(f"{output} is one of the inputs; name another output")
    with tqdm(total=total, desc="scoring", unit=" prompts", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        if not single:
            here = engine or LocalEngine()
            with disk_errors(str(output)), locked_folder(output):
                return _score_parts(shards, output, recipe=recipe, shard_rows=shard_rows, engine=here, bar=bar)
        if engine is None:
            return recipe.write(shards, output, bar.update)
        with disk_errors(str(output)), work_folder(output) as work_dir:
            _score_parts(shards, work_dir, recipe=recipe, shard_rows=shard_rows, engine=engine, bar=bar)
            return recipe.join(shards, _parts(work_dir, len(shards)), output)


def _parts(folder: Path, count: int) -> list[Path]:
    return [folder / f"part-{index:05d}.parquet" for index in range(count)]


def _score_parts(
    shards: Sequence[Shard], folder: Path, *, recipe: "_Recipe", shard_rows: int, engine: Engine, bar: Any
) -> ConflictSummary:
    """Scores each shard into its own part, unless the part exists."""
    summary = ConflictSummary()
    _begin(folder, recipe.describe(shards, shard_rows))
    done = set(folder.iterdir())  # a listing: network file systems may cache that a file did not exist
    work = list(zip(_parts(folder, len(shards)), shards, strict=True))
    tasks = [(part, shard) for part, shard in work if part not in done]
    made = engine.map(partial(_PartWriter, recipe), tasks, bar.update, model=recipe.has_model)
    for part, shard in work:
        if part in done:
            bar.update(shard.rows)
            summary += _summary_of(part)
        else:
            summary += next(made)
    for left_behind in folder.glob(".part-*.partial"):  # from workers that died
        left_behind.unlink(missing_ok=True)
    return summary


def _summary_of(part: Path) -> ConflictSummary:
    """Reads the summary in a finished part."""
    try:
        return ConflictSummary(**json.loads(pq.read_metadata(part).metadata[SUMMARY_KEY]))
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{part}: damaged or cut off ({reason}); {AGAIN}") from error


class _PartWriter:
    """Worker that scores a shard into its part."""

    def __init__(self, recipe: "_Recipe") -> None:
        self.recipe = recipe

    def __call__(self, task: tuple[Path, Shard], tick: Tick) -> ConflictSummary:
        part, shard = task
        return self.recipe.write([shard], part, tick)


def score_lines(
    lines: Iterable[str],
    output: TextIO,
    *,
    policy_score: str = "logprob",
    scorer: RewardScorer | None = None,
    columns: Sequence[str] | None = None,
    contrasts: ContrastColumns | None = None,
) -> ConflictSummary:
    """Scores JSON lines and writes JSON lines, `BATCH_ROWS` at a time; see `iter_score`."""
    summary, first = ConflictSummary(), 0
    rows: list[dict[str, Any]] = []

    def flush() -> None:
        nonlocal summary, rows, first
        try:
            batch = pa.RecordBatch.from_pydict(arrow_columns(rows))
        except UserError as error:
            raise UserError(f"stdin: rows {first} to {first + len(rows) - 1}, {error}") from error
        check_lengths(batch, "stdin", first)
        recipe = _Recipe(batch.schema, policy_score, scorer=scorer, columns=columns, contrasts=contrasts)
        batch = recipe.scored(batch.select(recipe.read), "stdin", first)
        output.writelines(to_json(row) + "\n" for row in arrow_rows(batch))
        summary += ConflictSummary.from_batch(batch, first)
        first, rows = first + len(rows), []

    try:
        for row in parse_jsonl(lines, "stdin"):
            rows.append(row)
            if len(rows) == BATCH_ROWS:
                flush()
    except UnicodeDecodeError as error:
        raise UserError(f"stdin: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    if rows:
        flush()
    return summary


class _Recipe:
    """Scoring of a table's batches; the constructor checks that all needed columns exist."""

    def __init__(
        self,
        schema: pa.Schema,
        policy_score: str,
        *,
        scorer: RewardScorer | None,
        columns: Sequence[str] | None,
        reward_model: str | None = None,
        cost_model: bool = False,
        posterior: HeadPosterior | None = None,
        contrasts: ContrastColumns | None = None,
        load: Callable[[], RewardScorer] | None = None,
    ) -> None:
        self.policy_score, self.scorer, self.load, self.columns = policy_score, scorer, load, columns
        self.contrasts = contrasts
        has_scorer = scorer is not None or load is not None
        self.has_model = has_scorer or contrasts is not None
        self.about: dict[str, Any] = {"policy_score": policy_score}
        if reward_model:
            self.about |= {"reward_model": reward_model, **provenance(reward_model=reward_model)}
        if cost_model:
            self.about["cost_model"] = True
        if posterior:
            self.about["uncertainty"] = posterior.about()
        if contrasts:
            self.about |= contrasts.about
        self.function = scorer if not reward_model else None
        if reward_model and is_callable_name(reward_model):
            self.function = load_callable(reward_model)
        self.metadata = schema.metadata or {}
        made_scores = [p.column for p in contrasts.principles] if contrasts else []
        stale = {name for name in schema.names if contrasts and name.startswith(PREFIX)}  # of other principles
        needed = {
            *score_columns(policy_score, [*schema.names, *made_scores] if not stale else made_scores),
            *(("prompt_id", "prompt", "completions") if self.has_model else ()),
            *(() if has_scorer else ("rewards",)),
            *(("completions",) if "completions" in schema.names else ()),  # to compare the lengths of lists with
        }.difference(made_scores)
        CandidateTable(schema.empty_table()).require(*sorted(needed), *(columns or ()))
        made = {"pacs", "kendall_distance", "kendall_tau_b", "mean_abs_pacs", "degenerate"}
        kept = [name for name in schema.names if columns is None or name in columns]
        self.dropped = {name for name in needed if name not in kept and name in schema.names}
        self.read = [n for n in schema.names if (n in kept or n in needed) and n not in made | stale]

    def scored(self, batch: pa.RecordBatch, where: str, first_row: int) -> pa.RecordBatch:
        """Returns a batch with the added columns."""
        if self.scorer is None and self.load:
            self.scorer = self.load()  # once per worker
        if self.scorer:
            rewarded = add_rewards(CandidateTable(pa.Table.from_batches([batch])), self.scorer)
            batch = rewarded.batch()
        if self.contrasts:
            batch = self.contrasts(CandidateTable(pa.Table.from_batches([batch]))).batch()
        batch = add_conflicts_to_batch(batch, self.policy_score, where, first_row)
        return batch.drop_columns(sorted(self.dropped)) if self.dropped else batch

    def batches(self, shard: Shard) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yields the scored batches of a shard, each with the index of its first row in the file."""
        for first, batch in read_batches(shard, BATCH_ROWS, self.read):
            yield first, self.scored(batch, shard.name, first)

    def write(self, shards: Sequence[Shard], path: Path, tick: Tick) -> ConflictSummary:
        """Scores shards into one file, atomically, with the summary in its footer."""
        return self._write(path, (item for shard in shards for item in self.batches(shard)), tick)

    def join(self, shards: Sequence[Shard], parts: Sequence[Path], path: Path) -> ConflictSummary:
        """Joins the parts of these shards into the same file that `write` would write."""

        def batches() -> Iterator[tuple[int, pa.RecordBatch]]:
            for shard, part in zip(shards, parts, strict=True):
                position = shard.first_row
                with open_parquet(part) as file:
                    # The schema as written: the reader would rename the items of lists.
                    schema = pa.ipc.read_schema(pa.py_buffer(b64decode(file.metadata.metadata[b"ARROW:schema"])))
                    for group in range(file.num_row_groups):
                        try:
                            table = file.read_row_group(group).cast(schema)
                        except damages() as error:
                            reason = " ".join(str(error).split())
                            raise UserError(f"{part}: damaged ({reason}); {AGAIN}") from error
                        yield position, CandidateTable(table).batch()
                        position += table.num_rows

        return self._write(path, batches(), lambda count: None)

    def _write(self, path: Path, batches: Iterable[tuple[int, pa.RecordBatch]], tick: Tick) -> ConflictSummary:
        summary, writer = ConflictSummary(), None
        with atomic_file(path) as partial:
            try:
                for first, batch in prefetch(batches):
                    if writer is None:
                        schema = batch.schema.with_metadata(self._metadata())
                        writer = parquet_writer(partial, schema)
                    writer.write_batch(batch)
                    summary += ConflictSummary.from_batch(batch, first)
                    tick(batch.num_rows)
                assert writer is not None, "a shard has rows"
                writer.add_key_value_metadata({SUMMARY_KEY: json.dumps(summary.to_dict()).encode()})
            finally:
                if writer is not None:
                    writer.close()
        return summary

    def _metadata(self) -> dict[bytes, bytes]:
        about = json.loads(self.metadata.get(b"shfcas", b"{}")) | self.about
        return {**self.metadata, b"shfcas": json.dumps(about).encode()}

    def describe(self, shards: Sequence[Shard], shard_rows: int) -> dict[str, Any]:
        """Returns a fingerprint of the inputs: settings, and versions of files, models and functions.

        A mismatch refuses to resume. The order of the files is included, since parts are numbered by shard.
        """
        files = {shard.name: shard for shard in shards}
        infos = {name: shard.filesystem.get_file_info(shard.path) for name, shard in files.items()}
        return {
            "files": {
                name: f"input {place}, {info.size} bytes of {info.mtime}"
                for place, (name, info) in enumerate(infos.items(), start=1)
            },
            **self.about,
            "function": version(self.function) if self.function else None,
            "columns": list(self.columns) if self.columns is not None else None,
            "shard_rows": shard_rows,
        }


def _begin(folder: Path, description: dict[str, Any]) -> None:
    """Writes the description of a new folder, or checks that it equals that of an existing one."""
    path = folder / "_score.json"  # readers of Parquet folders skip names with an underscore
    if path.exists():
        changed = differences(read_object(path), description)
        if changed:
            raise UserError(
                f"{folder} was made with other inputs or settings; name a new folder, or undo: {'; '.join(changed)}"
            )
    elif any(folder.glob("*.parquet")):
        raise UserError(f"{folder} contains other Parquet files; name a new folder")
    else:
        write_json(path, description)
