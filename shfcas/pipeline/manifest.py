"""The manifest of a run directory: a record of each stage, checked when it is read and written atomically."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from shfcas.pipeline.content import files_in, hash_file, join_hashes
from shfcas.utils.errors import UserError
from shfcas.utils.files import read_json, write_json

NAME = "manifest.json"
FORMAT = 2
RUNNING, DONE = "running", "done"


@dataclass
class Record:
    """What is known about one stage.

    Attributes:
        state: `running` or `done`.
        inputs: content hash of everything the stage read, by name.
        reads: of these inputs, the ones that are outputs of other stages, with the names of those stages.
        settings: dotted configuration keys that the stage uses, with their values.
        seed: the stage's own seed.
        files: of a finished stage, each output file by its path below the output (`.` for a file) with its size in
            bytes, modification time in nanoseconds and SHA-256.
        versions: of Python and of the packages that a result depends on.
        seconds: how long the start took that finished it.
        finished: when it was finished.
        because: why it was last made, where it had been made before.
        work: `kind` and `amount` of the work that took these seconds; empty if a part of it was done in another start.
    """

    state: str
    inputs: dict[str, str]
    settings: dict[str, Any]
    seed: int
    files: dict[str, list[Any]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    finished: str = ""
    because: list[str] = field(default_factory=list)
    reads: dict[str, str] = field(default_factory=dict)
    work: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> str:
        """One hash of all output files."""
        return join_hashes({name: entry[2] for name, entry in self.files.items()})


class Manifest:
    """All records of a run directory.

    Args:
        folder: the run directory.

    Raises:
        UserError: the manifest is damaged, was written by another version, or is missing beside results.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.stages: dict[str, Record] = {}
        self.about: dict[str, Any] = {}
        if self.path.exists():
            self._read()
        elif leftovers(folder):
            raise UserError(
                f"{folder} holds results ({', '.join(leftovers(folder)[:3])}) and no {NAME}, which says what they were "
                f"made from; put {NAME} back from a copy, or name a new folder with --output"
            )

    def _read(self) -> None:
        remedy = f"put {NAME} back from a copy, or name a new folder with --output"
        try:
            values = read_json(self.path)
        except UserError as error:
            raise UserError(f"{error}; {remedy}") from error
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            written = (
                "by an earlier version of shfcas" if isinstance(values, dict) and "stages" in values else "otherwise"
            )
            raise UserError(f"{self.path}: expected format {FORMAT}, but it was written {written}; {remedy}")
        known = {f.name for f in fields(Record)}
        try:
            self.stages = {
                name: Record(**{key: value for key, value in record.items() if key in known})
                for name, record in values["stages"].items()
            }
            for record in self.stages.values():
                _ = record.output  # damaged entries show here
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(f"{self.path}: damaged record ({error}); {remedy}") from error
        self.about = {key: value for key, value in values.items() if key not in ("format", "stages")}

    def save(self) -> None:
        """Writes the manifest atomically."""
        stages = {name: {**asdict(record), "output": record.output} for name, record in self.stages.items()}
        write_json(self.path, {"format": FORMAT, **self.about, "stages": stages})


def leftovers(folder: Path) -> list[str]:
    """Names in a folder that only a run leaves there."""
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("round-") or p.name == "feedback.sqlite")


def describe_files(output: Path) -> dict[str, list[Any]]:
    """Size, modification time and hash of each file of an output, by its path below the output."""
    found = {}
    for file in files_in(output):
        stat = file.stat()
        found[str(file.relative_to(output))] = [stat.st_size, stat.st_mtime_ns, hash_file(file)]
    return found


def damage(output: Path, record: Record, *, thorough: bool = False) -> list[str]:
    """What differs between an output and its record, one line per file.

    Args:
        output: a file or folder.
        record: of its finished stage; time stamps of files with unchanged content are updated in it.
        thorough: hash every file, also where size and modification time are those of the record.
    """
    found, present = [], {str(f.relative_to(output)): f for f in files_in(output)} if output.exists() else {}
    for name, (size, modified, content) in record.files.items():
        where = output if name == "." else output / name
        file = present.pop(name, None)
        if file is None:
            found.append(f"{where}: missing")
            continue
        stat = file.stat()
        if [stat.st_size, stat.st_mtime_ns] == [size, modified] and not thorough:
            continue
        if stat.st_size != size:
            found.append(f"{where}: {stat.st_size} bytes, {size} when it was made")
        elif hash_file(file) != content:
            found.append(f"{where}: content differs from when it was made")
        else:
            record.files[name][1] = stat.st_mtime_ns
    return found + [f"{output / name}: was not there when the stage was done" for name in present]
