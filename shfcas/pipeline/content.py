"""Content hashes of what a stage reads: files and folders, models, Python functions, values.

A stage depends on content, never on names: a folder may be moved, and a model that is overwritten under its old name is
another model.
"""

import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from shfcas.data.formats import Columns
from shfcas.data.reading import is_hub_name, read_rows
from shfcas.data.templates import template_text
from shfcas.models.resolve import adapter_base, resolve
from shfcas.utils.callables import is_callable_name, load_callable, version
from shfcas.utils.config import fingerprint
from shfcas.utils.errors import UserError
from shfcas.utils.files import add_content, existing, read_json, write_json

# Files of a model folder that change what the model says: weights, configurations, tokenizer, templates, code.
MODEL_FILES = {".safetensors", ".bin", ".json", ".jinja", ".txt", ".model", ".bpe", ".tiktoken", ".py"}
SETTLED_SECONDS = 2.0  # a file changed more recently may change again within one tick of its time stamp


@dataclass(frozen=True)
class Model:
    """A policy or reward model by name, path, hub id or package."""

    name: str | Path


@dataclass(frozen=True)
class Function:
    """A Python callable, `module:function`."""

    name: str


@dataclass(frozen=True)
class Value:
    """Anything that JSON can write, such as rows of prompts or settings that are not in the configuration."""

    value: Any


Source = Path | Model | Function | Value


def scorer_source(name: str | Path) -> Model | Function:
    """The source behind the name of a reward: a function, or a model."""
    return Function(name) if isinstance(name, str) and is_callable_name(name) else Model(name)


def data_source(name: str | Path) -> Path | Function | Value:
    """The source behind the name of data: a function, a file, or the rows of a data set on the Hub."""
    if isinstance(name, str) and is_callable_name(name):
        return Function(name)
    return Value(read_rows(name)) if isinstance(name, str) and is_hub_name(name) else Path(name)


def column_settings(columns: Columns, *names: str) -> dict[str, str]:
    """The user's names of these columns, for a stage's settings."""
    return {f"{name}_column": columns[name] for name in names if name in columns}


def template_content(chat_template: str | None) -> str | None:
    """The text of a chat template that is named by a file, for a stage's settings."""
    return None if chat_template is None else template_text(chat_template)


class FileHashes:
    """SHA-256 of files, remembered by size and modification time, so that a large file is read once.

    Args:
        path: a JSON file that keeps the hashes; it is a cache and may be deleted at any time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[Any]] = {}
        try:
            known = read_json(path)
        except UserError:
            known = None
        if isinstance(known, dict):
            self._known = {name: entry for name, entry in known.items() if isinstance(entry, list) and len(entry) == 3}
        self._changed = False

    def file(self, path: Path) -> str:
        """Returns the hash of a file's content."""
        real = path.resolve()
        stat = existing(real).stat()
        entry = self._known.get(str(real))
        if entry and entry[:2] == [stat.st_size, stat.st_mtime_ns]:
            return str(entry[2])
        found = hash_file(real)
        if time.time() - stat.st_mtime > SETTLED_SECONDS:
            self._known[str(real)] = [stat.st_size, stat.st_mtime_ns, found]
            self._changed = True
        return found

    def files(self, path: Path) -> str:
        """Returns the hash of a file, or of all files in a folder with their relative names."""
        if existing(path).is_file():
            return self.file(path)
        return join_hashes({str(f.relative_to(path)): self.file(f) for f in files_in(path)})

    def model(self, name: str) -> str:
        """Returns the hash of a model's weights, configurations, tokenizer and template, and of an adapter's base."""
        folder = Path(resolve(name))
        chosen = [f for f in files_in(folder) if f.suffix in MODEL_FILES]
        hashes = {str(f.relative_to(folder)): self.file(f) for f in chosen}
        base = adapter_base(str(folder))
        if base is not None:
            hashes["(base model)"] = self.model(base)
        return join_hashes(hashes)

    def save(self) -> None:
        """Writes the cache if it grew."""
        if self._changed:
            write_json(self._path, self._known)
            self._changed = False


def content_of(source: Source, hashes: FileHashes) -> str:
    """Returns the hash of a source's content.

    Raises:
        UserError: a file, model or function does not exist.
    """
    if isinstance(source, Path):
        return hashes.files(source)
    if isinstance(source, Model):
        return hashes.model(str(source.name))
    if isinstance(source, Function):
        return version(load_callable(source.name))
    return fingerprint(source.value)


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file, read in blocks."""
    digest = sha256()
    add_content(digest, path)
    return digest.hexdigest()


def join_hashes(hashes: dict[str, str]) -> str:
    """Returns one hash of named hashes, whatever their order."""
    return sha256("".join(f"{name}\0{value}\n" for name, value in sorted(hashes.items())).encode()).hexdigest()


def files_in(path: Path) -> list[Path]:
    """Lists the visible files of a folder and of its folders, sorted; of a file, the file itself."""
    if path.is_file():
        return [path]
    found = (p for p in path.rglob("*") if p.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(path).parts))
