"""Run directory: named stages that are done once, in order, also if the process is killed in between.

A stage writes to a hidden `.partial` path, which is renamed when it is complete. It may keep checkpoints in a hidden
`.work` folder, which is then deleted. `manifest.json` records, for each stage, the hashes of its inputs and its output,
the seed, the versions and the time.
"""

import logging
import platform
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from shfcas.utils.config import differences, fingerprint
from shfcas.utils.errors import UserError
from shfcas.utils.files import content_hash, disk_errors, lock_file, publish, read_json, remove, write_json, write_text
from shfcas.utils.seeds import derive_seed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageContext:
    """Paths and seed for the work of a stage.

    Attributes:
        output: the file or folder to write; it does not exist yet.
        work_dir: a folder that survives a kill, for shards and checkpoints.
        seed: the stage's own seed, derived from the run's seed and the stage's name.
    """

    output: Path
    work_dir: Path
    seed: int


class RunDirectory:
    """Stages and their manifest in one folder; only one process at a time may work in it.

    Args:
        path: the folder; it is created if it is missing.
        config: the whole configuration; a folder that was made with another one is refused.
        seed: the run's seed.
        volatile: dotted names of configuration fields that may differ when the run is resumed.
    """

    def __init__(
        self, path: str | Path, config: dict[str, Any], seed: int, volatile: Collection[str] = frozenset()
    ) -> None:
        self.path, self.config, self.seed = Path(path), config, seed
        with disk_errors(str(self.path)):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("w")
        lock_file(self._lock, self.path)
        self._manifest_path = self.path / "manifest.json"
        self.manifest: dict[str, Any] = {"stages": {}}
        if self._manifest_path.exists():
            self.manifest = read_json(self._manifest_path)
        if self.manifest["stages"]:
            changed = differences(self.manifest["config"], config, skip=volatile)
            if changed:
                raise UserError(
                    f"{self.path} was made with another configuration; name a new folder with --output, or undo: "
                    + "; ".join(changed)
                )
        else:
            self.manifest.update(seed=seed, versions=versions())
        if self.manifest.get("config") != config:
            import yaml

            self.manifest.update(config=config, config_hash=fingerprint(config))
            write_text(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False))
            self._save()

    def stage(
        self, name: str, make: Callable[[StageContext], Any], inputs: Mapping[str, str | Path] | None = None
    ) -> Path:
        """Returns the output of a stage, which is made first if it is missing.

        Args:
            name: the path of the output inside the run directory, such as `round-1/candidates.parquet`.
            make: writes `context.output`.
            inputs: what the stage reads: paths are recorded by their content, names as they are.

        Raises:
            UserError: an input has changed since the stage was done.
        """
        output = self.path / name
        hashes = {key: self._hash(value) for key, value in (inputs or {}).items()}
        record = self.manifest["stages"].get(name)
        if record is not None and record["state"] == "done" and output.exists():
            stale = [key for key, value in hashes.items() if record["inputs"].get(key) != value]
            if stale:
                raise UserError(
                    f"{', '.join(stale)} changed after {output} was made from it; "
                    f"delete {output} to make it again, or name a new folder with --output"
                )
            return output
        partial = output.with_name(f".{output.name}.partial")
        work_dir = output.with_name(f".{output.name}.work")
        seed = derive_seed(self.seed, name)
        started = time.time()
        if record is not None and record["inputs"] != hashes:  # begun with other inputs: start over
            for path in (output, partial, work_dir):
                remove(path)
        if not output.exists():  # it exists if a kill came between the rename and the manifest
            logger.info("%s", name)
            with disk_errors(str(output)):
                self.manifest["stages"][name] = {"state": "running", "inputs": hashes, "seed": seed}
                self._save()
                work_dir.mkdir(parents=True, exist_ok=True)
                remove(partial)
                make(StageContext(partial, work_dir, seed))
                publish(partial, output)
        with disk_errors(str(self._manifest_path)):
            self.manifest["stages"][name] = {
                "state": "done",
                "inputs": hashes,
                "output": content_hash(output),
                "seed": seed,
                "versions": versions(),
                "seconds": round(time.time() - started, 3),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            }
            self._save()
            remove(work_dir)
        return output

    def _hash(self, value: str | Path) -> str:
        """Returns the recorded hash of a stage's output, the hash of another path, or a name as it is."""
        if isinstance(value, str):
            return value
        if value.is_relative_to(self.path):
            record = self.manifest["stages"].get(str(value.relative_to(self.path)), {})
            if record.get("state") == "done":
                return record["output"]
        return content_hash(value)

    def _save(self) -> None:
        write_json(self._manifest_path, self.manifest)


def versions() -> dict[str, str]:
    """Returns the versions of the software that results depend on."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("shfcas", "transformers", "trl", "peft", "datasets", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
