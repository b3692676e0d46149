"""Checks of a command's outputs before any work: a local path, of the right kind, in a folder that may be written."""

import os
from pathlib import Path
from typing import Any

from shfcas.utils.errors import UserError
from shfcas.utils.files import local_path

FILE, FOLDER, TABLE, PICTURE = "file", "folder", "table", "picture"  # a table is a .parquet file, or a folder of parts

OUTPUTS: dict[str, dict[str, str]] = {
    **{key: {"output": FOLDER} for key in ("demo", "run", "compare", "annotate")},
    **{
        key: {"output": FOLDER}
        for key in ("sft", "train-reward", "ppo", "rloo", "grpo", "rso", "dpo", "merge", "export")
    },
    **{key: {"output": FILE} for key in ("init", "sample", "select", "evaluate")},
    "feedback": {"output": FILE, "out": FILE, "folder": FOLDER},
    "score": {"output": TABLE, "histogram": PICTURE},
    "diagnose": {"plot": PICTURE},
    "serve-reward": {"log": FILE},
    "preflight": {"markdown": FILE},
}


def check_outputs(command: str, config: Any) -> None:
    """Checks the outputs that a command would write.

    Raises:
        UserError: an output is a URL, a folder where a file is written or the other way round, a picture of an unknown
            kind, or lies below a file or in a folder that may not be written.
    """
    for name, kind in OUTPUTS.get(command, {}).items():
        value = getattr(config, name, None)
        exchanged = name == "output" and getattr(config, "action", None)  # labels go to `out`
        if value and not exchanged:
            _check(name, local_path(value), kind)
    if command == "evaluate" and Path(config.output).suffix == ".json":
        raise UserError(
            f"output: expected a .parquet file, got {config.output}, where the metrics are written; name another file"
        )


def _check(name: str, path: Path, kind: str) -> None:
    if kind == PICTURE and path.suffix.lower() not in (".png", ".svg"):
        raise UserError(f"{name}: expected a .png or .svg file, got {path}; change its ending")
    if kind == TABLE:
        kind = FILE if path.suffix == ".parquet" else FOLDER
    if kind == FOLDER and path.exists() and not path.is_dir():
        raise UserError(f"{name}: expected a folder, got the file {path}; name another path, or move the file away")
    if kind != FOLDER and path.is_dir():
        raise UserError(f"{name}: expected a file, got the folder {path}; name a file in it")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"{name}: {path} lies below {above}, which is a file; name another path")
    if not os.access(path if path.is_dir() else above, os.W_OK):
        raise UserError(f"{name}: {above} may not be written; choose a folder you may write to")
