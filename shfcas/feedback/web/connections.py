"""Connections of the page's server: deadlines, limits, and which one is dropped when there are too many.

An attacker who opens connections and sends little must shut nobody out. So each step of a request has a deadline, and
the number of connections is bounded. Connections that have not signed in have a bound of their own: beyond it, the
oldest one with an unfinished request is dropped. Behind a proxy or a tunnel all connections come from one address, so
there the whole number is its share.
"""

import asyncio
import errno
import ipaddress
import logging
import resource
from typing import Any

import h11
from uvicorn import Server
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

logger = logging.getLogger(__name__)

# Seconds that a step may take; a step with a reply that the client is slow to read is prolonged while it reads.
SECONDS = {"head": 10.0, "body": 20.0, "reply": 60.0, "idle": 60.0}
STRANGERS = 256  # connections that have not signed in
STRANGERS_PER_ADDRESS = 32  # from an address of another machine
PER_PERSON = 32  # connections of one annotator; a browser opens at most 6
MAX_HEAD = 16 * 1024  # bytes
_LENGTHS = (b"content-length", b"transfer-encoding")
RESERVED_FILES = 96  # open files for everything else: the database, logs, guidelines


class Connections:
    """All connections of a server.

    Args:
        strangers: maximum number of connections that have not signed in.
        per_address: of those, from one address of another machine.
        seconds: deadlines of the steps.
    """

    def __init__(
        self,
        strangers: int = STRANGERS,
        per_address: int = STRANGERS_PER_ADDRESS,
        seconds: dict[str, float] = SECONDS,
    ) -> None:
        self.seconds = seconds
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._total = max(16, files - RESERVED_FILES) if files > 0 else 100_000
        self._strangers, self._per_address = min(strangers, self._total // 2), per_address
        self._open: dict[Connection, None] = {}  # oldest first

    def protocol(self, **options: Any) -> "Connection":
        """Returns the protocol of a new connection; uvicorn calls this."""
        return Connection(self, **options)

    def opened(self, new: "Connection") -> None:
        """Adds a connection, and drops others that are in the way of it."""
        self._open[new] = None
        strangers = [each for each in self._open if not each.name]
        address = new.address()
        if not _is_near(address):
            self._bound([each for each in strangers if each.address() == address], self._per_address)
        self._bound([each for each in strangers if each in self._open], self._strangers)
        self._bound(list(self._open), self._total)

    def signed_in(self, connection: "Connection", name: str) -> None:
        """Notes the annotator of a connection."""
        if connection.name != name:
            connection.name = name
            self._bound([each for each in self._open if each.name == name], PER_PERSON)

    def closed(self, connection: "Connection") -> None:
        """Removes a connection."""
        self._open.pop(connection, None)

    def make_room(self) -> None:
        """Drops a few unfinished requests of strangers, because the process has no file left for a new connection.

        None that is idle or answered: the loop accepts many connections before it tells of the first, so that these
        may be the only ones that are known.
        """
        unfinished = [each for each in self._open if not each.name and each.step in ("head", "body")]
        self._bound(unfinished, len(unfinished) - 8)

    def _bound(self, connections: list["Connection"], most: int) -> None:
        """Drops connections until `most` are left: unfinished requests first, then idle ones; none that is answered."""
        surplus = len(connections) - max(0, most)
        if surplus <= 0:
            return
        order = {"head": 0, "body": 0, "idle": 1, "reply": 2}
        by_use = sorted(connections, key=lambda each: (bool(each.name), order[each.step]))  # stable: oldest first
        logger.warning("too many connections: the oldest unfinished ones are dropped")
        for each in by_use[:surplus]:
            each.drop()


class Connection(H11Protocol):
    """One connection, with a deadline for its current step.

    Attributes:
        name: the annotator who signed in on this connection, or empty.
        step: `head` or `body` of a request is being received, `reply` is being made or sent, or `idle`.
    """

    def __init__(self, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self.app_state = {"connection": self}
        self.conn = _StrictConnection(h11.SERVER, MAX_HEAD)
        self.name, self.step = "", "head"
        self._connections = connections
        self._deadline: asyncio.TimerHandle | None = None
        self._unsent, self._lost = 0, False

    def address(self) -> str:
        """Returns the address at the other end."""
        return self.client[0] if self.client else ""

    def signed_in(self, name: str) -> None:
        """Notes the annotator; may be called in any thread."""
        if self.name != name:
            self.loop.call_soon_threadsafe(self._connections.signed_in, self, name)

    def drop(self) -> None:
        """Ends the connection at once."""
        self._connections.closed(self)
        if self._deadline:
            self._deadline.cancel()
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts with the head of a request."""
        super().connection_made(transport)
        self._enter("head")
        self._connections.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        self._lost = True
        self._connections.closed(self)
        if self._deadline:
            self._deadline.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Follows the request from step to step."""
        if self.step == "idle":
            self._enter("head")
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        """Waits for the next request."""
        super().on_response_complete()
        self._unset_keepalive_if_required()  # our own deadline also ends a connection whose client reads nothing
        self._enter("idle")
        self._follow()

    def _follow(self) -> None:
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            step = "body"
        elif state is not h11.IDLE:
            step = "reply"
        else:
            step = "head" if self.conn.trailing_data[0] else self.step
        if step != self.step:
            self._enter(step)

    def _enter(self, step: str) -> None:
        self.step = step
        if self._deadline:
            self._deadline.cancel()
        if not self._lost:
            self._unsent = self.transport.get_write_buffer_size()
            self._deadline = self.loop.call_later(self._connections.seconds[step], self._overdue)

    def _overdue(self) -> None:
        before = self._unsent
        if 0 < self.transport.get_write_buffer_size() < before:
            self._enter(self.step)  # the client is slow, but it reads
        else:
            self.drop()


class _StrictConnection(h11.Connection):
    """Parser that refuses what two servers could read in two ways: h11 accepts a length that is given twice."""

    def next_event(self) -> Any:
        if self.their_state is h11.IDLE:
            head = self.trailing_data[0].partition(b"\r\n\r\n")[0].partition(b"\n\n")[0]
            if len(head) > MAX_HEAD:
                raise h11.RemoteProtocolError("the head of the request is too long")
            headers = [line.partition(b":") for line in head.split(b"\n")[1:]]
            lengths = [value for name, _, value in headers if name.strip().lower() in _LENGTHS]
            if len(lengths) > 1 or any(b"," in value for value in lengths):
                raise h11.RemoteProtocolError("more than one length of the body")
        return super().next_event()


class PageServer(Server):
    """Server whose loop logs its errors in one line each, without the traces that could fill a disk."""

    def __init__(self, config: Config, connections: Connections) -> None:
        super().__init__(config)
        self._connections = connections
        self._again = 0.0

    async def startup(self, sockets: Any = None) -> None:
        """Starts to listen."""
        asyncio.get_running_loop().set_exception_handler(self._loop_error)
        await super().startup(sockets)

    def _loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        logger.error("%s (%s)", context["message"].partition("\n")[0], error.__class__.__name__ if error else "")
        # The loop tries to accept a connection many times before it waits a second.
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE) and loop.time() > self._again:
            self._again = loop.time() + 0.5
            self._connections.make_room()


def _is_near(address: str) -> bool:
    """Checks for an address of this machine, which a proxy or a tunnel also has."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return True
