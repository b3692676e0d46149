"""Many requests to a judge, several at a time; every reply is kept before anything else happens to it."""

import queue
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from shfcas.data.chat import Message
from shfcas.feedback.judge.cache import Reply, ReplyCache
from shfcas.feedback.judge.client import Completion, JudgeClient, RequestFailed, RequestRefused, Stopped
from shfcas.feedback.judge.prompt import Malformed, asked_again, read_verdict

EXCERPT = 300  # characters of a malformed reply that are kept
FAILURES = (RequestFailed, RequestRefused, Malformed)  # of one request; anything else ends all


@dataclass(frozen=True)
class Request:
    """A question to the judge.

    Attributes:
        key: what its reply is kept under.
        messages: what is asked.
    """

    key: str
    messages: list[Message]


def ask_all(
    requests: Sequence[Request], client: JudgeClient, cache: ReplyCache, concurrency: int
) -> Generator[tuple[Request, Exception | None], None, None]:
    """Asks, and yields each request as soon as it is through, with what went wrong or None if there is a verdict now.

    A caller who has seen enough closes the iterator: nothing new is asked then, and what is under way is waited for,
    since it is paid for.

    Args:
        requests: the questions.
        client: asks them.
        cache: keeps the replies.
        concurrency: how many are under way at a time.
    """
    waiting: queue.SimpleQueue[Request] = queue.SimpleQueue()
    through: queue.SimpleQueue[tuple[Request, Exception | None]] = queue.SimpleQueue()
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
                through.put((request, error))
            except Exception as error:
                stop.set()
                through.put((request, error))
            else:
                through.put((request, None))

    # Daemons: an interrupted program does not wait for the endpoint.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(concurrency, len(requests)))]
    for thread in threads:
        thread.start()
    try:
        for _ in requests:
            yield through.get()
    except KeyboardInterrupt:
        threads.clear()
        raise
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _ask(request: Request, client: JudgeClient, cache: ReplyCache, stop: threading.Event) -> None:
    """Asks once, and once more with the error named if the reply is malformed.

    Raises:
        Malformed: the second reply was malformed too.
    """
    try:
        _ask_once(request.key, request.messages, client, cache, stop)
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
    cache.add(Reply(key, verdict, reason, *counts))


def _verdict(completion: Completion) -> tuple[str, str]:
    if completion.finish_reason == "length":
        raise Malformed("it was cut off, since it was too long")
    if completion.finish_reason == "content_filter":
        raise Malformed("it was withheld by a filter")
    return read_verdict(completion.text)
