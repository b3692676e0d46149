"""A finished run and its labels on the Hub."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from shfcas.cli import main
from shfcas.data.preferences import read_preferences
from tests.support.hub_server import HubServer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        server.use(monkeypatch)
        yield server


def rows(repository: dict) -> list[dict]:
    return [json.loads(line) for line in repository["files"]["preferences.jsonl"].decode().splitlines()]


def test_a_run_uploads_policy_reward_model_and_labels(
    hub: HubServer, run_config: Path, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    assert main(["run", str(run_config), "--output", str(run), "--push_to_hub", "me/tiny"]) == 0
    assert capsys.readouterr().out.count("uploaded: http://") == 3
    assert set(hub.repositories) == {
        ("model", "me/tiny-policy"),
        ("model", "me/tiny-reward-model"),
        ("dataset", "me/tiny-preferences"),
    }
    assert {repository["visibility"] for repository in hub.repositories.values()} == {"private"}
    cards = {name: repository["files"].pop("README.md").decode() for (_, name), repository in hub.repositories.items()}
    for card in cards.values():
        assert "Seed: 0." in card and "| held-out prompts | held_out.jsonl, 6 rows |" in card
        assert str(run_config.parent) not in card and str(run) not in card
    policy = cards["me/tiny-policy"]
    assert re.search(r"\| round 1: gold reward minus round 0 \| \S+ \| \[\S+, \S+\] \|", policy)
    assert re.search(r"\| round 1: KL to the base policy, nats \| \d", policy) and '"rollout_batch_size": 8' in policy
    assert re.search(r"\| accuracy on held-out pairs \| \S+ \| \[\S+, \S+\] \|", cards["me/tiny-reward-model"])
    for kind in ("policy", "reward_model"):
        files = hub.repositories["model", f"me/tiny-{kind.replace('_', '-')}"]["files"]
        here = run / "round-1" / kind
        assert files == {p.relative_to(here).as_posix(): p.read_bytes() for p in here.rglob("*") if p.is_file()}
    labels = read_preferences(run / "round-1" / "preferences.jsonl")
    assert len(rows(hub.repositories["dataset", "me/tiny-preferences"])) == len(labels) > 0
    assert main(["verify", str(run)]) == 0  # nothing was written into the stages


def test_feedback_uploads_preferences(hub: HubServer, finished_run: Path, tmp_path: Path) -> None:
    inputs = ["--queue", str(finished_run / "round-1/queue.jsonl"), "--gold", "tests.support.tiny:letter_reward"]
    inputs += ["--input", str(finished_run / "round-1/conflicts.parquet"), "--output", str(tmp_path / "labels.jsonl")]
    assert main(["feedback", *inputs, "--push_to_hub", "me/pairs", "--hub_public", "true"]) == 0
    repository = hub.repositories["dataset", "me/pairs"]
    assert repository["visibility"] == "public"
    assert len(rows(repository)) == len(read_preferences(tmp_path / "labels.jsonl")) > 0
    assert "| labelled by | gold |" in repository["files"]["README.md"].decode()
