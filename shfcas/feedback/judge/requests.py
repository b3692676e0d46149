"""Many requests to a judge, several at a time; every reply is on the disk before it is used."""

import queue
import threading
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from shfcas.data.messages import Message
from shfcas.feedback.judge.cache import Reply, ReplyCache
from shfcas.feedback.judge.client import Completion, JudgeClient, RequestRefused
from shfcas.feedback.judge.prompt import Empty, Malformed, asked_again, read_verdict, spoken
from shfcas.utils.http_client import GaveUp, Stopped

EXCERPT = 300  # characters of a malformed reply that are kept
LONGEST_REASON = 2000  # characters that are kept; one or two sentences are asked for
FAILURES = (GaveUp, RequestRefused, Malformed)  # of one request; any other error ends all requests


@dataclass(frozen=True)
class Request:
    """A question to the judge.

    Attributes:
        key: the key of its reply in the cache.
        messages: the question.
    """

    key: str
    messages: list[Message]


def ask_all(
    requests: Sequence[Request], client: JudgeClient, cache: ReplyCache, concurrency: int
) -> Generator[tuple[Request, Exception | None], None, None]:
    """Sends requests, and yields each when it is done, with its error or None if there is a verdict.

    A caller that needs no more closes the iterator. Then no further request is sent, and those under way are waited
    for, since they are paid for. Ctrl-C ends them at once.

    Args:
        requests: the questions.
        client: sends them.
        cache: keeps the replies.
        concurrency: number of requests under way at a time.
    """
    waiting: queue.SimpleQueue[Request] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Request, Exception | None]] = queue.SimpleQueue()
    stop = threading.Event()
    for request in requests:
        waiting.put(request)

    def work() -> None:
        while not stop.is_set():
            try:
                request = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                _ask(request, client, cache, stop)
            except Stopped:
                return
            except FAILURES as error:
                done.put((request, error))
            except Exception as error:
                stop.set()
                done.put((request, error))
            else:
                done.put((request, None))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(concurrency, len(requests)))]
    for thread in threads:
        thread.start()
    try:
        for _ in requests:
            yield done.get()
    except KeyboardInterrupt:
        stop.set()
        client.cancel()
        raise
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _ask(request: Request, client: JudgeClient, cache: ReplyCache, stop: threading.Event) -> None:
    """Asks, and if the reply is malformed asks once more with the error named.

    Raises:
        Empty: the reply is empty; it is not asked for again.
        Malformed: the second reply is malformed too.
    """
    try:
        _ask_once(request.key, request.messages, client, cache, stop)
    except Empty:
        raise
    except Malformed as error:
        _ask_once(request.key, asked_again(request.messages, error), client, cache, stop)


def _ask_once(key: str, messages: list[Message], client: JudgeClient, cache: ReplyCache, stop: threading.Event) -> None:
    completion = client.complete(client.body(messages), stop)
    counts = (completion.input_tokens, completion.output_tokens)
    try:
        verdict, reason = _verdict(completion)
    except Malformed as error:
        cache.add(Reply(key, None, f"{error}: {completion.text[:EXCERPT]}", *counts))
        raise
    cache.add(Reply(key, verdict, client.hide(reason)[:LONGEST_REASON], *counts))


def _verdict(completion: Completion) -> tuple[str, str]:
    """Reads the verdict; some servers give the whole reply as thoughts."""
    cut = completion.finish_reason == "length"
    if not spoken(completion.text):
        with suppress(Malformed):
            return read_verdict(completion.thoughts)
        withheld = ", withheld by a filter" if completion.finish_reason == "content_filter" else ""
        raise Empty(", since judge.max_tokens was reached; raise it" if cut else withheld)
    if cut:
        raise Malformed("it was cut off, since it was too long")
    if completion.finish_reason == "content_filter":
        raise Malformed("it was withheld by a filter")
    return read_verdict(completion.text)
