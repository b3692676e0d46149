"""Signals end a command with one line and the exit code of the signal, after its clean-up."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shfcas.cli._stop import Stopped, exit_code, stoppable

COMMAND = """
import sys, threading, time
import shfcas.cli as cli
from contextlib import contextmanager
from shfcas.engines import RayConfig, open_engine

@contextmanager
def cleaned():
    try:
        yield
    finally:
        time.sleep(0.3)
        print("cleaned up", flush=True)

def run(name, arguments):
    with cleaned(), open_engine(sys.argv[1], RayConfig()) as engine:
        print("ready", flush=True)
        threading.Event().wait()

cli._run = run
sys.exit(cli.main(["run"]))
"""


def start(engine: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", COMMAND, engine]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, text=True, stdout=pipe, stderr=pipe, env=environment)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


@pytest.mark.system
@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP, signal.SIGTERM]])
def test_a_signal_ends_a_command_after_its_clean_up(numbers: list[signal.Signals]) -> None:
    process = start("local")
    for number in numbers:
        process.send_signal(number)
    printed, errors = process.communicate(timeout=300)
    assert (printed, errors) == ("cleaned up\n", "shfcas run: stopped; the same command resumes\n")
    assert process.returncode in {128 + number for number in numbers}


@pytest.mark.system
def test_a_signal_ends_ray_too() -> None:
    pytest.importorskip("ray")
    process = start("ray")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGTERM)
    printed, errors = process.communicate(timeout=300)
    assert (process.returncode, printed) == (143, "cleaned up\n")
    assert errors.splitlines()[-1] == "shfcas run: stopped; the same command resumes"
    assert children and not any(Path(f"/proc/{child}").exists() for child in children)


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_put_back_and_threads_have_none() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as caught, stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(10)
    assert exit_code(caught.value) == 143 and exit_code(KeyboardInterrupt()) == 130
    assert signal.getsignal(signal.SIGTERM) == before

    def elsewhere() -> None:
        with stoppable():
            assert signal.getsignal(signal.SIGTERM) == before

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
