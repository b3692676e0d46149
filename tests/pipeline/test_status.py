"""`shfcas status` counts the labels of a run without touching them."""

from pathlib import Path

import pytest

from shfcas.cli import main
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.store import STORE, Store
from shfcas.feedback.web.server import serve
from shfcas.pipeline.inspection import queues
from shfcas.pipeline.manifest import FORMAT
from shfcas.utils.errors import UserError
from shfcas.utils.files import write_json, write_text
from tests.support.queues import judged, make_queue


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory whose annotators are at work: two answers settle a comparison."""
    write_json(tmp_path / "manifest.json", {"format": FORMAT, "stages": {}})
    write_text(tmp_path / "config.yaml", "human: {overlap: 2}\n")
    items = make_queue(6)
    with Store(tmp_path / STORE) as store:
        store.add_queue(make_queue(8), seed=3)
        store.record(judged(make_queue(8)[7], "ada", "first"))  # no longer selected below
        store.add_queue(items, seed=3)
        for name, choices in {"ada": "first tie both_bad skip first flag", "ben": "first tie both_bad skip"}.items():
            for item, choice in zip(items, choices.split(), strict=False):
                store.record(judged(item, name, choice))
    return tmp_path


LINE = (
    "round-1: 6 asked, 3 answered (1 ties, 1 both bad), 1 flagged, 1 skipped, 1 pending; ada answered 4; ben answered 3"
)


def test_status_counts_labels(run: Path, capsys: pytest.CaptureFixture) -> None:
    before = (run / STORE).read_bytes()
    assert main(["status", str(run)]) == 0
    assert LINE in capsys.readouterr().out.splitlines()
    assert (run / STORE).read_bytes() == before
    (row,) = queues(run)
    assert row["asked"] == sum(row[name] for name in ("answered", "flagged", "skipped", "pending"))


def test_status_counts_labels_while_the_page_is_served(run: Path, capsys: pytest.CaptureFixture) -> None:
    with serve(run, HumanConfig(port=0)), Store(run / STORE) as store:
        assert main(["status", str(run)]) == 0
        assert LINE in capsys.readouterr().out.splitlines()
        store.record(judged(make_queue(6)[4], "ben", "first"))
        assert queues(run)[0]["pending"] == 0
        with store.transaction():  # another process is writing
            assert queues(run)[0]["answered"] == 4


def test_a_reader_changes_nothing(run: Path, tmp_path: Path) -> None:
    with Store(run / STORE, read_only=True) as store, pytest.raises(UserError, match="open for reading only"):
        store.record(judged(make_queue(1)[0], "ada", "first"))
    with pytest.raises(UserError, match="cannot be opened"):
        Store(tmp_path / "none.sqlite", read_only=True)
    assert not (tmp_path / "none.sqlite").exists()


def test_no_labels_are_no_rows(tmp_path: Path) -> None:
    assert queues(tmp_path) == []
