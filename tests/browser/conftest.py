"""A real browser before a real page: the server, the store and people who answer."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromium
import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, sync_playwright

from shfcas.feedback.schema import Item, Judgement, item_id
from shfcas.feedback.settings import HumanSettings
from shfcas.feedback.store import Store
from shfcas.feedback.web.annotators import add_annotators
from shfcas.feedback.web.server import serve

PATIENCE = 20_000  # milliseconds


def make_items(count: int, **changes: Any) -> list[Item]:
    """Comparisons whose texts name themselves."""
    return [
        Item(
            **{
                "id": item_id("round-1", f"p{i}", 0, 1),
                "queue": "round-1",
                "round": 1,
                "position": i,
                "prompt_id": f"p{i}",
                "first": 0,
                "second": 1,
                "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Question {i}?"}],
                "first_text": f"The first answer to question {i}.",
                "second_text": f"The second answer to question {i}.",
                "why": {"kendall_distance": 0.75, "pacs": [1.25, -2.5], "rewards": [0.5, -1.5], "logprobs": [-8, -9]},
                **changes,
            }
        )
        for i in range(count)
    ]


class Run:
    """A run directory with a queue, and its page once `serve` was called."""

    def __init__(self, folder: Path, items: list[Item], people: tuple[str, ...] = ("ada", "ben")) -> None:
        self.folder, self.items = folder, items
        folder.mkdir(exist_ok=True)
        with Store(folder / "feedback.sqlite") as store:
            store.add_queue(items, seed=1)
        self.tokens = add_annotators(folder, people)
        self.address = ""

    def link(self, name: str) -> str:
        return f"{self.address}#token={self.tokens[name]}"

    def log(self) -> list[Judgement]:
        with Store(self.folder / "feedback.sqlite") as store:
            return store.judgements()


class Person:
    """Somebody with a browser of their own; what goes wrong in it is collected."""

    def __init__(self, context: BrowserContext) -> None:
        self.context = context
        self.problems: list[str] = []
        self.page = self.open()

    def open(self) -> Page:
        """Another tab."""
        page = self.context.new_page()
        page.set_default_timeout(PATIENCE)
        page.add_init_script(
            "addEventListener('securitypolicyviolation', e => console.error('CSP', e.violatedDirective, e.blockedURI))"
        )
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (self.problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("console", lambda message: self._console(message.type, message.text))
        return page

    def _console(self, kind: str, text: str) -> None:
        # The browser itself writes of each request that fails, as it must while it is offline.
        if kind in ("error", "warning") and not text.startswith("Failed to load resource"):
            self.problems.append(f"{kind}: {text}")

    def at(self, selector: str, **options: Any) -> Locator:
        return self.page.locator(selector, **options)

    def begins(self, link: str) -> None:
        self.page.goto(link)
        self.at("#work").wait_for()

    def item(self) -> str:
        """The id of the comparison that is to be seen."""
        return self.at("#work").get_attribute("data-item") or ""

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def answers(self, key: str) -> str:
        """Presses a key and waits until another comparison, or none, is there; returns the id of the one answered."""
        item = self.item()
        self.press(key)
        self.another(item)
        return item

    def another(self, item: str) -> None:
        self.page.wait_for_function(
            "item => { const work = document.getElementById('work'); return work.hidden || work.dataset.item !== item; }",
            arg=item,
        )

    def status(self, text: str) -> None:
        self.at("#status", has_text=text).wait_for()

    def is_done(self) -> None:
        self.at("#done").wait_for()

    def text(self, selector: str) -> str:
        return self.at(selector).evaluate("element => element.textContent")


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
def person(browser: Browser) -> Iterator[Callable[..., Person]]:
    """Makes people; at the end, nothing may have gone wrong in their browsers."""
    people: list[Person] = []

    def make(**options: Any) -> Person:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
        people.append(Person(context))
        return people[-1]

    yield make
    for each in people:
        each.context.close()
    assert [problem for each in people for problem in each.problems] == []


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Makes runs that are served until the test ends: `served(items, **settings)`."""
    with contextlib.ExitStack() as stack:

        def make(items: list[Item], **settings: Any) -> Run:
            run = Run(tmp_path / "run", items)
            known = HumanSettings(**({"port": 0, "repeat_share": 0.0} | settings))
            run.address = stack.enter_context(serve(run.folder, known)).address
            return run

        yield make
