"""Addresses on which our servers listen."""

import ipaddress
import socket
import threading
import time
from typing import Any

from shfcas.utils.errors import UserError

START_SECONDS = 30.0


def reached_from_here_alone(host: str) -> bool:
    """Checks that only this machine can reach an address on which a server listens.

    This differs from `shfcas.utils.http.is_loopback`, which is about addresses to connect to: a server that listens on
    0.0.0.0 is reached from everywhere.

    Raises:
        UserError: the name cannot be resolved.
    """
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:  # UnicodeError: a malformed name such as a..b
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"host: expected an address of this machine, got {host!r} ({reason})") from error
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses)


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that holds the address, so that a taken port is noticed before any work.

    Args:
        host: an address of this machine.
        port: the port, 0 for any free one.

    Raises:
        UserError: the address cannot be listened on.
    """
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"host: expected an address of this machine, got {host!r} ({reason})") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the same port right after a restart
        listener.bind(place)
    except OSError as error:
        listener.close()
        raise UserError(
            f"port: cannot listen at port {port} of {host} ({error.strerror}); choose another, or 0 for any free one"
        ) from error
    return listener


def wait_until_started(server: Any, thread: threading.Thread, name: str) -> None:
    """Waits until a server of uvicorn answers.

    Args:
        server: the server.
        thread: the thread in which it runs.
        name: what it is, for the error.

    Raises:
        UserError: it has not started.
    """
    end = time.monotonic() + START_SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > end:
            raise UserError(f"{name} did not start; the log says why")
        time.sleep(0.01)
