"""Stores with answers and without."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shfcas.feedback.annotation.store import Store
from tests.support.exchange_cases import LOG, new_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "run").mkdir()
    with new_store(tmp_path / "run" / "feedback.sqlite", LOG) as opened:
        yield opened


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "fresh").mkdir()
    with new_store(tmp_path / "fresh" / "feedback.sqlite") as opened:
        yield opened
