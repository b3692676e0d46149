"""`shfcas score` on tables larger than memory, compared with pyarrow alone reading and writing the same columns.

    python -m benches.table [--quick] [--answers N ...] [--folder FOLDER]

The bench generates its own table: prompts with 8 answers, rewards and log-probabilities, in one Parquet file. pyarrow
alone reads it and writes it with random numbers instead of scores, in the same parts, with the same compression and
number of threads. Each runs in its own process; MB is the peak of the resident memory of the whole process. The default
is 10^5 to 10^7 answers; 10^8 needs about 4 GB of disk.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benches.bench import Case, Settings, report
from benches.clock import FULL, QUICK
from benches.memory import Spent, spent

ANSWERS, GROUP = 8, 1 << 17


def lists(values: np.ndarray) -> pa.Array:
    """Returns numbers as lists of 8."""
    return pa.ListArray.from_arrays(np.arange(0, len(values) + 1, ANSWERS, dtype=np.int32), pa.array(values))


def make_table(path: Path, prompts: int) -> None:
    """Writes a table with random, unrelated rewards and log-probabilities."""
    rng, writer = np.random.default_rng(0), None
    for start in range(0, prompts, GROUP):
        rows = min(GROUP, prompts - start)
        batch = pa.RecordBatch.from_pydict(
            {
                "prompt_id": pa.array([f"p{i:09d}" for i in range(start, start + rows)]),
                "logprobs": lists(-rng.gamma(5, 10, rows * ANSWERS)),
                "rewards": lists(rng.standard_normal(rows * ANSWERS)),
            }
        )
        writer = writer or pq.ParquetWriter(path, batch.schema, compression="zstd")
        writer.write_batch(batch)
    assert writer is not None
    writer.close()


def with_shfcas(source: Path, output: Path) -> None:
    """Scores a table as the command does."""
    from shfcas.conflicts.streaming import score_table

    score_table([str(source)], output)


def with_pyarrow(source: Path, output: Path) -> None:
    """Reads and writes the same columns; the random columns are generated once."""
    from shfcas.data.shards import BATCH_ROWS, SHARD_ROWS, find_shards, read_batches

    output.mkdir()
    shards, _ = find_shards([str(source)], SHARD_ROWS)
    rng = np.random.default_rng(1)
    pacs = rng.standard_normal(BATCH_ROWS * ANSWERS)
    of_prompt = [pa.array(rng.random(BATCH_ROWS)) for _ in range(3)] + [pa.array(rng.random(BATCH_ROWS) < 0.01)]

    def copy(index: int) -> None:
        writer = None
        for _, batch in read_batches(shards[index], BATCH_ROWS):
            n = batch.num_rows
            names = ("kendall_distance", "kendall_tau_b", "mean_abs_pacs", "degenerate")
            made = dict(zip(names, (column.slice(0, n) for column in of_prompt), strict=True))
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            whole = pa.RecordBatch.from_pydict(columns | {"pacs": lists(pacs[: n * ANSWERS])} | made)
            writer = writer or pq.ParquetWriter(output / f"part-{index:05d}.parquet", whole.schema, compression="zstd")
            writer.write_batch(whole)
        assert writer is not None
        writer.close()

    with ThreadPoolExecutor(os.cpu_count()) as workers:
        list(workers.map(copy, range(len(shards))))


WAYS = {"shfcas": with_shfcas, "pyarrow alone": with_pyarrow}


def prepare(way: str, source: Path, output: Path) -> Callable[[], object]:
    """Returns the measured function, which returns its number of parts."""

    def call() -> int:
        WAYS[way](source, output)
        parts = len(list(output.glob("*.parquet")))
        shutil.rmtree(output)
        return parts

    return call


def tables(sizes: list[int], rounds: int, folder: Path) -> Iterator[list[Case]]:
    """Measures both ways in turns, at every size."""
    small, large = folder / "small.parquet", folder / "large.parquet"
    make_table(small, 1000)
    for answers in sizes:
        make_table(large, answers // ANSWERS)
        runs: dict[str, list[Spent]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                arguments = [(way, source, folder / "output") for source in (small, large)]
                runs[way].append(spent(prepare, *arguments, torch.get_num_threads()))
        times = {way: statistics.median(run.seconds for run in runs[way]) for way in WAYS}
        yield [
            {
                "case": "score",
                "answers": answers,
                "ms": times["shfcas"] * 1e3,
                "least ms": min(run.seconds for run in runs["shfcas"]) * 1e3,
                "answers/s": answers / times["shfcas"],
                "speed, of pyarrow alone": times["pyarrow alone"] / times["shfcas"],
                "MB": max(run.resident_mb for run in runs["shfcas"]),
                "MB pyarrow alone": max(run.resident_mb for run in runs["pyarrow alone"]),
            }
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--answers", type=int, nargs="+", default=[10**5, 10**6, 10**7], help="sizes of the table")
    parser.add_argument("--quick", action="store_true", help="10^5 and 10^6 answers, once")
    parser.add_argument("--folder", help="folder for the tables, which are deleted afterwards (default: temporary)")
    given = parser.parse_args()
    sizes, rounds = ([10**5, 10**6], 1) if given.quick else (given.answers, 3)
    effort = QUICK if given.quick else FULL
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        cases = tables(sizes, rounds, Path(folder))
        report("table", cases, Settings(effort, [torch.get_num_threads()], "cpu", []))


if __name__ == "__main__":
    main()
