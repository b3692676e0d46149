"""A store with one queue."""

from pathlib import Path
from typing import Any

import pytest

from shfcas.feedback.annotation.store import Store
from tests.support.queues import make_queue

ITEMS = make_queue(5)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store(tmp_path / "feedback.sqlite") as opened:
        opened.add_queue(ITEMS, seed=3)
        yield opened
