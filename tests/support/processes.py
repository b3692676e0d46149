"""`shfcas` in processes of their own that can be killed.

They are forked from one that has loaded the model libraries: loading them takes seconds, and a test that kills a run a
dozen times would load them a dozen times.
"""

import gc
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "shfcas.pipeline.loop",
        "shfcas.training.online.trainer",
        "shfcas.training.ppo.trainer",
        "transformers.models.bert.modeling_bert",
        "transformers.models.llama.modeling_llama",
    ]
)


def _run(arguments: Sequence[str], output: Path) -> None:
    """What the process does: the command, with everything it prints in a file."""
    gc.freeze()  # or each collection would go through all that was loaded
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    from shfcas.cli import main

    sys.exit(main(arguments))


class Command:
    """`shfcas ARGUMENTS`, started.

    Args:
        arguments: of the command line.
        output: a file, to which everything that it prints is added.
    """

    def __init__(self, arguments: Sequence[str], output: Path) -> None:
        self.output = output
        self.process = PROCESSES.Process(target=_run, args=(arguments, output))
        self.process.start()

    def kill_at(self, folder: Path, pattern: str) -> None:
        """Kills the process with SIGKILL as soon as a path of the folder matches the pattern.

        Raises:
            AssertionError: the process ended before.
        """
        while not any(folder.glob(pattern)):
            self.process.join(0.001)
            assert self.process.exitcode is None, f"ended before {pattern} was there\n{self.printed()}"
        self.process.kill()
        self.process.join()

    def finish(self) -> None:
        """Waits for the end.

        Raises:
            AssertionError: the command failed.
        """
        self.process.join()
        assert self.process.exitcode == 0, self.printed()

    def printed(self) -> str:
        return self.output.read_text(encoding="utf-8") if self.output.exists() else ""
