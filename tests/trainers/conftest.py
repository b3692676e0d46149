"""What the tests of trainers share; they run in an environment of the trainers, see `make test-engines`."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import TOKEN, World

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    python = os.environ.get("SHFCAS_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
    command = [python, "-m", "tests.trainers.world", str(folder)]
    environment = {**os.environ, "SHFCAS_REWARD_TOKEN": TOKEN}
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = next((line for line in server.stdout if line.startswith("serving ")), None)
        assert line is not None, "the server did not start"
        made = json.loads((folder / "world.json").read_text())
        yield World(folder, line.partition(" at ")[2].partition(" ")[0], **made)
    finally:
        server.terminate()
        server.communicate(timeout=120)
