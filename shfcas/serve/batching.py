"""Queue of requests: those that arrive while others are scored are scored together."""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence

from shfcas.serve.reward import Answers, Rewards
from shfcas.utils.errors import UserError

MOST_TOGETHER = 256  # answers

Reply = asyncio.Future[Rewards]
Job = tuple[Answers, Reply, asyncio.AbstractEventLoop]


class Busy(UserError):
    """Refusal of a request because too many answers wait already."""


class Batcher:
    """Thread that scores the requests of an event loop, in the order of their arrival.

    It never waits for more requests: a lone one is scored at once, and under load those that have arrived meanwhile are
    scored together.

    Args:
        reward: rewards of several requests; see `ServedReward`.
        most_waiting: answers that may wait before further requests are refused.
        observe: called with the number of answers that are scored together.
    """

    def __init__(
        self,
        reward: Callable[[Sequence[Answers]], list[Rewards | UserError]],
        most_waiting: int,
        observe: Callable[[int], None] = lambda answers: None,
    ) -> None:
        self._reward, self._most_waiting, self._observe = reward, most_waiting, observe
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="rewards", daemon=True)
        self._thread.start()
        self.waiting = 0  # answers; changed by the event loop only

    async def score(self, answers: Answers) -> Rewards:
        """Returns the rewards of a request.

        Raises:
            Busy: too many answers wait.
            UserError: the reward failed for this request.
        """
        count = len(answers.completions)
        if self.waiting and self.waiting + count > self._most_waiting:
            raise Busy(f"{self.waiting} answers wait already; try again later")
        loop = asyncio.get_running_loop()
        reply: Reply = loop.create_future()
        self.waiting += count
        try:
            self._jobs.put((answers, reply, loop))
            return await reply
        finally:
            self.waiting -= count

    def close(self) -> None:
        """Scores what waits and ends the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        ended = False
        while not ended:
            jobs: list[Job] = []
            answers = 0
            job = self._jobs.get()
            while True:
                if job is None:
                    ended = True
                    break
                if not job[1].cancelled():  # its client has gone
                    jobs.append(job)
                    answers += len(job[0].completions)
                if answers >= MOST_TOGETHER:
                    break
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
            if jobs:
                self._score(jobs, answers)

    def _score(self, jobs: Sequence[Job], answers: int) -> None:
        self._observe(answers)
        results: Sequence[Rewards | Exception]
        try:
            results = self._reward([job[0] for job in jobs])
        except Exception as error:  # a fault of ours fails the requests, and the server stays
            results = [error] * len(jobs)
        for (_, reply, loop), result in zip(jobs, results, strict=True):
            loop.call_soon_threadsafe(_settle, reply, result)


def _settle(reply: Reply, result: Rewards | Exception) -> None:
    if reply.cancelled():
        return
    if isinstance(result, Rewards):
        reply.set_result(result)
    else:
        reply.set_exception(result)
