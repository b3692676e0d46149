"""A run with a queue, and its page."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.web.server import Page, serve
from tests.support.page_client import make_items, make_run

SETTINGS = HumanConfig(port=0, repeat_share=0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_run(tmp_path, make_items(6))
    return tmp_path


@pytest.fixture
def page(folder: Path) -> Iterator[Page]:
    with serve(folder, SETTINGS) as page:
        yield page
