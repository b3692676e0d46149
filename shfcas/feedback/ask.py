"""Questions to people from a script or a notebook: which of two answers is better?"""

import asyncio
import atexit
import fcntl
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shfcas.data.messages import Prompt, check_prompt, prompt_key
from shfcas.feedback.annotation.aggregation import Verdict, verdicts
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.schema import Item, item_id
from shfcas.feedback.annotation.selection import content_key
from shfcas.feedback.annotation.store import STORE, Store
from shfcas.feedback.folder import FOLDER, SEED, make_folder
from shfcas.feedback.human import HumanFeedback
from shfcas.utils.errors import UserError

QUEUE = "asked"
POLL = 0.5  # seconds

_pages: dict[Path, ExitStack] = {}  # those that this process serves


@dataclass(frozen=True)
class Judged:
    """What people think of a pair of answers.

    Attributes:
        prompt: text or messages.
        a: one answer.
        b: the other answer.
        choice: `a`, `b`, `tie`, `both_bad`, `flagged` (unfit to be asked), `skipped`, or None while it is open.
        margin: mean margin of those who chose the better answer; None without a strength.
        annotators: names of those who chose it.
    """

    prompt: Prompt
    a: str
    b: str
    choice: str | None
    margin: float | None = None
    annotators: tuple[str, ...] = ()

    @property
    def preferred(self) -> str | None:
        """The better answer; None if there is none."""
        return {"a": self.a, "b": self.b}.get(self.choice or "")


class Asked:
    """Pairs that people are being asked about, on a page that this process or another one serves.

    In a script, `wait` returns the judgements. In a notebook, `await` them, so that other cells' tasks go on. Every
    answer is saved at once: after an interruption, the same call continues.

    Attributes:
        links: sign-in link of each annotator, by name.
    """

    def __init__(
        self, folder: Path, items: list[tuple[Item, Item]], settings: HumanConfig, names: Sequence[str]
    ) -> None:
        self._folder, self._items, self._settings, self._names = folder, items, settings, names  # as given, as kept
        self.links = self._open()

    def __repr__(self) -> str:
        done = sum(judged.choice is not None for judged in self.so_far())
        return f"<{done} of {len(self._items)} pairs judged, at {' '.join(self.links.values())}>"

    def __await__(self) -> Generator[Any, None, list[Judged]]:
        return self._wait().__await__()

    def so_far(self) -> list[Judged]:
        """Returns the judgements so far, one per pair, in the order of the pairs; does not wait."""
        with Store(self._folder / STORE) as store:
            log = store.judgements(QUEUE)
        found = verdicts([kept for _, kept in self._items], log, self._settings)
        return [_judged(given, kept, found[kept.id]) for given, kept in self._items]

    def wait(self) -> list[Judged]:
        """Waits until all pairs are judged and returns the judgements, in the order of the pairs.

        Raises:
            UserError: an event loop runs in this thread, as in a notebook, and would stand still.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._wait())
        raise UserError(
            "ask: an event loop runs here, as in a notebook; write: await shfcas.ask_many([(prompt, a, b)])"
        )

    async def _wait(self) -> list[Judged]:
        while True:
            found = await asyncio.to_thread(self.so_far)
            if all(judged.choice is not None for judged in found):
                return found
            await asyncio.to_thread(self._open)
            await asyncio.sleep(POLL)

    def close(self) -> None:
        """Ends the page, if this process serves it."""
        if stack := _pages.pop(self._folder, None):
            stack.close()

    def _open(self) -> dict[str, str]:
        """Serves the page unless it is served already, also by another process; returns the links."""
        from shfcas.feedback.web.annotators import add_annotators
        from shfcas.feedback.web.server import running, serve, sign_in_links

        for _ in range(50):
            if address := running(self._folder):
                return sign_in_links(address, add_annotators(self._folder, self._names))
            add_annotators(self._folder, self._names)
            stack = ExitStack()
            try:
                page = stack.enter_context(serve(self._folder, self._settings))
            except UserError:
                stack.close()
                if running(self._folder) is None:
                    raise
                time.sleep(0.05)  # another process was faster
                continue
            _pages[self._folder] = stack
            print("\n".join(f"{name}: {link}" for name, link in page.links.items()), flush=True)
            return page.links
        raise UserError(f"{self._folder}: its page does not start; end the process that serves it")


def ask_many(
    pairs: Sequence[tuple[Prompt, str, str]],
    *,
    folder: str | Path = FOLDER,
    annotators: Sequence[str] = (),
    **settings: Any,
) -> Asked:
    """Asks people which of two answers is better, for several pairs, and prints their links to the page.

    A pair that was asked before keeps its judgements.

    Args:
        pairs: prompt (text or messages) and two answers each.
        folder: folder for the page's settings and the log of judgements; see `shfcas annotate`.
        annotators: names of people; each gets a link. None are one person.
        settings: fields of `HumanConfig`, such as `overlap`, `port` (default: any free one) or `guidelines`.

    Returns:
        The pairs: `wait()` in a script, `await` in a notebook, `so_far()` without waiting.

    Raises:
        UserError: a prompt or answer is missing, or the page cannot be served.
    """
    config = HumanConfig(**{"port": 0, "repeat_share": 0.0, **settings})
    HumanFeedback.check(config)
    wanted = [_item(place, *pair) for place, pair in enumerate(pairs)]
    place = make_folder(folder).resolve()
    with (place / ".ask.lock").open("w") as lock, Store(place / STORE) as store:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other calls add their pairs before or after
        items = {content_key(item): item for item in (store.items(QUEUE) if QUEUE in store.queues() else [])}
        for item in wanted:
            items.setdefault(content_key(item), item)
        store.add_queue([replace(item, position=i) for i, item in enumerate(items.values())], SEED)
        kept = {content_key(item): item for item in store.items(QUEUE)}
    return Asked(place, [(item, kept[content_key(item)]) for item in wanted], config, annotators)


def ask(prompt: Prompt, a: str, b: str, **settings: Any) -> Judged:
    """Asks people which of two answers is better, and waits for the judgement; see `ask_many`.

    In a notebook: `(judged,) = await shfcas.ask_many([(prompt, a, b)])`.

    Args:
        prompt: text or messages.
        a: one answer.
        b: the other answer.
        settings: as for `ask_many`.

    Raises:
        UserError: see `ask_many` and `Asked.wait`.
    """
    (judged,) = ask_many([(prompt, a, b)], **settings).wait()
    return judged


def _item(place: int, prompt: Prompt, a: str, b: str) -> Item:
    prompt = check_prompt(prompt, f"pair {place}")
    for name, answer in (("a", a), ("b", b)):
        if not isinstance(answer, str):
            raise UserError(f"pair {place}: expected {name} as text, got {type(answer).__name__}")
    key = prompt_key(prompt)
    return Item(
        id=item_id(QUEUE, key, 0, 1, a, b),
        queue=QUEUE,
        round=1,
        position=place,
        prompt_id=key,
        first=0,
        second=1,
        prompt=prompt,
        first_text=a,
        second_text=b,
    )


def _judged(given: Item, kept: Item, verdict: Verdict) -> Judged:
    same = given.first_text == kept.first_text  # the pair may have been asked before in the other order
    sides = {"first": "a" if same else "b", "second": "b" if same else "a"}
    choice = None if verdict.state == "open" else sides.get(verdict.choice or "", verdict.state)
    return Judged(given.prompt, given.first_text, given.second_text, choice, verdict.margin, verdict.annotators)


@atexit.register
def _close_all() -> None:
    for stack in [*_pages.values()]:
        stack.close()
    _pages.clear()
