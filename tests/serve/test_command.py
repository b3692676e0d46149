"""The command in a process of its own: it answers, and a signal ends it after the request that it is scoring."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.reward_server import send

SLOW = """
import threading
from pathlib import Path

def reward(prompts, completions, **columns):
    Path("begun").touch()
    while not Path("go").exists():
        threading.Event().wait(0.01)
    return [float(len(text)) for text in completions]
"""


@pytest.mark.system
def test_a_signal_lets_the_request_finish(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    command = [sys.executable, "-m", "shfcas", "serve-reward", "slow:reward", "--port", "0", "--log", "log.jsonl"]
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2]}:{os.environ.get('PYTHONPATH', '')}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    server = subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, **pipes)  # type: ignore[call-overload]
    try:
        line = server.stdout.readline()
        assert line.startswith("serving slow:reward at http://127.0.0.1:"), server.communicate()
        address = line.partition(" at ")[2].partition(" ")[0]
        with ThreadPoolExecutor(1) as pool:
            reply = pool.submit(send, address, "/score", {"prompts": ["a"], "completions": ["four"]})
            while not (tmp_path / "begun").exists():
                assert not reply.done() and server.poll() is None
                time.sleep(0.01)
            server.send_signal(signal.SIGTERM)
            (tmp_path / "go").touch()
            assert reply.result(timeout=120).json == {"rewards": [4.0]}
        _, errors = server.communicate(timeout=120)
        assert server.returncode == 128 + signal.SIGTERM and "Traceback" not in errors
    finally:
        server.kill()
        server.communicate()
    (row,) = (json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines())
    assert row["reward"] == 4.0 and row["completion"] == "four"
