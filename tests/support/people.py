"""Runs with a queue, and people with browsers."""

import re
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, Locator, Page, Request

from shfcas.feedback.annotation.schema import Item, Judgement, item_id
from shfcas.feedback.annotation.store import Store
from shfcas.feedback.web.annotators import add_annotators

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
        self.asking: set[Request] = set()
        self.asked_at = 0.0
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
        page.on("request", self._asks)
        for event in ("requestfinished", "requestfailed"):
            page.on(event, self._has_asked)
        page.on("console", lambda message: self._console(message.type, message.text))
        return page

    def _asks(self, request: Request) -> None:
        self.asking.add(request)

    def _has_asked(self, request: Request) -> None:
        self.asking.discard(request)
        self.asked_at = time.monotonic()

    def _console(self, kind: str, text: str) -> None:
        # The browser itself writes of each request that fails, as it must while it is offline.
        if kind in ("error", "warning") and not text.startswith("Failed to load resource"):
            self.problems.append(f"{kind}: {text}")

    def at(self, selector: str, **options: Any) -> Locator:
        return self.page.locator(selector, **options)

    def begins(self, link: str) -> None:
        self.page.goto(link)
        self.works()

    def works(self) -> None:
        """A comparison is there."""
        self.at("#work[data-item]").wait_for()

    def has_enough(self) -> None:
        """The page asks nothing of the server for a while: what is fetched ahead is there, what is sent has arrived."""
        self.asked_at = time.monotonic()  # what it was just told to ask may not be under way yet
        end = time.monotonic() + PATIENCE / 1000
        while self.asking or time.monotonic() - self.asked_at < 0.5:
            assert time.monotonic() < end
            self.page.wait_for_timeout(50)

    def item(self) -> str:
        """The id of the comparison that is to be seen."""
        return self.at("#work").get_attribute("data-item") or ""

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def closes(self, dialog: str) -> None:
        """Escape: the browser closes a dialog in its own time."""
        self.press("Escape")
        self.at(dialog).wait_for(state="hidden")

    def answers(self, key: str) -> str:
        """Presses a key and waits until another comparison, or none, is there; returns the id of the one answered."""
        self.works()
        item = self.item()
        self.press(key)
        self.another(item)
        return item

    def another(self, item: str) -> None:
        self.page.wait_for_function(
            "item => document.getElementById('work').hidden || document.getElementById('work').dataset.item !== item",
            arg=item,
        )

    def status(self, text: str) -> None:
        """The state is this and nothing else: "Not saved: ..." and "Saved 1 not accepted ..." are no "Saved"."""
        self.at("#status", has_text=re.compile(f"^{re.escape(text)}$")).wait_for()

    def is_done(self) -> None:
        self.at("#done").wait_for()

    def text(self, selector: str) -> str:
        return self.at(selector).evaluate("element => element.textContent")


def side(judgement: Judgement) -> str:
    """What a person saw: left or right of what stood there."""
    if judgement.choice not in ("first", "second"):
        return judgement.choice
    return "left" if judgement.choice == judgement.left else "right"
