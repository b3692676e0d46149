"""Exchange of queues and answers with other tools: one module per format."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.feedback.annotation.aggregation import effective
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.store import Store
from shfcas.feedback.exchange import argilla, jsonl, label_studio, trl
from shfcas.feedback.exchange.answers import Answer, Reconciled
from shfcas.feedback.exchange.matching import Export, RunItems
from shfcas.feedback.exchange.reading import Problems, read_parquet_rows, read_rows
from shfcas.utils.config import Options, option
from shfcas.utils.errors import UserError

FORMATS = {"jsonl": jsonl, "trl": trl, "label-studio": label_studio, "argilla": argilla}


@dataclass
class ExchangeBaseConfig(Options):
    """Settings of export and import."""

    format: str = option("jsonl", "format of the file", tuple(FORMATS), common=True)
    run_queue: str | None = option(None, "export: queue of the run, such as round-1 (none: the newest)")
    answers: bool = option(True, "export: include the answers so far")
    with_scores: bool = option(False, "export: show rewards and conflicts to the annotators")
    side_seed: int | None = option(None, "export: seed of which answer is on the left (none: the seed of the queue)")
    replace: bool = option(
        False, "import: replace an annotator's old answer by a different new one; backup: replace an existing file"
    )


def export_answers(
    store: Store, path: str | Path, options: ExchangeBaseConfig, settings: HumanConfig | None = None
) -> dict[str, Any]:
    """Writes a queue with its answers for another tool.

    Args:
        store: the run's store.
        path: the file to write; an existing file is replaced.
        options: format and content of the file.
        settings: how several answers become one preference, for `trl`.

    Returns:
        `queue`, the numbers of `items` and `judgements`, and `output`, the written files.

    Raises:
        UserError: there is no such queue.
    """
    queues = store.queues()
    queue = queues[-1] if options.run_queue is None and queues else options.run_queue
    if queue not in queues:
        known = f"it has {', '.join(queues)}" if queues else "it has none yet; start the run or its page first"
        raise UserError(f"the run has no queue {queue or 'at all'}; {known}")
    log = store.judgements(queue) if options.answers or options.format == "trl" else []
    items, seed = store.items(queue), store.seed(queue)
    side_seed = seed if options.side_seed is None else options.side_seed
    settings = settings or HumanConfig()
    counting = effective(log, settings.exclude_informed)
    export = Export(queue, seed, items, log, counting, settings, options.with_scores, side_seed)
    files = FORMATS[options.format].write(Path(path), export)
    return {"queue": queue, "items": len(items), "judgements": len(log), "output": " ".join(map(str, files))}


def import_answers(
    store: Store, paths: Sequence[str | Path], options: ExchangeBaseConfig, settings: HumanConfig | None = None
) -> dict[str, Any]:
    """Adds the answers of files to the log: all of them, or none if any row is invalid.

    Args:
        store: the run's store.
        paths: the files.
        options: the format.
        settings: settings of the run; they turn margins in `trl` into strengths.

    Returns:
        The number of `judgements` in the files, of those `new` to the log, and of new `queues`.

    Raises:
        UserError: some rows are invalid; the message lists them, and nothing is written.
    """
    problems = Problems()
    log = store.judgements()
    # Answers to items that are no longer selected are kept as well.
    queues = {name: [*store.deselected(name), *store.items(name)] for name in store.queues()}
    run_items = RunItems(queues, settings or HumanConfig(), {j.annotator for j in log}, problems)
    read: list[Answer] = []
    for path in paths:
        if Path(path).suffix == ".parquet" and options.format == "trl":
            rows = read_parquet_rows(path)
        else:
            rows = read_rows(path, problems)
        read += FORMATS[options.format].read(rows, run_items)
    reconciled = Reconciled(read, log, run_items, options.replace)
    problems.check()
    for seed, items in run_items.new.values():
        store.add_queue(items, seed)
    new = store.record_all(reconciled.new)
    return {"judgements": len(read), "new": new, "queues": len(run_items.new)}
