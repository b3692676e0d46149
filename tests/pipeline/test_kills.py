"""Two rounds with people who label and compare, killed after each stage and inside it: equal to an unbroken run."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shfcas.cli import main
from shfcas.feedback.web.annotators import Annotators
from shfcas.feedback.web.server import running
from tests.pipeline.conftest import write_config
from tests.support.asked_runs import HUMAN, answer_through_store, better, outputs
from tests.support.interruption import Killed, killed_at
from tests.support.page_client import Client
from tests.support.processes import Command

PREPARATION = (
    "config.yaml",
    ".preferences.jsonl.work",
    "preferences.jsonl",
    ".policy.work/checkpoint-*",
    ".policy.partial",
    "policy",
    ".reward_model.work/checkpoint-*",
    ".reward_model.partial",
    "reward_model",
    "preflight.json",
    ".evaluation_candidates.parquet.work/shard-*",
    "evaluation_candidates.parquet",
    "evaluation.parquet",
    "metrics.json",
)
ROUND = (
    ".candidates.parquet.work/shard-*",
    "candidates.parquet",
    "conflicts.parquet",
    "queue.jsonl",
    ".preferences.jsonl.work",
    "preferences.jsonl",
    ".reward_model.work/checkpoint-*",
    ".reward_model.partial",
    "reward_model",
    ".policy.work/checkpoint-2/ppo_state.json",
    ".policy.partial",
    "policy",
    ".evaluation_candidates.parquet.work/shard-*",
    "evaluation_candidates.parquet",
    "evaluation.parquet",
    "metrics.json",
    "blind_pairs.parquet",
    ".win_rate.json.work",
    "win_rate.json",
)
# A kill comes as soon as this path is there.
KILL_AT = [
    "config.yaml",
    *(f"round-0/{name}" for name in PREPARATION[1:]),
    *(f"round-{number}/{name}" for number in (1, 2) for name in ROUND),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of all stages, over two rounds, in which people label and compare."""
    path = write_config(tmp_path_factory.mktemp("killed"))
    text = path.read_text().replace(
        "evaluation: {", "evaluation: {judge: human, judge_rounds: each, num_comparisons: 8, "
    )
    path.write_text(f"{text}{HUMAN}rounds: 2\n")
    return path


@pytest.fixture(scope="module")
def unbroken(config: Path) -> Path:
    """The run that nothing has interrupted, in which answers come through the store."""
    path = config.parent / "run"
    with pytest.MonkeyPatch.context() as patch:
        answer_through_store(patch, [])
        assert main(["run", str(config), "--output", str(path)]) == 0
    return path.rename(config.parent / "unbroken")


@pytest.fixture
def run(config: Path, unbroken: Path) -> Iterator[Path]:
    """Where a run with kills is: where the unbroken one was, since tables name the folders of their models."""
    path = config.parent / "run"
    yield path
    shutil.rmtree(path, ignore_errors=True)


def check_same(run: Path, unbroken: Path) -> None:
    assert outputs(run) == outputs(unbroken)
    assert main(["verify", str(run)]) == 0
    assert not list(run.rglob(".*.partial")) and not list(run.rglob(".*.work"))


@pytest.mark.slow
def test_killed_anywhere_and_resumed_equals_unbroken(
    config: Path, unbroken: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_after: list[int] = []
    answer_through_store(monkeypatch, killed_after)
    command = ["run", str(config), "--output", str(run)]
    assert len(KILL_AT) >= 40
    for pattern in KILL_AT:
        if pattern.endswith((".preferences.jsonl.work", ".win_rate.json.work")) and "round-0" not in pattern:
            killed_after.append(2)
            with pytest.raises(Killed, match="while people answer"):
                main(command)
        with killed_at(run, pattern):
            main(command)
    assert main(command) == 0
    check_same(run, unbroken)


def answer(run: Path, stop: threading.Event) -> None:
    """One person who answers over HTTP whenever the page of the run is served."""
    while not stop.wait(0.05):
        try:
            if address := running(run):
                person = Client(address)
                person.sign_in(Annotators(run).tokens()["annotator"])
                while task := person.next():
                    left, right = (task[side]["text"] for side in ("left", "right"))
                    choice = better(left, right)
                    person.judge(task, {"first": "left", "second": "right"}.get(choice, choice))
        except (OSError, AssertionError, ValueError):  # the page was killed
            pass


@pytest.mark.system
@pytest.mark.slow
def test_killed_by_the_system_and_resumed_equals_unbroken(
    config: Path, unbroken: Path, run: Path, tmp_path: Path
) -> None:
    command, stop = ["run", str(config), "--output", str(run)], threading.Event()
    person = threading.Thread(target=answer, args=(run, stop), daemon=True)
    person.start()
    try:
        for number, pattern in enumerate(KILL_AT):
            Command(command, tmp_path / f"printed-{number}").kill_at(run, pattern)
        Command(command, tmp_path / "printed").finish()
    finally:
        stop.set()
        person.join(timeout=60)
    check_same(run, unbroken)
