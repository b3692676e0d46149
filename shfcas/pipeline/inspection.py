"""Inspection of a run directory without running it: what is there, and whether it is still what was made."""

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from shfcas.feedback.annotation.aggregation import effective, verdicts_by_id, votes
from shfcas.feedback.annotation.config import settings_of_run
from shfcas.feedback.annotation.store import STORE, Store
from shfcas.pipeline.manifest import DONE, RUNNING, Manifest, damage
from shfcas.pipeline.run_directory import hidden
from shfcas.utils.errors import UserError
from shfcas.utils.files import existing, read_json


def open_manifest(run: Path) -> Manifest:
    """Reads the manifest of a run directory.

    Raises:
        UserError: the folder is not a run directory, or its manifest is damaged.
    """
    manifest = Manifest(existing(run))
    if not manifest.path.exists():
        raise UserError(f"{run}: expected a run directory with a manifest.json; shfcas run makes one")
    return manifest


def verify(run: Path) -> list[str]:
    """Checks everything in a run directory: each output file, the manifest's own consistency, the label database.

    Returns:
        One line per finding; empty if all is well.

    Raises:
        UserError: there is no such folder.
    """
    try:
        manifest = open_manifest(existing(run))
    except UserError as error:
        return [str(error), *_database(run)]
    found = []
    for name, record in manifest.stages.items():
        if record.state not in (DONE, RUNNING):
            found.append(f"{name}: unknown state {record.state!r} in the manifest")
        if record.state != DONE:
            continue
        if not record.files:
            found.append(f"{name}: done, but the manifest lists no file of it")
        found += damage(run / name, record, thorough=True)
        for key, stage in record.reads.items():
            source = manifest.stages.get(stage)
            if source is None or source.state != DONE:
                found.append(f"{name}: was made from {stage}, which is not done")
            elif source.output != record.inputs.get(key):
                found.append(f"{name}: was made from another {stage} than the one that is there")
    running = {run / name for name, record in manifest.stages.items() if record.state == RUNNING}
    kept = {hidden(output, kind) for output in running for kind in ("partial", "work")}
    for kind in ("partial", "work"):
        left = (path for path in run.rglob(f".*.{kind}") if path not in kept and not kept.intersection(path.parents))
        found += [f"{path}: left behind by a stage that is not running" for path in left]
    return found + _database(run)


def _database(run: Path) -> list[str]:
    path = run / STORE
    if not path.exists():
        return []
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            rows = [row[0] for row in connection.execute("PRAGMA integrity_check")]
    except sqlite3.Error as error:
        return [f"{path}: not a readable SQLite database ({error})"]
    return [] if rows == ["ok"] else [f"{path}: {row}" for row in rows]


def status(run: Path) -> dict[str, Any]:
    """Describes a run directory: each stage with its state, its time, and why it was made again; and the labels.

    Returns:
        `run`, `seconds` in all; `stages`: rows with `name`, `state`, `seconds`, `finished`, `because`; `queues`: see
        `queues`; `judges`: the reports of language models, by stage; `win_rates`: results of blind comparisons with
        the base, by stage.

    Raises:
        UserError: the folder is not a run directory, or its manifest, its labels or a report is damaged.
    """
    manifest = open_manifest(run)
    stages: list[dict[str, Any]] = [
        {
            "name": name,
            "state": "deleted" if record.state == DONE and not (run / name).exists() else record.state,
            "seconds": record.seconds,
            "finished": record.finished,
            "because": record.because,
        }
        for name, record in manifest.stages.items()
    ]
    reports = {
        name: report
        for name, record in manifest.stages.items()
        if record.settings.get("feedback") == "judge" and (report := (run / name).with_name("judge.json")).exists()
    }
    judges = {name: read_json(report) for name, report in reports.items()}
    win_rates = {
        name: read_json(run / name)
        for name, record in manifest.stages.items()
        if "evaluation.judge" in record.settings and record.state == DONE and (run / name).exists()
    }
    judges |= {name: result["report"] for name, result in win_rates.items() if "report" in result}
    return {
        "run": str(run),
        "seconds": round(sum(row["seconds"] for row in stages), 3),
        "stages": stages,
        "queues": queues(run),
        "judges": judges,
        "win_rates": win_rates,
    }


def queues(run: Path) -> list[dict[str, Any]]:
    """Counts the labels of annotators, also while a page is serving.

    Returns:
        A row per queue, oldest first: `queue`; `asked`, which is the sum of `answered`, `flagged`, `skipped` and
        `pending`; of the answered ones, `ties` and `both_bad`; and `annotators`, each with the comparisons they
        answered. A comparison is answered when `overlap` annotators did, and skipped if all who saw it skipped it.

    Raises:
        UserError: the database of labels is damaged.
    """
    if not (run / STORE).exists():
        return []
    settings, rows = settings_of_run(run), []
    with Store(run / STORE, read_only=True) as store:
        for queue in store.queues():
            items, log = store.item_ids(queue), store.judgements(queue)
            states = Counter(verdict.state for verdict in verdicts_by_id(items, log, settings).values())
            people = Counter(name for answers in votes(effective(log)).values() for name in answers)
            rows.append(
                {
                    "queue": queue,
                    "asked": len(items),
                    "answered": states["preferred"] + states["tie"] + states["both_bad"],
                    "ties": states["tie"],
                    "both_bad": states["both_bad"],
                    "flagged": states["flagged"],
                    "skipped": states["skipped"],
                    "pending": states["open"],
                    "annotators": dict(sorted(people.items())),
                }
            )
    return rows
