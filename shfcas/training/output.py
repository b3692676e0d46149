"""Output folder of a command that trains a model: complete or absent, with checkpoints beside it until complete."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shfcas.utils import distributed
from shfcas.utils.errors import UserError
from shfcas.utils.files import disk_errors, publish, remove


@contextmanager
def trained_folder(output: str | Path) -> Iterator[tuple[Path, Path]]:
    """Yields a partial folder and a checkpoint folder; the first is published, the second removed on success.

    Several processes train in the same folders. The first of them creates and publishes these.

    Raises:
        UserError: the output exists already; finished work is never overwritten.
    """
    output = Path(output)
    if output.exists():
        raise UserError(f"{output} exists already; name another --output or delete it")
    partial, work_dir = output.with_name(f".{output.name}.partial"), output.with_name(f".{output.name}.work")
    distributed.start()
    distributed.wait()  # until all have seen that the output does not exist
    with disk_errors(str(output)):
        if distributed.is_main():
            work_dir.mkdir(parents=True, exist_ok=True)
            remove(partial)
        distributed.wait()
        yield partial, work_dir
        distributed.wait()
        if distributed.is_main():
            publish(partial, output)
            remove(work_dir)
