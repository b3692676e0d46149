"""Selection from candidate tables of any size on an engine: each pass goes through all shards at once."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from shfcas.data.shards import SHARD_ROWS, Shard, ShardRows, find_shards
from shfcas.engines import Engine, Tick
from shfcas.selection.budget import RowPasses, Selection, Wanted, choose, columns_to_read, most_wanted
from shfcas.selection.config import SelectionConfig
from shfcas.selection.false_discovery import Cases
from shfcas.selection.protocol import Bounds
from shfcas.utils.quantiles import Counted, add_up


def select_table(
    inputs: Sequence[str], config: SelectionConfig, *, seed: int, engine: Engine, shard_rows: int = SHARD_ROWS
) -> Selection:
    """The comparisons to ask for: the same as `shfcas.selection.select_with_report` takes from all rows.

    Args:
        inputs: Parquet files, folders, globs or URLs of tables with conflict columns.
        config: strategy, budget, thresholds, pairing and diversity.
        seed: used where `config.seed` is None.
        engine: where the shards are gone through.
        shard_rows: rows of a task, about; a row group is never split.

    Raises:
        UserError: a table is missing or lacks a column, nothing passes the thresholds, or two rows of one prompt id are
            to be asked about.
    """
    shards, schema = find_shards(inputs, shard_rows)
    columns = columns_to_read(config, schema.names)
    return choose(_ShardPasses(engine, shards, config=config, seed=seed, columns=columns), config)


class _ShardPasses:
    """The passes of a selection, each a task a shard."""

    def __init__(
        self, engine: Engine, shards: Sequence[Shard], *, config: SelectionConfig, seed: int, columns: list[str]
    ) -> None:
        self.engine, self.shards, self.config = engine, shards, config
        self.make_worker = partial(_Pass, config, seed, columns)

    def values(self, name: str, bounds: Bounds) -> Counted:
        return lambda window: self._each("values", name, bounds, window)

    def cases(self) -> Cases:
        return sum(self._each("cases"), Counter())

    def wanted(self, bounds: Bounds) -> Wanted:
        return most_wanted([*self._each("wanted", bounds)], self.config)

    def _each(self, kind: str, *arguments: Any) -> Iterator[Any]:
        tasks = [(shard, kind, arguments) for shard in self.shards]
        return self.engine.map(self.make_worker, tasks, model=False)


class _Pass:
    """Goes through one shard."""

    def __init__(self, config: SelectionConfig, seed: int, columns: list[str]) -> None:
        self.config, self.seed, self.columns = config, seed, columns

    def __call__(self, task: tuple[Shard, str, tuple[Any, ...]], tick: Tick) -> Any:
        shard, kind, arguments = task
        rows: Iterable[dict[str, Any]] = ShardRows([shard], self.columns)
        passes = RowPasses(rows, self.config, self.seed)
        if kind == "values":
            name, bounds, window = arguments
            return add_up(passes.values(name, bounds)(window))
        return passes.cases() if kind == "cases" else passes.wanted(*arguments)
