"""Feedback from a language model: it judges each comparison in both orders, and only agreement is a preference."""

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from shfcas.data.candidates import CandidateTable
from shfcas.data.preferences import Preference
from shfcas.feedback.annotation.schema import make_preference, rows_asked_about
from shfcas.feedback.judge.cache import ReplyCache, request_key
from shfcas.feedback.judge.client import JudgeClient, RequestRefused
from shfcas.feedback.judge.config import JudgeConfig
from shfcas.feedback.judge.prompt import Empty, Malformed, judge_messages
from shfcas.feedback.judge.report import PREFERRED, outcome, report, summary
from shfcas.feedback.judge.requests import FAILURES, Request, ask_all
from shfcas.selection import Comparison
from shfcas.utils.config import require
from shfcas.utils.errors import UserError
from shfcas.utils.files import read_text
from shfcas.utils.progress import progress

logger = logging.getLogger(__name__)

Orders = tuple[Request, Request]  # one comparison: with its answers in order, and swapped

REFUSALS = 3  # after so many refused requests and no verdict, the settings are wrong and not the texts


class JudgeFeedback:
    """Asks a language model at an endpoint of OpenAI's protocol.

    Each comparison is asked in both orders of its answers. It gives a preference if the same answer is preferred both
    times. It is a tie if either verdict is a tie, or the verdicts differ. After a malformed reply the question is asked
    once more; after a second one, or after an empty one, there is no label.

    Args:
        settings: the judge.
        cache: the file of replies, from which a killed call resumes; `settings.cache` takes precedence.

    Attributes:
        report: counts, tokens and costs of the last call, also if it failed.
        ties: comparisons of the last call with a verdict that prefers neither answer.

    Raises:
        UserError: the settings are incomplete, there is no key, or the guidelines cannot be read.
    """

    def __init__(self, settings: JudgeConfig, cache: str | Path) -> None:
        self.settings, self.cache = settings, Path(settings.cache or cache)
        require(settings, "judge.")
        self.guidelines = read_text(settings.guidelines) if settings.guidelines else ""
        self.client = JudgeClient(settings)
        self.report: dict[str, Any] = {}
        self.ties: list[Comparison] = []

    def __call__(self, comparisons: Sequence[Comparison], candidates: CandidateTable, round: int) -> list[Preference]:
        """Asks for the verdicts that are not in the cache, and returns the preferences.

        Raises:
            UserError: the endpoint cannot be used, or too many comparisons have no verdict. Verdicts so far are kept.
        """
        rows = rows_asked_about(comparisons, candidates)
        asked = [self._orders(c, rows[c.prompt_id]) for c in comparisons]
        with ReplyCache(self.cache) as cache:
            requests = {r.key: r for pair in asked for r in pair}
            missing = [r for r in requests.values() if cache.get(r.key) is None]
            errors: dict[str, Exception] = {
                r.key: Empty(why) for r in missing if (why := cache.empty(r.key)) is not None
            }
            missing = [r for r in missing if r.key not in errors]
            replies, retries = len(cache.replies), self.client.retries
            try:
                self._ask(missing, asked, cache, errors)
            finally:
                outcomes = [_outcome(pair, cache, errors) for pair in asked]
                self.report = self._report(asked, outcomes, cache) | {
                    "asked": len(cache.replies) - replies,
                    "retries": self.client.retries - retries,
                    "cached": len(requests) - len(missing),
                }
        logger.info("%s", summary(self.report))
        self.ties = [c for c, o in zip(comparisons, outcomes, strict=True) if o in ("tie", "order")]
        return [
            self._preference(c, o, rows[c.prompt_id], round)
            for c, o in zip(comparisons, outcomes, strict=True)
            if o in PREFERRED
        ]

    def _orders(self, comparison: Comparison, row: dict[str, Any]) -> Orders:
        first, second = row["completions"][comparison.first], row["completions"][comparison.second]
        return self._request(row, (first, second)), self._request(row, (second, first))

    def _request(self, row: dict[str, Any], answers: tuple[str, str]) -> Request:
        s = self.settings
        messages = judge_messages(
            row["prompt"], answers, criterion=s.criterion, guidelines=self.guidelines, system_message=s.system_message
        )
        return Request(request_key(self.client.host, self.client.body(messages)), messages)

    def _ask(
        self, missing: Sequence[Request], asked: Sequence[Orders], cache: ReplyCache, errors: dict[str, Exception]
    ) -> None:
        """Asks until every request is done or the endpoint is useless; adds errors to `errors` by key."""
        comparisons: dict[str, list[int]] = {}
        for index, pair in enumerate(asked):
            for request in pair:
                comparisons.setdefault(request.key, []).append(index)
        without = {index for key in errors for index in comparisons[key]}
        self._refuse_too_many(without, asked, errors)
        done = ask_all(missing, self.client, cache, self.settings.concurrency)
        with progress(total=len(missing), desc=f"judge {self.settings.model}") as bar, closing(done):
            for request, error in done:
                bar.update()
                if error is None:
                    continue
                if not isinstance(error, FAILURES):
                    raise error
                errors[request.key] = error
                without.update(comparisons[request.key])
                refused = sum(isinstance(e, RequestRefused) for e in errors.values())
                if refused >= min(REFUSALS, len(missing)) and not any(cache.get(key) for key in comparisons):
                    raise UserError(f"{error}; check the judge's settings")
                self._refuse_too_many(without, asked, errors)

    def _refuse_too_many(self, without: set[int], asked: Sequence[Orders], errors: dict[str, Exception]) -> None:
        if errors and len(without) > self.settings.max_failed_share * len(asked):
            raise UserError(_too_many(len(without), len(asked), errors, self.cache))

    def _report(self, asked: Sequence[Orders], outcomes: Sequence[str], cache: ReplyCache) -> dict[str, Any]:
        verdicts = [reply.verdict for pair in asked for r in pair if (reply := cache.get(r.key))]
        keys = {r.key for pair in asked for r in pair}
        replies = [reply for reply in cache.replies if reply.key in keys]
        who = {"model": self.settings.model, "endpoint": self.client.host}
        return who | report(outcomes, verdicts, replies, self.settings)

    def _preference(self, comparison: Comparison, preferred: str, row: dict[str, Any], round: int) -> Preference:
        chosen, rejected = comparison.first, comparison.second
        if preferred == "second":
            chosen, rejected = rejected, chosen
        return make_preference(row, chosen, rejected, source="judge", annotator=self.settings.model, round=round)


def _outcome(pair: Orders, cache: ReplyCache, errors: dict[str, Exception]) -> str:
    wrong = [errors[request.key] for request in pair if request.key in errors]
    if wrong:
        return "malformed" if all(isinstance(error, Malformed) for error in wrong) else "failed"
    return outcome(*(cache.get(request.key) for request in pair)) or "unasked"


def _too_many(without: int, total: int, errors: dict[str, Exception], cache: Path) -> str:
    kinds = Counter(_kind(error) for error in errors.values())
    counts = ", ".join(f"{kind}: {count}" for kind, count in sorted(kinds.items()))
    last = list(errors.values())[-1]
    empty = ""
    if kinds["empty replies"]:
        empty = f"; empty replies are not paid for again: raise judge.max_tokens, or remove their lines from {cache}"
    return (
        f"the judge gave no verdict on {without} of {total} comparisons ({counts}; the last: {last}), more than "
        "judge.max_failed_share allows; verdicts so far are kept: check the endpoint and run the same command again"
        + empty
    )


def _kind(error: Exception) -> str:
    if isinstance(error, Empty):
        return "empty replies"
    return "malformed replies" if isinstance(error, Malformed) else "failed requests"
