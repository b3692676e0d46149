"""The page's server over real HTTP: what is asked, what is kept, and what happens when things go wrong."""

import sqlite3
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shfcas.feedback.annotation.aggregation import effective
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.store import Store
from shfcas.feedback.web import dependencies, desk
from shfcas.feedback.web.server import Page, running, serve
from shfcas.utils.errors import UserError
from tests.support.page_client import Reply, answer_all, log, make_items, make_run, signed_in

ROOT = Path(__file__).parents[3]
SETTINGS = HumanConfig(port=0, repeat_share=0.0)


def test_an_answer_is_kept_as_it_was_seen(folder: Path, page: Page) -> None:
    client, items = signed_in(page), {item.id: item for item in make_items(6)}
    for choice, strength in [("left", "slightly"), ("right", "clearly"), ("tie", None), ("both_bad", None)]:
        task = client.next()
        item = items[task["id"]]
        texts = {"first": item.first_text, "second": item.second_text}
        more = {"strength": strength, "comment": "why not", "seconds": 2.5, "page_version": "v1"}
        reply = client.judge(task, choice, **more).json()
        kept = log(folder)[-1]
        assert (kept.item, kept.annotator, kept.repeat, kept.time != "") == (item.id, "ada", False, True)
        assert (kept.strength, kept.comment, kept.seconds, kept.page_version) == tuple(more.values())
        other = {"first": "second", "second": "first"}[kept.left]
        assert [task["left"]["text"], task["right"]["text"]] == [texts[kept.left], texts[other]]
        assert kept.choice == {"left": kept.left, "right": other}.get(choice, choice)
        pacs = dict(zip(("first", "second"), item.why["pacs"], strict=True))
        assert reply["saved"] is reply["new"] is True and "why" not in reply
        why = client.post("/api/why", {"answer": kept.id}).json()["why"]
        assert why["pacs"] == {"left": pacs[kept.left], "right": pacs[other]}
        assert why["kendall_distance"] == 0.5
    assert reply["progress"] == {"total": 6, "settled": 4, "answers": 4, "wanted": 6, "mine": 4, "mine_left": 2}


def test_both_sides_come_up() -> None:
    from shfcas.feedback.annotation.assignment import side

    assert {side(0, "ada", item.id) for item in make_items(6)} == {"first", "second"}  # or the test above sees one


def test_a_task_tells_nothing_that_could_sway(page: Page) -> None:
    task = signed_in(page).next()
    assert set(task) == {"id", "prompt", "left", "right", "repeat", "shown", "lease_expires"}
    assert set(task["left"]) == set(task["right"]) == {"text"}
    assert task["prompt"] == [{"role": "user", "content": "question 0"}]


def test_sent_again_is_written_once(folder: Path, page: Page) -> None:
    client = signed_in(page)
    task, id = client.next(), str(uuid.uuid4())
    body = {"id": id, "item": task["id"], "shown": task["shown"], "choice": "left"}
    assert [client.post("/api/judgements", body).json()["new"] for _ in range(3)] == [True, False, False]
    assert client.post("/api/judgements", {**body, "choice": "right"}).status == 400
    assert [j.id for j in log(folder)] == [id]


def test_prefetched_tasks_are_different_ones(page: Page) -> None:
    client = signed_in(page)
    held: list[str] = []
    while task := client.next(*held):
        held.append(task["id"])
    assert held == [item.id for item in make_items(6)]
    assert signed_in(page, "ben").next() is None  # all of them are with ada
    assert client.post("/api/sign-out", {}).status == 200
    assert signed_in(page, "ben").next()["id"] == held[0]


def test_undo_brings_the_item_back(folder: Path, page: Page) -> None:
    client = signed_in(page)
    first, wrong = client.next(), str(uuid.uuid4())
    client.judge(first, "left", id=wrong)
    second = client.next()
    undo = {"id": str(uuid.uuid4()), "undoes": wrong}
    replies = [client.post("/api/undo", undo).json() for _ in range(2)]
    for reply in replies:  # also when it is sent again
        assert reply["saved"] and {**reply["task"], "lease_expires": ""} == {**first, "lease_expires": ""}
    assert reply["progress"]["mine"] == 0
    client.judge(second, "tie")
    client.judge(first, "right")
    assert len(log(folder)) == 4
    assert [(j.item, j.choice) for j in effective(log(folder))] == [
        (second["id"], "tie"),
        (first["id"], {"first": "second", "second": "first"}[log(folder)[0].left]),
    ]
    assert client.post("/api/undo", {**undo, "id": str(uuid.uuid4())}).status == 400  # it is undone already
    assert (
        signed_in(page, "ben").post("/api/undo", {"id": str(uuid.uuid4()), "undoes": log(folder)[2].id}).status == 400
    )


def test_an_answer_counts_as_it_was_shown_whatever_happened_since(folder: Path) -> None:
    """A repeat turns the sides around. Answered late, after the first answer was undone, it must not be mistaken."""
    with serve(folder, HumanConfig(port=0, repeat_share=0.999)) as page:
        client = signed_in(page)
        shown: dict[str, list[dict]] = {}
        ids = {}
        while task := client.next():
            shown.setdefault(task["id"], []).append(task)
            if task["repeat"]:
                break
            ids[task["id"]] = str(uuid.uuid4())
            client.judge(task, "left", id=ids[task["id"]])
        once, again = shown[task["id"]]
        assert (once["left"], once["right"]) == (again["right"], again["left"])
        client.post("/api/undo", {"id": str(uuid.uuid4()), "undoes": ids[task["id"]]})
        client.judge(again, "left")
        kept = log(folder)
        answers = [j for j in kept if j.item == task["id"] and j.choice != "undo"]
        assert [j.repeat for j in answers] == [False, True]
        assert answers[0].choice != answers[1].choice  # left both times, and there stood another answer
        assert client.judge(again | {"shown": "0" * 16}).status == 400
        assert signed_in(page, "ben").judge(again).status == 400


def test_a_new_queue_is_found_and_an_answer_to_the_old_one_still_counts(folder: Path, page: Page) -> None:
    client = signed_in(page)
    old = client.next()
    with Store(folder / "feedback.sqlite") as store:
        store.add_queue(make_items(3, "round-2"), seed=1)
    assert client.get("/api/me").json()["queue"] == "round-2"
    assert client.next()["id"] == make_items(1, "round-2")[0].id
    assert client.judge(old).json()["progress"]["total"] == 3
    assert [j.item for j in log(folder)] == [old["id"]]


def test_a_run_without_a_queue_waits_for_one(tmp_path: Path) -> None:
    with serve(tmp_path, SETTINGS) as page:
        assert list(page.links) == ["annotator"]
        client = signed_in(page, "annotator")
        reply = client.get("/api/next").json()
        assert (reply["name"], reply["run"]) == ("annotator", next(iter(client.cookies)))
        assert (reply["task"], reply["progress"], reply["queue"]) == (None, None, None)
        assert client.get("/api/dashboard").json() == {"report": None, "progress": None, "queue": None}
        assert client.get("/").status == 200
        with Store(tmp_path / "feedback.sqlite") as store:
            store.add_queue(make_items(2), seed=0)
        assert client.next() is not None


def test_a_named_queue_is_served_and_an_unknown_one_refused(folder: Path) -> None:
    with Store(folder / "feedback.sqlite") as store:
        store.add_queue(make_items(3, "round-2"), seed=1)
    with serve(folder, SETTINGS, "round-1") as page:
        assert signed_in(page).get("/api/next").json()["queue"] == "round-1"
    with pytest.raises(UserError, match="no queue 'round-3'"), serve(folder, SETTINGS, "round-3"):
        pass
    assert running(folder) is None


def test_two_people_at_once_get_each_item_once(folder: Path, page: Page) -> None:
    counts: dict[str, int] = {}

    def work(name: str) -> None:
        counts[name] = answer_all(signed_in(page, name))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("ada", "ben")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts.values()) == 6
    assert sorted(j.item for j in log(folder)) == sorted(item.id for item in make_items(6))


def test_the_dashboard_counts(page: Page) -> None:
    client = signed_in(page)
    answer_all(client)
    numbers = client.get("/api/dashboard").json()
    assert numbers["progress"]["mine"] == 6
    assert [(row["name"], row["answered"]) for row in numbers["report"]["annotators"]] == [("ada", 6)]
    assert client.get("/dashboard").status == 200


def test_nobody_who_answers_waits_for_the_dashboard(folder: Path, page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    ada, ben = signed_in(page), signed_in(page, "ben")
    replies: list[Reply] = []

    def answered_meanwhile(*_: object) -> dict[str, Any]:
        thread = threading.Thread(target=lambda: replies.append(ada.judge(ada.next())), daemon=True)
        thread.start()
        thread.join(20)
        return {"answers": len(replies)}

    monkeypatch.setattr(desk, "agreement_report", answered_meanwhile)
    assert ben.get("/api/dashboard").json()["report"] == {"answers": 1}
    assert [reply.status for reply in replies] == [200] and len(log(folder)) == 1


def test_the_dashboard_reads_no_texts(folder: Path) -> None:
    with Store(folder / "feedback.sqlite") as store:
        queries: list[str] = []
        store.queues()  # opens the connection that the next reader takes
        store._database._readers[-1].set_trace_callback(queries.append)
        numbers = desk.Desk(store, SETTINGS).dashboard("ada")
    assert numbers["report"]["states"]["open"] == 6
    assert queries and not [query for query in queries if "content" in query]


def test_texts_survive(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>\x1b[31m\u202eevil\u2028\x00\ud800 \U0001f600\r\n\t" + "long " * 200_000
    make_run(tmp_path, make_items(1, first_text=hostile, second_text="", prompt="\udfff\x07"))
    with serve(tmp_path, SETTINGS) as page:
        client = signed_in(page)
        task = client.next()
        assert {task["left"]["text"], task["right"]["text"]} == {hostile, ""} and task["prompt"] == "\udfff\x07"
        comment = hostile[:9000]
        assert client.judge(task, "flag", comment=comment).status == 200
    assert log(tmp_path)[0].comment == comment


def test_nothing_is_acknowledged_before_it_is_written(folder: Path, page: Page) -> None:
    client = signed_in(page)
    task = client.next()
    replies: list[Reply] = []
    with locked(folder):
        thread = threading.Thread(target=lambda: replies.append(client.judge(task)))
        thread.start()
        thread.join(0.3)
        assert not replies
    thread.join()
    assert replies[0].json()["new"] is True


def test_what_the_store_cannot_do_now_can_be_asked_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependencies, "WRITE_SECONDS", 0.05)  # until a lock is too long
    with serve(folder, SETTINGS) as page:
        client = signed_in(page)
        task = client.next()
        with locked(folder):
            reply = client.judge(task)
            assert client.get("/api/me").status == client.get("/").status == client.get("/api/dashboard").status == 200
        assert reply.status == 503 and reply.headers["Retry-After"] == "1"
        assert reply.json()["error"].startswith("feedback.sqlite: locked by another process")
        assert client.judge(task).json()["new"] is True


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Another process keeps the file for itself."""
    blocker = sqlite3.connect(folder / "feedback.sqlite", isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    yield
    blocker.execute("ROLLBACK")
    blocker.close()


WRONG = {
    "no choice": {"choice": None},
    "choice": {"choice": "first"},
    "undo": {"choice": "undo"},
    "strength": {"strength": "very"},
    "strength of a tie": {"choice": "tie", "strength": "clearly"},
    "id": {"id": "x"},
    "id with a path": {"id": "../../etc/passwd"},
    "item": {"item": "0123456789abcdef"},
    "item of another type": {"item": ["a"]},
    "sides": {"shown": "first"},
    "comment": {"comment": ["x"]},
    "seconds": {"seconds": -1},
    "endless": {"seconds": float("inf")},
    "no number": {"seconds": float("nan")},
    "true": {"seconds": True},
    "version": {"page_version": "\x1b[31m"},
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Page]]:
    folder = tmp_path_factory.mktemp("run")
    make_run(folder, make_items(6))
    with serve(folder, SETTINGS) as page:
        yield folder, page


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_wrong_input_is_named_and_nothing_is_written(shared: tuple[Path, Page], change: dict) -> None:
    folder, page = shared
    client = signed_in(page)
    task = client.next()
    body = {"id": str(uuid.uuid4()), "item": task["id"], "shown": task["shown"], "choice": "left"}
    reply = client.post("/api/judgements", body | change)
    assert reply.status == 400 and reply.json()["error"]
    assert log(folder) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choice": "first"}, "choice: Input should be 'left', 'right', 'tie', 'both_bad', 'skip' or 'flag'"),
        ({"choice": "tie", "strength": "clearly"}, "strength: expected none with the choice tie"),
        ({"seconds": -1}, "seconds: Input should be greater than or equal to 0"),
        ({"id": "\x1b[31m"}, "id: String should match pattern '^[A-Za-z0-9-]{8,64}$'"),
        ({"comment": None}, "comment: Input should be a valid string"),
        ({"annotator": "ben"}, "annotator: Extra inputs are not permitted"),
    ],
)
def test_the_first_wrong_field_is_named_in_one_line(shared: tuple[Path, Page], change: dict, message: str) -> None:
    client = signed_in(shared[1])
    reply = client.judge(client.next(), **change)
    assert (reply.status, reply.json()) == (400, {"error": message})


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"a":' * 20_000, b"\xff", b"null"])
def test_a_body_that_is_no_object_is_refused(shared: tuple[Path, Page], body: bytes) -> None:
    _, page = shared
    client = signed_in(page)
    for path in ("/api/judgements", "/api/undo", "/api/sign-out", "/api/sign-in"):
        reply = client.post(path, body)
        assert reply.status in (400, 413) and set(reply.json()) == {"error"}
    assert client.get("/api/me").status == 200


def test_one_server_a_run(folder: Path, page: Page) -> None:
    assert running(folder) == page.address
    with pytest.raises(UserError, match=f"served already, at {page.address}"), serve(folder, SETTINGS):
        pass
    assert running(folder) == page.address and signed_in(page).next()  # the first one goes on


def test_the_lock_ends_with_the_server(folder: Path) -> None:
    assert running(folder) is None and running(folder / "nowhere") is None
    for _ in range(2):
        with serve(folder, SETTINGS) as page:
            assert running(folder) == page.address
        assert running(folder) is None


def test_a_taken_port_is_named(folder: Path, tmp_path_factory: pytest.TempPathFactory, page: Page) -> None:
    other = tmp_path_factory.mktemp("other")
    port = int(page.address.rpartition(":")[2].strip("/"))
    with pytest.raises(UserError, match=f"cannot listen at port {port}"), serve(other, HumanConfig(port=port)):
        pass
    assert running(other) is None


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"), serve(tmp_path / "none", SETTINGS):
        pass
