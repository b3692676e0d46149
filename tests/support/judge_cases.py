"""A queue and what a judge comes to, for the tests of the judge."""

import json
from collections.abc import Callable
from typing import Any

from shfcas.data.candidates import CandidateTable
from shfcas.data.preferences import Preference
from shfcas.feedback.judge.config import JudgeConfig
from shfcas.selection import Comparison
from tests.support.judge_server import JudgeServer, Request, Response, longer

KEY = "sk-0123456789-secret"
CHAT = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "how?"}]
ROWS = [
    {"prompt_id": "a", "prompt": CHAT, "completions": ["short", "much longer", "words"]},
    {"prompt_id": "b", "prompt": CHAT, "completions": ["the longest of all", "no"]},
    {"prompt_id": "c", "prompt": CHAT, "completions": ["yes", "yes, it is"]},
]
TABLE = CandidateTable.from_rows(ROWS)
QUEUE = [Comparison("a", 0, 1), Comparison("b", 0, 1), Comparison("c", 1, 0), Comparison("a", 2, 0)]
LONGER = [("a", 1, 0), ("b", 0, 1), ("c", 1, 0)]  # what `longer` comes to; the last comparison is a tie

Script = Callable[[Request], str | Response]
Serve = Callable[[Script], JudgeServer]


def settings(server: JudgeServer | str, **values: Any) -> JudgeConfig:
    url = server if isinstance(server, str) else server.url
    return JudgeConfig(**{"model": "m", "base_url": url, "retry_wait": 0.0, "timeout": 20.0, **values})


def judged(preferences: list[Preference]) -> list[tuple[str, int, int]]:
    return [(p.prompt_id, p.chosen_index, p.rejected_index) for p in preferences]


def first_time(failure: Response, then: Script = longer) -> Script:
    """Fails once for each request that is sent, then answers it."""
    seen: set[str] = set()

    def script(request: Request) -> str | Response:
        text = json.dumps(request)
        if text in seen:
            return then(request)
        seen.add(text)
        return failure

    return script
