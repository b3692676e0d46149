"""A run directory with a queue, and a client that speaks to its page as a browser's script does."""

import http.client
import json
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from shfcas.feedback.annotation.schema import Item, Judgement, item_id
from shfcas.feedback.annotation.store import Store
from shfcas.feedback.web.annotators import add_annotators
from shfcas.feedback.web.server import Page


def make_items(count: int, queue: str = "round-1", **changes: Any) -> list[Item]:
    """Comparisons whose texts name themselves."""
    return [
        Item(
            **{
                "id": item_id(queue, f"p{i}", 0, 1),
                "queue": queue,
                "round": 1,
                "position": i,
                "prompt_id": f"p{i}",
                "first": 0,
                "second": 1,
                "prompt": [{"role": "user", "content": f"question {i}"}],
                "first_text": f"first answer {i}",
                "second_text": f"second answer {i}",
                "why": {"kendall_distance": 0.5, "pacs": [1.0, -2.0], "rewards": [0.1, 0.2]},
                **changes,
            }
        )
        for i in range(count)
    ]


def make_run(folder: Path, items: list[Item], people: tuple[str, ...] = ("ada", "ben")) -> dict[str, str]:
    """A store with one queue, and the tokens of the people by name."""
    folder.mkdir(exist_ok=True)
    with Store(folder / "feedback.sqlite") as store:
        store.add_queue(items, seed=0)
    return add_annotators(folder, people)


class Reply(NamedTuple):
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)


class Client:
    """One browser: it keeps a connection and cookies, and sends what a page's `fetch` sends along.

    Args:
        address: of the page.
        source: address on this machine to connect from.
    """

    def __init__(self, address: str, source: str | None = None) -> None:
        self.place = address.removeprefix("http://").rstrip("/")
        host, _, port = self.place.rpartition(":")
        self.connection = http.client.HTTPConnection(
            host.strip("[]"), int(port), timeout=60, source_address=(source, 0) if source else None
        )
        self.cookies: dict[str, str] = {}
        self.csrf = ""

    def send(self, method: str, path: str, body: Any = None, headers: dict[str, str | None] | None = None) -> Reply:
        """One request; a header that is None is left out, and bytes are sent as they are."""
        own: dict[str, str | None] = {"Host": self.place}
        if self.cookies:
            own["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        if method == "POST":
            own |= {"Origin": f"http://{self.place}", "X-CSRF-Token": self.csrf, "Content-Type": "application/json"}
        sent = {name: value for name, value in (own | (headers or {})).items() if value is not None}
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        self.connection.request(method, path, content, sent)
        response = self.connection.getresponse()
        reply = Reply(response.status, response.headers, response.read())
        for cookie in reply.headers.get_all("Set-Cookie", []):
            name, _, rest = cookie.partition("=")
            self.cookies[name] = rest.partition(";")[0].strip('"')
        return reply

    def get(self, path: str, **headers: str | None) -> Reply:
        return self.send("GET", path, headers=headers)

    def post(self, path: str, body: Any, **headers: str | None) -> Reply:
        return self.send("POST", path, body, headers)

    def sign_in(self, token: str) -> Reply:
        reply = self.post("/api/sign-in", {"token": token})
        if reply.status == 200:
            self.csrf = reply.json()["csrf"]
        return reply

    def next(self, *held: str) -> Any:
        """The next task, or None."""
        reply = self.get("/api/next?" + "&".join(f"held={id}" for id in held))
        assert reply.status == 200, reply.content
        return reply.json()["task"]

    def judge(self, task: dict[str, Any], choice: str = "left", **more: Any) -> Reply:
        body = {"id": str(uuid.uuid4()), "item": task["id"], "shown": task["shown"], "choice": choice, **more}
        return self.post("/api/judgements", body)


def answer_all(client: Client, choose: Callable[[dict[str, Any]], str] = lambda task: "left") -> int:
    """Answers until nothing is left; says how many."""
    count = 0
    while task := client.next():
        assert client.judge(task, choose(task)).status == 200
        count += 1
    return count


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def token(page: Page, name: str = "ada") -> str:
    return page.links[name].partition("#token=")[2]


def signed_in(page: Page, name: str = "ada") -> Client:
    client = Client(page.address)
    assert client.sign_in(token(page, name)).status == 200
    return client


def log(folder: Path) -> list[Judgement]:
    with Store(folder / "feedback.sqlite") as store:
        return store.judgements()
