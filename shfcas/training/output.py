"""Output folder of a command that trains a model: complete or absent, with checkpoints beside it until complete."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from shfcas.utils import distributed
from shfcas.utils.errors import UserError
from shfcas.utils.files import disk_errors, publish, remove, work_folder


@contextmanager
def trained_folder(output: str | Path) -> Iterator[tuple[Path, Path]]:
    """Yields a partial folder and a checkpoint folder; the first is published, the second removed on success.

    Several processes train in the same folders. The first of them creates and publishes these.

    Raises:
        UserError: the output exists already, since finished work is never overwritten; or another command is making it.
    """
    output = Path(output)
    _check_absent(output)
    partial, work_dir = output.with_name(f".{output.name}.partial"), output.with_name(f".{output.name}.work")
    distributed.start()
    distributed.wait()  # until all have seen that the output does not exist
    with disk_errors(str(output)), work_folder(output) if distributed.is_main() else nullcontext():
        if distributed.is_main():
            _check_absent(output)  # another command may have made it before this one had the lock
            remove(partial)
        distributed.wait()
        yield partial, work_dir
        distributed.wait()
        if distributed.is_main():
            publish(partial, output)


def _check_absent(output: Path) -> None:
    if output.exists():
        raise UserError(f"{output} exists already; name another --output or delete it")
