"""Feedback from people: the round waits until its comparisons are answered, through the page or through files."""

import logging
import math
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

from shfcas.data.candidates import CandidateTable
from shfcas.data.preferences import Preference
from shfcas.feedback.annotation.aggregation import effective, preferences, verdicts
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.schema import Item, Judgement, make_items
from shfcas.feedback.annotation.store import STORE, Store
from shfcas.selection import Comparison
from shfcas.utils.errors import MissingExtra, UserError
from shfcas.utils.progress import progress

logger = logging.getLogger(__name__)

PACKAGES = ("fastapi", "uvicorn", "markdown_it", "krippendorff")
QUIET_POLLS = 10  # looks without a new row after the last answer, in which it can be taken back


class HumanFeedback:
    """Puts the comparisons into the run's store, serves the page, and waits until all of them are settled.

    A comparison is settled when as many people have answered it as are asked, when one has flagged it, or when
    everybody who can sign in has answered or skipped it. The link that is made where nobody was named counts among
    several people only once somebody has answered through it.

    When the last comparison is settled, the page stays for ten more looks at the store after the newest row, so that
    the last answers can be taken back.

    A process that is stopped while it waits loses nothing: the answers are in the store, and the next one goes on.
    While another process serves the page of the run (`shfcas annotate`), this one only waits; when that one ends, this
    one serves it.

    Args:
        folder: the run directory.
        queue: where in it the queue lies, such as `round-1`.
        settings: how people are asked.
        seed: sides and repeats are drawn with it.
        finish: do not wait, and make do with the answers there are; for a queue that the store has already, since of a
            new one nobody has seen anything.
        poll: seconds between two looks at the store.
    """

    def __init__(
        self, folder: Path, queue: str, *, settings: HumanConfig, seed: int, finish: bool = False, poll: float = 1.0
    ) -> None:
        self.folder, self.queue, self.settings, self.seed = folder, queue, settings, seed
        self.finish, self.poll = finish, poll

    @staticmethod
    def check(settings: HumanConfig) -> None:
        """Says what the page will need and is not there, before any work is done."""
        for package in PACKAGES:
            if find_spec(package) is None:
                raise MissingExtra(package, "web")
        from shfcas.feedback.web.server import check

        check(settings)

    def __call__(self, comparisons: Sequence[Comparison], candidates: CandidateTable, round: int) -> list[Preference]:
        """What the answers come to, once there are enough of them.

        Raises:
            UserError: the store holds other comparisons under this name.
            StoreError: the store cannot be read or written.
        """
        items = make_items(comparisons, candidates, self.queue, round)
        if not items:
            return []
        with Store(self.folder / STORE) as store:
            known = self.queue in store.queues()
            store.add_queue(items, self.seed)
            log = store.judgements(self.queue)
            left = len(self._open(items, log))
            if left and self.finish and known:
                logger.warning("going on with %d of %d comparisons settled", len(items) - left, len(items))
            elif left:
                if self.finish:
                    logger.warning("%s is new and nobody was asked, so finish_with_what_we_have waits", self.queue)
                self._wait(store, items, rows=len(log))
            made = preferences(items, store.judgements(self.queue), self.settings, only_settled=False)
        logger.info("%d comparisons, %d preferences", len(items), len(made))
        return made

    def _open(
        self, items: Sequence[Item], log: Sequence[Judgement], people: Collection[str] = ()
    ) -> dict[str, set[str]]:
        """The items that need an answer that somebody can still give, with who of the people can."""
        reached = verdicts(items, log, self.settings)
        seen = {(judgement.item, judgement.annotator) for judgement in effective(log)}
        asked = {item.id for item in items if reached[item.id].state in ("open", "skipped")}
        able = {id: {person for person in people if (id, person) not in seen} for id in asked}
        return {id: names for id, names in able.items() if names or not people}

    def _wait(self, store: Store, items: Sequence[Item], rows: int) -> None:
        """Returns when nothing is left to answer and no row was added to the log for a while."""
        newest, told = -math.inf, ""
        with ExitStack() as stack, progress(desc="settled", total=len(items)) as bar:
            page = _Page(self, store, stack)
            while True:
                page.keep()
                log, people = store.judgements(self.queue), page.people()
                left = self._open(items, log, people)
                bar.update(len(items) - len(left) - bar.n)
                if len(log) > rows:
                    rows, newest = len(log), time.monotonic()
                quiet = QUIET_POLLS * self.poll
                if not left and time.monotonic() >= newest + quiet:
                    return
                state = _waited_for(left, people) if left else f"all are settled; going on in {quiet:g} s"
                if state != told:
                    told = state
                    if state:
                        logger.info(state)
                time.sleep(self.poll)


class _Page:
    """The page of the run: another process's for as long as there is one, then our own until the stack is closed."""

    def __init__(self, asked: HumanFeedback, store: Store, stack: ExitStack) -> None:
        from shfcas.feedback.web.annotators import Annotators

        self._asked, self._store, self._stack = asked, store, stack
        self._annotators = Annotators(asked.folder)
        self._ours, self._elsewhere = False, ""

    def people(self) -> set[str]:
        """Whose answers can be waited for."""
        from shfcas.feedback.web.annotators import SOLE

        people = set(self._annotators.tokens())
        if len(people) > 1 and SOLE in people and not self._store.has_judged(SOLE):
            people.remove(SOLE)
        return people

    def keep(self) -> None:
        """Serves the page, unless it is served already."""
        from shfcas.feedback.web.server import running, serve

        if self._ours:
            return
        asked = self._asked
        address = running(asked.folder)
        if address is None:
            try:
                page = self._stack.enter_context(serve(asked.folder, asked.settings, asked.queue))
            except UserError:
                if running(asked.folder):
                    return  # another process was faster
                raise
            self._ours = True
            logger.info("waiting for answers; whoever is to answer opens their own link:")
            for name, link in page.links.items():
                logger.info("  %s: %s", name, link)
            logger.info("answers are kept as they come; Ctrl-C stops, and the same command goes on")
            self._warn()
        elif address != self._elsewhere:
            self._elsewhere = address
            logger.info("waiting for answers at %s", address)
            newest = self._store.queues()[-1]
            if newest != asked.queue:
                logger.warning(
                    "unless it was told otherwise, the page there asks %s, the newest queue; this run waits for %s: "
                    "shfcas annotate %s --queue %s asks that",
                    newest,
                    asked.queue,
                    asked.folder,
                    asked.queue,
                )
            self._warn()

    def _warn(self) -> None:
        people, overlap = len(self.people()), self._asked.settings.overlap
        if people < overlap:
            logger.warning(
                "each comparison is to be answered by %d people, and %d can sign in; when they have answered all, the "
                "run goes on with fewer answers; shfcas annotate %s --annotators NAME,NAME adds some",
                overlap,
                people,
                self._asked.folder,
            )


def _waited_for(left: dict[str, set[str]], people: Collection[str]) -> str:
    """Who alone can still answer what is left; nothing where anybody can."""
    able = set().union(*left.values())
    if len(able) == len(people):
        return ""
    names = ", ".join(sorted(able))
    return f"the rest waits for {names}; without their line in annotators.txt, the run goes on without them"
