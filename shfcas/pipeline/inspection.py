"""Inspection of a run directory without running it: what is there, and whether it is still what was made."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from shfcas.pipeline.manifest import DONE, RUNNING, Manifest, damage
from shfcas.pipeline.run_directory import hidden
from shfcas.utils.errors import UserError
from shfcas.utils.files import existing

DATABASE = "feedback.sqlite"


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
    path = run / DATABASE
    if not path.exists():
        return []
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            rows = [row[0] for row in connection.execute("PRAGMA integrity_check")]
    except sqlite3.Error as error:
        return [f"{path}: not a readable SQLite database ({error})"]
    return [] if rows == ["ok"] else [f"{path}: {row}" for row in rows]


def status(run: Path) -> dict[str, Any]:
    """Describes a run directory: each stage with its state, its time, and why it was made again.

    Returns:
        `run`, `seconds` in all, and `stages`: rows with `name`, `state`, `seconds`, `finished`, `because`.

    Raises:
        UserError: the folder is not a run directory, or its manifest is damaged.
    """
    stages: list[dict[str, Any]] = [
        {
            "name": name,
            "state": "deleted" if record.state == DONE and not (run / name).exists() else record.state,
            "seconds": record.seconds,
            "finished": record.finished,
            "because": record.because,
        }
        for name, record in open_manifest(run).stages.items()
    ]
    return {"run": str(run), "seconds": round(sum(row["seconds"] for row in stages), 3), "stages": stages}
