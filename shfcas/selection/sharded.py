"""Selection from candidate tables of any size on an engine: each pass reads all shards in parallel."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from shfcas.data.shards import SHARD_ROWS, Shard, ShardRows, find_shards
from shfcas.engines import Engine, Tick
from shfcas.selection.budget import Selection, choose, columns_to_read
from shfcas.selection.config import SelectionConfig
from shfcas.selection.design import Moments
from shfcas.selection.false_discovery import Cases
from shfcas.selection.passes import RowPasses, TopComparisons, merge_top
from shfcas.selection.protocol import Bounds
from shfcas.utils.quantiles import CountPass, merge_counts


def select_table(
    inputs: Sequence[str], config: SelectionConfig, *, seed: int, engine: Engine, shard_rows: int = SHARD_ROWS
) -> Selection:
    """Selects comparisons to label, with the same result as `shfcas.selection.select_with_report` of all rows.

    Args:
        inputs: Parquet files, folders, globs or URLs of tables with conflict columns.
        config: strategy, budget, thresholds, pairing and diversity.
        seed: used if `config.seed` is None.
        engine: engine that reads the shards.
        shard_rows: approximate rows per task; a row group is never split.

    Raises:
        UserError: a table is missing or lacks a column, nothing passes the thresholds, or selected comparisons belong
            to two rows with the same prompt id.
    """
    shards, schema = find_shards(inputs, shard_rows)
    columns = columns_to_read(config, schema.names)
    return choose(_ShardPasses(engine, shards, config=config, seed=seed, columns=columns), config)


class _ShardPasses:
    """Passes of a selection, with one task per shard."""

    def __init__(
        self, engine: Engine, shards: Sequence[Shard], *, config: SelectionConfig, seed: int, columns: list[str]
    ) -> None:
        self.engine, self.shards, self.config = engine, shards, config
        self.make_worker = partial(_Pass, config, seed, columns)

    def values(self, name: str, bounds: Bounds) -> CountPass:
        return lambda window: self._each("values", name, bounds, window)

    def cases(self) -> Cases:
        return sum(self._each("cases"), Counter())

    def moments(self) -> Moments:
        found: Moments = Counter()
        for part in self._each("moments"):
            found.update(part)  # a sum of counters would drop negative values
        return found

    def top(self, bounds: Bounds, count: int) -> TopComparisons:
        return merge_top([*self._each("top", bounds, count)], count)

    def drawn(self, count: int) -> TopComparisons:
        return merge_top([*self._each("drawn", count)], count)

    def _each(self, kind: str, *arguments: Any) -> Iterator[Any]:
        tasks = [(shard, kind, arguments) for shard in self.shards]
        return self.engine.map(self.make_worker, tasks, model=False)


class _Pass:
    """Worker that runs a pass over one shard."""

    def __init__(self, config: SelectionConfig, seed: int, columns: list[str]) -> None:
        self.config, self.seed, self.columns = config, seed, columns

    def __call__(self, task: tuple[Shard, str, tuple[Any, ...]], tick: Tick) -> Any:
        shard, kind, arguments = task
        rows: Iterable[dict[str, Any]] = ShardRows([shard], self.columns)
        passes = RowPasses(rows, self.config, self.seed)
        if kind == "values":
            name, bounds, window = arguments
            return merge_counts(passes.values(name, bounds)(window))
        return getattr(passes, kind)(*arguments)
