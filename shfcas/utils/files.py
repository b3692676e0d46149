"""Files that are complete or absent: atomic writes, content hashes, JSON lines."""

import codecs
import errno
import fcntl
import hashlib
import json
import math
import numbers
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from shfcas.utils.errors import UserError

_ESCAPED_SURROGATE = re.compile(r"\\ud[89a-f]", re.IGNORECASE)


def local_path(path: str | Path) -> Path:
    """Returns an output path as a Path.

    Raises:
        UserError: the path is a URL, which would become a folder named after its scheme.
    """
    if "://" in str(path):
        raise UserError(
            f"{path}: expected a local path for the output, got a URL; write to a local path and copy the result"
        )
    return Path(path)


def fsync(path: Path) -> None:
    """Waits until a file, or the list of names of a folder, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(partial: Path, final: Path) -> None:
    """Renames a finished file or directory to its final name, durably (fsync, rename, fsync)."""
    for path in sorted(partial.rglob("*")) if partial.is_dir() else []:
        if path.is_file():
            fsync(path)
    fsync(partial)
    os.replace(partial, final)
    fsync(final.parent)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Creates a folder if needed and locks it for this process; the lock ends with the process at the latest.

    Raises:
        UserError: another process has locked it.
    """
    with ExitStack() as stack:
        while not _has_lock(folder, stack):
            pass  # another process finished in between and removed the folder with its lock
        yield


def _has_lock(folder: Path, stack: ExitStack) -> bool:
    """Locks a folder until the stack is closed; False if the folder was removed meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = stack.enter_context((folder / ".lock").open("w"))
        lock_file(lock, folder)
        return os.path.samestat(os.fstat(lock.fileno()), (folder / ".lock").stat())
    except FileNotFoundError:
        return False


@contextmanager
def work_folder(output: Path) -> Iterator[Path]:
    """Yields the hidden folder for shards and checkpoints beside an output, to work in alone.

    The folder is removed on success, and kept on failure so that the same command resumes.

    Raises:
        UserError: another process is making this output.
    """
    folder = output.with_name(f".{output.name}.work")
    with locked_folder(folder):
        try:
            yield folder
        except BaseException:
            if [path.name for path in folder.iterdir()] == [".lock"]:
                _discard(folder)
            raise
        _discard(folder)


def _discard(folder: Path) -> None:
    """Removes a folder whose name another process may take at the same moment."""
    renamed = temporary(folder)
    folder.rename(renamed)
    remove(renamed)


def lock_file(lock: Any, folder: Path) -> None:
    """Locks an open file until it is closed; the error names the folder that the lock protects."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another process is working in {folder}; wait for it, or name another folder") from None


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turns a full disk or a missing permission into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise UserError(
                f"no space left on the disk while writing {what}; all finished work is kept: "
                "free some space and run the same command again"
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS):
            raise UserError(f"cannot write {what}: {error.strerror}; choose a folder you may write to") from error
        raise


def is_disk_full(error: Exception) -> bool:
    """Returns whether the disk is full; safetensors and torch archives report it with errors of their own."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    message = str(error)
    return "No space left on device" in message or ("inline_container" in message and "unexpected pos" in message)


def temporary(path: Path) -> Path:
    """Returns a hidden path beside `path` that no other call and no other process uses."""
    return path.with_name(f".{path.name}.{os.uname().nodename}-{os.getpid()}-{os.urandom(6).hex()}.partial")


_TEMPORARY = re.compile(r"\..+\.(?P<node>.+)-(?P<process>[0-9]+)-[0-9a-f]{12}\.partial")
_cleaned: set[Path] = set()  # folders that this process has cleaned


def _clean(folder: Path) -> None:
    """Removes temporary files of processes of this machine that were killed; looks once per folder and process."""
    if folder in _cleaned:
        return
    _cleaned.add(folder)
    for path in folder.glob(".*.partial"):
        name = _TEMPORARY.fullmatch(path.name)
        if name and name["node"] == os.uname().nodename and not _is_alive(int(name["process"])):
            with suppress(FileNotFoundError):  # another process was faster
                remove(path)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path next to `path`; on success it replaces `path`, on failure it is removed.

    Several processes may write the same file. The last one wins, with its whole file.
    """
    path = local_path(path)
    partial = temporary(path)
    with disk_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clean(path.parent.resolve())
        try:
            yield partial
            publish(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file atomically."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Writes readable JSON atomically."""
    write_text(path, to_json(value, indent=2) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes one JSON object per line, atomically."""
    write_text(path, "".join(to_json(row) + "\n" for row in rows))


def to_json(value: Any, indent: int | None = None, default: Callable[[Any], Any] = float) -> str:
    """Returns valid JSON: null for a number that is not finite, and no lone surrogates.

    Args:
        value: what to write.
        indent: spaces per level; None writes one line.
        default: converts an object that JSON does not know.

    >>> to_json({"tau": float("nan")})
    '{"tau": null}'
    """
    options: dict[str, Any] = {"indent": indent, "ensure_ascii": False, "allow_nan": False, "default": default}
    try:
        text = json.dumps(value, **options)
    except ValueError:  # a number that JSON does not know
        text = json.dumps(null_for_nan(value), **options)
    return without_lone_surrogates(text)


def null_for_nan(value: Any) -> Any:
    """Returns a value with None for each number that is not finite."""
    if isinstance(value, dict):
        return {key: null_for_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [null_for_nan(item) for item in value]
    return None if isinstance(value, numbers.Real) and not math.isfinite(value) else value


def without_lone_surrogates(value: Any) -> Any:
    """Returns a text, or all texts in lists and dictionaries, with U+FFFD for surrogates that UTF-8 cannot write."""
    if isinstance(value, dict):
        return {without_lone_surrogates(key): without_lone_surrogates(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_lone_surrogates(item) for item in value]
    if not isinstance(value, str) or value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def read_text(path: str | Path) -> str:
    """Reads a text file; the error names the file."""
    path = existing(path)
    try:
        return decoded(path.read_bytes(), str(path)).replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def decoded(data: bytes, where: str) -> str:
    """Decodes UTF-8 text, with or without a byte order mark; UTF-16 text if it has one.

    Raises:
        UserError: it is neither.
    """
    try:
        if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return data.decode("utf-16")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def read_json(path: str | Path) -> Any:
    """Reads a JSON file; the error names the file."""
    return parse_json(read_text(path), str(path))


def read_numbers(path: str | Path) -> Any:
    """Reads a JSON file of numbers, such as metrics: null stands for a number that is unknown, and becomes NaN."""
    return nan_for_null(read_json(path))


def nan_for_null(value: Any) -> Any:
    """Returns a value with NaN for each null in its lists and objects."""
    if isinstance(value, dict):
        return {key: nan_for_null(item) for key, item in value.items()}
    if isinstance(value, list):
        return [nan_for_null(item) for item in value]
    return math.nan if value is None else value


def parse_json(text: str, where: str) -> Any:
    """Parses JSON text; the error names the line."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON (line {error.lineno}: {error.msg})") from error
    return without_lone_surrogates(value) if _ESCAPED_SURROGATE.search(text) else value


def read_object(path: str | Path) -> dict[str, Any]:
    """Reads a JSON file that holds one object; the error names the file."""
    value = read_json(path)
    if not isinstance(value, dict):
        kind = {list: "a list", str: "text", type(None): "null", bool: "a boolean"}.get(type(value), "a number")
        raise UserError(f"{path}: expected a JSON object, got {kind}; restore the file")
    return value


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Reads JSON lines; the error names file and line."""
    return list(parse_jsonl(read_text(path).split("\n"), str(path)))


def parse_jsonl(lines: Iterable[str], where: str) -> Iterator[dict[str, Any]]:
    """Yields the objects of JSON lines; an error names the line."""
    for number, line in enumerate(lines, start=1):
        line = line.removeprefix("\ufeff") if number == 1 else line
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: line {number} is not valid JSON ({error.msg})") from error
        if not isinstance(row, dict):
            raise UserError(f"{where}: line {number} is not a JSON object")
        yield without_lone_surrogates(row) if _ESCAPED_SURROGATE.search(line) else row


def existing(path: str | Path) -> Path:
    """Returns `path` as a Path.

    Raises:
        UserError: it does not exist.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist")
    return path


def content_hash(path: str | Path) -> str:
    """Returns the SHA-256 of a file, or of a directory's relative names and contents."""
    path = existing(path)
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
        add_content(digest, file)
    return digest.hexdigest()


def add_content(digest: Any, file: Path) -> None:
    """Adds the content of a file to a digest of hashlib, read in blocks."""
    with file.open("rb") as stream:
        hashlib.file_digest(stream, lambda: digest)


def remove(path: Path) -> None:
    """Removes a file or a directory tree if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
