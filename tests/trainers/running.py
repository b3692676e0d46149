"""The running server and the exports that the tests of trainers share.

The tests import it by this name alone, because OpenRLHF's wheel has a package `tests` of its own.
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKEN = "a-token-for-tests"


@dataclass(frozen=True)
class World:
    """A running server, the exports, and the rewards that shfcas computes itself.

    Attributes:
        folder: with `policy`, and the exports, such as `verl-encoder`.
        address: of the server.
        prompts: of the exports.
        answers: to each prompt.
        rewards: by prompt and answer.
    """

    folder: Path
    address: str
    prompts: list[Any]
    answers: list[str]
    rewards: list[list[float]]

    def words(self, export: str) -> list[str]:
        """The words that `train.sh` of an export passes to Python, as a shell passes them."""
        shim = self.folder / "bin"
        shim.mkdir(exist_ok=True)
        (shim / "python").write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
        (shim / "python").chmod(0o755)
        environment = {**os.environ, "PATH": f"{shim}:{os.environ['PATH']}", "SHFCAS_REWARD_URL": self.address}
        script = self.folder / export / "train.sh"
        said = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, check=True)
        return said.stdout.split("\0")[:-1]

    def url(self, path: str) -> str:
        """The server's address with its token, for clients that send no headers of their own."""
        return f"{self.address.replace('://', f'://any:{TOKEN}@')}{path}"
