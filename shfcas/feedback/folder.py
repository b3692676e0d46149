"""A folder of labels for a queue file, without a run: the page, the log and the settings of its annotators."""

import re
from pathlib import Path

from shfcas.data.candidates import read_candidates
from shfcas.feedback import read_queue
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.schema import make_items
from shfcas.feedback.annotation.store import STORE, Store
from shfcas.utils.config import to_dict
from shfcas.utils.errors import UserError
from shfcas.utils.files import local_path, write_text

FOLDER = "annotation"
SEED = 0  # of sides and repeats


def queue_name(path: str | Path) -> str:
    """Returns the name under which a folder keeps a queue file: the file's name without suffix."""
    return re.sub(r"[^\w-]+", "-", Path(path).stem).strip("-") or "queue"


def make_folder(folder: str | Path) -> Path:
    """Makes the folder if it is missing.

    Raises:
        UserError: it is a run directory, whose queues come from its rounds.
    """
    folder = local_path(folder)
    if (folder / "manifest.json").exists():
        raise UserError(f"{folder} is a run directory; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def has_queue(folder: Path) -> bool:
    """Checks whether a folder or run directory has comparisons to label."""
    if not (folder / STORE).exists():
        return False
    with Store(folder / STORE) as store:
        return bool(store.queues())


def add_queue_file(folder: Path, queue: str | Path, table: str | Path, round: int = 1) -> str:
    """Adds the comparisons of a queue file to the folder's log, and returns the queue's name.

    The same file again, or one with other comparisons, keeps the answers of equal comparisons.

    Args:
        folder: the folder.
        queue: the queue file.
        table: the candidate table that it was selected from.
        round: the round to record.

    Raises:
        UserError: a file is missing or damaged, the queue is empty, or the table lacks an answer.
    """
    name = queue_name(queue)
    items = make_items(read_queue(queue), read_candidates(table), name, round)
    if not items:
        raise UserError(f"{queue} has no comparisons; select some with shfcas select")
    with Store(make_folder(folder) / STORE) as store:
        store.add_queue(items, SEED)
    return name


def save_settings(folder: Path, settings: HumanConfig) -> None:
    """Writes the settings to the folder's `config.yaml`, from which page, exports and preferences read them."""
    import yaml

    write_text(folder / "config.yaml", yaml.safe_dump({"human": to_dict(settings)}, sort_keys=False))
