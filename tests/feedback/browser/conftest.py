"""A real browser before a real page: the server, the store and people who answer."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.schema import Item
from shfcas.feedback.web.server import serve
from tests.support import chromium
from tests.support.people import Person, Run

SCREENSHOTS = Path(__file__).parents[3] / "build" / "screenshots"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    try:
        path = chromium.executable()
    except RuntimeError as error:
        pytest.fail(str(error), pytrace=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=chromium.ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def person(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Callable[..., Person]]:
    """Makes people; at the end, nothing may have gone wrong in their browsers. What they saw last is in build/."""
    people: list[Person] = []

    def make(**options: Any) -> Person:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
        people.append(Person(context))
        return people[-1]

    yield make
    for number, each in enumerate(people):
        name = re.sub(r"\W+", "-", f"{request.node.name}-{number}").removeprefix("test_")
        each.page.screenshot(path=SCREENSHOTS / f"{name}.png")
        each.context.close()
    assert [problem for each in people for problem in each.problems] == []


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Makes runs that are served until the test ends: `served(items, **settings)`."""
    with contextlib.ExitStack() as stack:

        def make(items: list[Item], **settings: Any) -> Run:
            run = Run(tmp_path / "run", items)
            known = HumanConfig(**({"port": 0, "repeat_share": 0.0} | settings))
            run.address = stack.enter_context(serve(run.folder, known)).address
            return run

        yield make
