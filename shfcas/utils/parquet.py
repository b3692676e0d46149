"""Parquet files, written with a checksum per page. It is verified on reading where a file has it; others are read too.

A damaged page often unpacks to other numbers without an error. Checksums cover the pages with all values. They do not
cover the footer with the schema and the metadata, where damage is mostly an error of the format.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from shfcas.utils.errors import UserError
from shfcas.utils.files import existing

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import fs

WRITTEN: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
READ: dict[str, Any] = {"page_checksum_verification": True}


def write_parquet(table: "pa.Table", path: str | Path, row_group_size: int | None = None) -> None:
    """Writes a table as one file, not atomically: call it inside `atomic_file`.

    Args:
        table: the table.
        path: the file.
        row_group_size: maximum rows per row group; None leaves it to pyarrow.
    """
    import pyarrow.parquet as pq

    pq.write_table(table, path, row_group_size=row_group_size, **WRITTEN)


def parquet_writer(path: str | Path, schema: "pa.Schema") -> "pq.ParquetWriter":
    """Opens a file for writing in batches."""
    import pyarrow.parquet as pq

    return pq.ParquetWriter(path, schema, **WRITTEN)


def open_parquet(path: str | Path, name: str = "", filesystem: "fs.FileSystem | None" = None) -> "pq.ParquetFile":
    """Opens a file for reading in batches.

    Args:
        path: the file, in its file system.
        name: the file's name in errors; empty: its path.
        filesystem: its file system; None: the local one.

    Raises:
        UserError: it is not a Parquet file. Reading it may raise `damages()`, for which `damaged` has a
            message.
    """
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, filesystem=filesystem, **READ)
    except damages() as error:
        raise damaged(name or str(path), error) from error


def read_parquet(path: str | Path) -> Any:
    """Reads a file as an Arrow table; the error names the file."""
    import pyarrow.parquet as pq

    path = existing(path)
    try:
        return pq.read_table(path, **READ)
    except damages() as error:
        raise damaged(str(path), error) from error


def damages() -> tuple[type[Exception], ...]:
    """Returns the errors of pyarrow for a file that is damaged or something else."""
    import pyarrow as pa

    return pa.ArrowException, OSError, UnicodeDecodeError


def damaged(name: str, error: Exception, place: str = "") -> UserError:
    """Returns the error for a file that cannot be read.

    Args:
        name: the file.
        error: the error of pyarrow.
        place: where reading failed, such as `at or after row 5`.
    """
    reason = " ".join(str(error).split())
    if "CRC checksum" in reason:
        where = f" {place}" if place else ""
        return UserError(f"{name}: damaged{where} (wrong checksum of a page); restore it from a copy, or make it again")
    if place:
        return UserError(f"{name}: broken {place} ({reason})")
    return UserError(f"{name}: not a readable Parquet file ({reason})")
