"""`shfcas annotate`: it serves until it is stopped, and mistakes are one line."""

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from shfcas.cli import main
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.web.annotators import Annotators
from shfcas.feedback.web.server import Page, running
from shfcas.utils.errors import UserError
from tests.support.page_client import Client, free_port, log, make_items, make_run

ROOT = Path(__file__).parents[3]


SETTINGS = HumanConfig(port=0, repeat_share=0.0)


class Command:
    """`shfcas annotate` in a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shfcas", "annotate", str(folder), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            # Shells let what they start in the background ignore Ctrl-C, and these tests may have been.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert self.process.stdout
        self.first = self.process.stdout.readline()
        self.links: dict[str, str] = {}
        self.address = self.first.partition(" at ")[2].partition(";")[0]

    def read_links(self, count: int) -> dict[str, str]:
        assert self.process.stdout
        for _ in range(count):
            name, link = self.process.stdout.readline().split()
            self.links[name] = link.partition("#token=")[2]
        return self.links

    def end(self, with_signal: int) -> tuple[int, str]:
        self.process.send_signal(with_signal)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@pytest.mark.system
def test_the_command_serves_until_ctrl_c_and_a_kill_loses_nothing(folder: Path) -> None:
    port = free_port()
    arguments = ("--port", str(port), "--annotators", "ada,cleo", "--repeat_share", "0")
    command = Command(folder, *arguments)
    links = command.read_links(3)
    assert set(links) == {"ada", "ben", "cleo"} and command.address == f"http://127.0.0.1:{port}/"
    client = Client(command.address)
    client.sign_in(links["cleo"])
    task = client.next()
    saved = str(uuid.uuid4())
    assert client.judge(task, id=saved).status == 200
    held = client.next()
    assert command.end(signal.SIGKILL)[0] == -signal.SIGKILL
    assert [j.id for j in log(folder)] == [saved]

    again = Command(folder, *arguments)  # at the same port, and the browser goes on without a new sign-in
    again.read_links(3)
    client.connection.close()
    assert client.judge(held).json()["new"] is True
    assert client.judge(task, id=saved).json()["new"] is False
    code, errors = again.end(signal.SIGINT)
    assert code == 130
    assert errors == "shfcas annotate: stopped; the same command resumes\n"
    assert len(log(folder)) == 2 and running(folder) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_sighup_end_it_as_ctrl_c_does(folder: Path, number: signal.Signals) -> None:
    command = Command(folder, "--port", "0")
    command.read_links(2)
    code, errors = command.end(number)
    assert (code, errors) == (128 + number, "shfcas annotate: stopped; the same command resumes\n")
    assert (folder / ".annotate.lock").read_text() == ""  # the page was closed, and not only cut off


def test_the_command_names_a_page_that_is_served_already(
    folder: Path, page: Page, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["annotate", str(folder), "--annotators", "cleo", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["address"] == page.address
    client = Client(page.address)
    assert client.sign_in(result["links"]["cleo"].partition("#token=")[2]).json()["name"] == "cleo"
    assert client.next()
    assert main(["annotate", str(folder)]) == 0
    assert page.links["ada"] in capsys.readouterr().out
    serving = ["--port", "0", "--overlap", "2", "--repeat_share", "0", "--allow_public", "true"]
    assert main(["annotate", str(folder), "--annotators", "dan", *serving]) == 1
    errors = capsys.readouterr().err
    assert "annotate: port, allow_public, overlap, repeat_share: " in errors and f"already, at {page.address}" in errors
    assert "dan" not in Annotators(folder).tokens()


def test_without_the_extra_the_command_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["annotate", str(folder)]) == 1
    assert capsys.readouterr().err.endswith("uvicorn is not installed; install it with: pip install 'shfcas[web]'\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "expected a run directory, or --queue FILE --input TABLE; missing: --queue, --input"),
        (["a", "b"], 2, "expected one run directory, got a b"),
        (["nowhere"], 1, "nowhere does not exist"),
        ([".", "--annotators", "ada,a b"], 1, "and any of . _ - @, got 'a b'"),
        ([".", "--host", "0.0.0.0"], 1, "set allow_public"),
        ([".", "--port", "70000"], 2, "port: expected at least 0 and at most 65535"),
        ([".", "--guidelines", "none.md"], 1, "none.md does not exist"),
        ([".", "--address", "labels.example.org"], 2, "expected http:// or https://"),
        ([".", "--address", "https://example.org/labels"], 2, "a name without a path"),
        ([".", "--address", "https://example.org?a"], 2, "a name without a path"),
        ([".", "--address", "https://"], 2, "a name without a path"),
        ([".", "--queue", "round-9"], 1, "no queue 'round-9'"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path, make_items(1))
    assert main(["annotate", *arguments]) == code
    errors = capsys.readouterr().err
    assert message in errors and errors.startswith("shfcas annotate: ") and errors.count("\n") == 1


def test_the_runs_own_settings_hold_unless_the_command_says_otherwise(tmp_path: Path) -> None:
    from shfcas.cli.annotate import Config, settings_of

    (tmp_path / "config.yaml").write_text("output: x\nhuman:\n  overlap: 3\n  port: 9000\n  clearly: 2.0\n")
    settings = settings_of(tmp_path, Config(port=0, allow_public=True))
    assert (settings.overlap, settings.port, settings.clearly, settings.allow_public) == (3, 0, 2.0, True)
    (tmp_path / "config.yaml").write_text("output: x\nhuman: null\n")
    assert settings_of(tmp_path, Config()) == HumanConfig()
    assert settings_of(tmp_path, Config(overlap=2)).overlap == 2


def test_a_run_that_asks_people_has_its_own_overlap(tmp_path: Path) -> None:
    from shfcas.cli.annotate import Config, settings_of

    (tmp_path / "config.yaml").write_text("output: x\nfeedback: human\nhuman:\n  overlap: 3\n")
    assert settings_of(tmp_path, Config(overlap=3)).overlap == 3
    with pytest.raises(UserError, match=r"waits for 3 answers to each comparison .*, not 2; .*--human\.overlap 2"):
        settings_of(tmp_path, Config(overlap=2))
