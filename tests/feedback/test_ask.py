"""Questions from a script or a notebook: one call, a page, and judgements."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import shfcas
from shfcas.feedback import ask as asking
from shfcas.feedback.web.server import running
from shfcas.utils.errors import UserError
from tests.support.page_client import Client, answer_all

PAIRS = [("how?", "good", "bad"), ([{"role": "user", "content": "what?"}], "worst", "best"), ("how?", "good", "fine")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(asking, "POLL", 0.01)
    yield tmp_path / "labels"
    asking._close_all()


def answers(link: str) -> int:
    """A person opens a link and prefers the longer answer; of equal ones, the left one."""
    address, _, token = link.partition("#token=")
    client = Client(address)
    client.sign_in(token)
    return answer_all(
        client, lambda task: "left" if len(task["left"]["text"]) >= len(task["right"]["text"]) else "right"
    )


def test_a_script_waits_for_its_judgement(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = shfcas.ask_many([("how?", "good", "so bad")], folder=folder)
    someone = threading.Thread(target=answers, args=(asked.links["annotator"],))
    someone.start()
    judged = shfcas.ask("how?", "good", "so bad", folder=folder)
    someone.join()
    assert judged.choice == "b" and judged.preferred == "so bad" and judged.annotators == ("annotator",)
    assert capsys.readouterr().out.count("#token=") == 1  # the second call joins the page of the first


def test_a_notebook_awaits_and_its_other_tasks_go_on(folder: Path) -> None:
    async def cell() -> tuple[list[asking.Judged], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        other = asyncio.ensure_future(tick())
        asked = shfcas.ask_many(PAIRS, folder=folder)
        with pytest.raises(UserError, match=r"write: await shfcas\.ask_many"):
            asked.wait()
        before = ticks
        waiting = asyncio.ensure_future(asyncio.wait_for(asked, timeout=120))
        await asyncio.to_thread(answers, asked.links["annotator"])
        found = await waiting
        other.cancel()
        return found, ticks - before

    found, ticks = asyncio.run(cell())
    assert [judged.preferred for judged in found[:1]] == ["good"] and ticks > 0
    assert [(j.prompt, j.a, j.b) for j in found] == PAIRS and all(j.choice in ("a", "b") for j in found)


def test_an_interrupted_call_resumes_and_keeps_what_was_answered(folder: Path) -> None:
    asked = shfcas.ask_many(PAIRS[:1], folder=folder)
    assert answers(asked.links["annotator"]) == 1
    assert running(folder)
    asked.close()
    assert running(folder) is None
    again = shfcas.ask_many([PAIRS[1], (PAIRS[0][0], PAIRS[0][2], PAIRS[0][1])], folder=folder)  # the other way round
    assert [judged.choice for judged in again.so_far()] == [None, "b"] and "1 of 2 pairs judged" in repr(again)
    assert answers(again.links["annotator"]) == 1  # the answered one is not asked again
    assert [judged.choice for judged in again.wait()] == ["a", "b"]


def test_a_page_that_ends_is_opened_again(folder: Path) -> None:
    asked = shfcas.ask_many(PAIRS[:1], folder=folder)
    with pytest.raises(TimeoutError):
        asyncio.run(_briefly(asked))
    asked.close()
    links: dict[str, str] = {}

    def answer_when_it_is_back() -> None:
        while not (address := running(folder)):
            threading.Event().wait(0.01)
        links["new"] = f"{address}#token={asked.links['annotator'].partition('#token=')[2]}"
        answers(links["new"])

    someone = threading.Thread(target=answer_when_it_is_back)
    someone.start()
    assert [judged.choice for judged in asked.wait()] == ["a"]
    someone.join()


async def _briefly(asked: asking.Asked) -> None:
    await asyncio.wait_for(asked, timeout=0.05)


@pytest.mark.parametrize(
    ("pair", "message"),
    [(("", "a", "b"), "pair 0: the prompt is empty"), (("how?", 1, "b"), "pair 0: expected a as text, got int")],
)
def test_a_pair_that_cannot_be_asked_is_an_error(pair: tuple, message: str, folder: Path) -> None:
    with pytest.raises(UserError, match=message):
        shfcas.ask_many([pair], folder=folder)
