"""Feedback from people: the round waits until its comparisons are answered, through the page or through files."""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from shfcas.candidates import CandidateTable
from shfcas.errors import MissingExtra
from shfcas.feedback.aggregation import effective, preferences, verdicts
from shfcas.feedback.schema import Item, make_items
from shfcas.feedback.settings import HumanSettings
from shfcas.feedback.store import STORE, Store
from shfcas.files import read_text
from shfcas.preferences import Preference
from shfcas.progress import progress
from shfcas.selection import Comparison

logger = logging.getLogger(__name__)

PACKAGES = ("fastapi", "uvicorn", "markdown_it")


class HumanFeedback:
    """Puts the comparisons into the run's store, serves the page, and waits until all of them are settled.

    A comparison is settled when as many people have answered it as are asked, when one has flagged it, or when
    everybody who can sign in has answered or skipped it.

    A process that is stopped while it waits loses nothing: the answers are in the store, and the next one goes on.
    Where another process serves the page of the run already (`shfcas annotate`), this one only waits.

    Args:
        folder: the run directory.
        queue: where in it the queue lies, such as `round-1`.
        settings: how people are asked.
        seed: sides and repeats are drawn with it.
        finish: do not wait, and make do with the answers there are.
        poll: seconds between two looks at the store.
    """

    def __init__(
        self, folder: Path, queue: str, settings: HumanSettings, seed: int, finish: bool = False, poll: float = 1.0
    ) -> None:
        self.folder, self.queue, self.settings, self.seed = folder, queue, settings, seed
        self.finish, self.poll = finish, poll

    @staticmethod
    def check(settings: HumanSettings) -> None:
        """Says what the page will need and is not there, before any work is done."""
        for package in PACKAGES:
            if find_spec(package) is None:
                raise MissingExtra(package, "web")
        if settings.guidelines:
            read_text(settings.guidelines)

    def __call__(self, comparisons: Sequence[Comparison], candidates: CandidateTable, round: int) -> list[Preference]:
        """What the answers come to, once there are enough of them.

        Raises:
            UserError: the store holds other comparisons under this name.
            StoreError: the store cannot be read or written.
        """
        items = make_items(comparisons, candidates, self.queue, round)
        with Store(self.folder / STORE) as store:
            store.add_queue(items, self.seed)
            left = self._left(store, items)
            if left and self.finish:
                logger.warning("going on with %d of %d comparisons settled", len(items) - left, len(items))
            elif left:
                with self._page() as people:
                    self._wait(store, items, people)
            made = preferences(items, store.judgements(self.queue), self.settings, only_settled=False)
        logger.info("%d comparisons, %d preferences", len(items), len(made))
        return made

    def _left(self, store: Store, items: Sequence[Item], people: Collection[str] = ()) -> int:
        """How many comparisons need an answer that somebody can still give."""
        log = store.judgements(self.queue)
        reached = verdicts(items, log, self.settings)
        seen = {(judgement.item, judgement.annotator) for judgement in effective(log)}
        return sum(
            reached[item.id].state in ("open", "skipped")
            and not (people and all((item.id, person) in seen for person in people))
            for item in items
        )

    def _wait(self, store: Store, items: Sequence[Item], people: Callable[[], Collection[str]]) -> None:
        with progress(desc="settled", total=len(items)) as bar:
            while left := self._left(store, items, people()):
                bar.update(len(items) - left - bar.n)
                time.sleep(self.poll)

    @contextmanager
    def _page(self) -> Iterator[Callable[[], Collection[str]]]:
        """The page of this run, served by this process unless another one does; yields who can sign in to it."""
        from shfcas.feedback.web.annotators import Annotators
        from shfcas.feedback.web.server import running, serve

        people = Annotators(self.folder).tokens
        address = running(self.folder)
        if address:
            logger.info("waiting for answers at %s", address)
            yield people
            return
        with serve(self.folder, self.settings) as page:
            logger.info("waiting for answers; whoever is to answer opens their own link:")
            for name, link in page.links.items():
                logger.info("  %s: %s", name, link)
            logger.info("answers are kept as they come; Ctrl-C stops, and the same command goes on")
            if len(page.links) < self.settings.overlap:
                logger.warning(
                    "each comparison is to be answered by %d people, and %d can sign in; "
                    "shfcas annotate %s --annotators NAME,NAME adds some",
                    self.settings.overlap,
                    len(page.links),
                    self.folder,
                )
            yield people
