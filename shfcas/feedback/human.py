"""Feedback from annotators: the round waits until its comparisons are answered, on the page or in files."""

import logging
import math
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
from shfcas.utils.progress import PATIENT, progress

logger = logging.getLogger(__name__)

PACKAGES = ("fastapi", "uvicorn", "markdown_it", "krippendorff")
QUIET_POLLS = 10  # polls without a new row after the last answer; annotators can undo it until then


class HumanFeedback:
    """Feedback source that serves the page to annotators and waits until all comparisons are settled.

    A comparison is settled when `overlap` annotators have answered it, when one has flagged it, or when all who can
    sign in have answered or skipped it. The sign-in link for an unnamed annotator counts among several annotators
    only after an answer through it.

    After the last comparison is settled, the page stays for ten more polls from the newest row, so that annotators
    can undo their last answers.

    Stopping the process while it waits loses nothing: the answers are in the store, and the next process resumes.
    While another process serves the page of the run (`shfcas annotate`), this one only waits. When that process
    ends, this one takes over.

    Args:
        folder: the run directory.
        queue: the queue's place in the run directory, such as `round-1`.
        settings: overlap, repeats, aggregation, and the page's address.
        seed: seed of sides and repeats.
        finish: do not wait, and use the answers so far. Only for comparisons that are in the store already: nobody
            can have answered new ones.
        poll: seconds between two polls of the store.

    Attributes:
        ties: comparisons of the last call whose answers are equally good, or both bad.
    """

    def __init__(
        self, folder: Path, queue: str, *, settings: HumanConfig, seed: int, finish: bool = False, poll: float = 1.0
    ) -> None:
        self.folder, self.queue, self.settings, self.seed = folder, queue, settings, seed
        self.finish, self.poll = finish, poll
        self.ties: list[Comparison] = []
        self._open_pages: ExitStack | None = None

    @contextmanager
    def page_kept_open(self) -> Iterator[None]:
        """Keeps the page open between several calls, for a queue that grows."""
        with ExitStack() as self._open_pages:
            try:
                yield
            finally:
                self._open_pages = None

    @staticmethod
    def check(settings: HumanConfig) -> None:
        """Fails early if the page cannot be served.

        Raises:
            MissingExtra: a package is missing.
            UserError: the address or the guidelines are invalid; see `shfcas.feedback.web.server.serve`.
        """
        for package in PACKAGES:
            if find_spec(package) is None:
                raise MissingExtra(package, "web")
        from shfcas.feedback.web.server import check_settings

        check_settings(settings)

    def __call__(self, comparisons: Sequence[Comparison], candidates: CandidateTable, round: int) -> list[Preference]:
        """Waits for enough answers and returns their preferences.

        Comparisons that this queue had before keep their answers, also when it was selected again.

        Raises:
            StoreError: the store cannot be read or written.
        """
        items = make_items(comparisons, candidates, self.queue, round)
        self.ties = []
        if not items:
            return []
        with Store(self.folder / STORE) as store:
            known = self.queue in store.queues()
            new = store.add_queue(items, self.seed)
            if new and known:
                logger.info("%s was selected again: %d of %d comparisons are new", self.queue, new, len(items))
            items = store.items(self.queue)  # those that were asked before keep their ids and sides
            log = store.judgements(self.queue)
            left = len(self._open(items, log))
            if left and self.finish and not new:
                logger.warning("continuing with %d of %d comparisons settled", len(items) - left, len(items))
            elif left:
                if self.finish:
                    logger.warning(
                        "%s has %d new comparisons without answers: waiting despite finish_with_what_we_have",
                        self.queue,
                        new,
                    )
                self._wait(store, items, rows=len(log))
            log = store.judgements(self.queue)
        made = preferences(items, log, self.settings, only_settled=False)
        reached = verdicts(items, log, self.settings)
        tied = (item for item in items if reached[item.id].state in ("tie", "both_bad"))
        self.ties = [Comparison(item.prompt_id, item.first, item.second) for item in tied]
        logger.info("%d comparisons, %d preferences", len(items), len(made))
        return made

    def _open(
        self, items: Sequence[Item], log: Sequence[Judgement], people: Collection[str] = ()
    ) -> dict[str, set[str]]:
        """Returns the unsettled items that an annotator can still answer, each with the annotators who can."""
        reached = verdicts(items, log, self.settings)
        seen = {(judgement.item, judgement.annotator) for judgement in effective(log)}
        asked = {item.id for item in items if reached[item.id].state in ("open", "skipped")}
        able = {id: {person for person in people if (id, person) not in seen} for id in asked}
        return {id: names for id, names in able.items() if names or not people}

    def _wait(self, store: Store, items: Sequence[Item], rows: int) -> None:
        """Waits until nothing is left to answer and the log has not grown for a while."""
        newest, logged = -math.inf, ""
        with ExitStack() as stack, progress(desc="settled", total=len(items), every=PATIENT) as bar:
            page = _Page(self, store, self._open_pages or stack)
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
                state = _waited_for(left, people) if left else f"all are settled; continuing in {quiet:g} s"
                if state != logged:
                    logged = state
                    if state:
                        logger.info(state)
                time.sleep(self.poll)


class _Page:
    """The page of the run: of another process while that runs, then our own until the stack is closed."""

    def __init__(self, asked: HumanFeedback, store: Store, stack: ExitStack) -> None:
        from shfcas.feedback.web.annotators import Annotators

        self._asked, self._store, self._stack = asked, store, stack
        self._annotators = Annotators(asked.folder)
        self._ours, self._elsewhere = False, ""

    def people(self) -> set[str]:
        """Returns the annotators whose answers can be waited for."""
        from shfcas.feedback.web.annotators import SOLE

        people = self._annotators.people()
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
            logger.info("waiting for answers; each annotator opens their own link:")
            for name, link in page.links.items():
                logger.info("  %s: %s", name, link)
            logger.info("each answer is saved at once; after Ctrl-C, the same command resumes")
            self._warn()
        elif address != self._elsewhere:
            self._elsewhere = address
            logger.info("waiting for answers at %s", address)
            newest = self._store.queues()[-1]
            if newest != asked.queue:
                logger.warning(
                    "unless --queue was set, the page there serves %s, the newest queue; this run waits for %s: "
                    "shfcas annotate %s --queue %s serves it",
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
                "overlap: expected %d annotators per comparison, and %d can sign in; when they have answered all, the "
                "run continues with fewer answers; shfcas annotate %s --annotators NAME,NAME adds annotators",
                overlap,
                people,
                self._asked.folder,
            )


def _waited_for(left: dict[str, set[str]], people: Collection[str]) -> str:
    """Names the annotators who alone can still answer the rest; empty if all annotators can."""
    able = set().union(*left.values())
    if len(able) == len(people):
        return ""
    names = ", ".join(sorted(able))
    return f"the rest waits for {names}; remove their line from annotators.txt to continue without them"
