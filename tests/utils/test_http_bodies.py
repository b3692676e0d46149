"""Bodies of replies that are made to fill memory or time: bombs, endless bodies, other encodings."""

import gzip
import json
import os
import socket
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from shfcas.utils.http_client import GaveUp, Refused
from tests.support.http_cases import GOOD, Serve, get
from tests.support.raw_server import compressed, response, say

pytestmark = pytest.mark.usefixtures("environment")


def test_the_limit_counts_bytes_after_decompression(serve: Serve) -> None:
    bomb = compressed(b" " * 2**26)
    assert len(bomb) < 2**17
    with pytest.raises(Refused, match=r"sent a reply of more than 1,048,576 bytes, which is not read$"):
        get(serve(say(bomb)))
    assert get(serve(say(compressed(b'{"answer": 42}')))) == {"answer": 42}


@pytest.mark.parametrize("excess", [0, 1])
def test_the_limit_is_exact(excess: int, serve: Serve) -> None:
    body = json.dumps("x" * (1000 - 2 + excess)).encode()
    for reply in (response(body), compressed(body)):
        if excess:
            with pytest.raises(Refused, match="more than 1,000 bytes"):
                get(serve(say(reply)), max_reply_bytes=1000)
        else:
            assert get(serve(say(reply)), max_reply_bytes=1000) == "x" * 998


def test_the_limit_counts_bytes_as_sent_too(serve: Serve) -> None:
    """Endless empty blocks of deflate unpack to nothing at all."""
    squeezer, sent = zlib.compressobj(wbits=31), [0]
    start = squeezer.compress(b"") + squeezer.flush(zlib.Z_FULL_FLUSH)
    nothing = squeezer.flush(zlib.Z_FULL_FLUSH) or b"\x00\x00\x00\xff\xff"

    def endless(connection: socket.socket, request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n" + start)
        while True:
            connection.sendall(nothing * 10_000)
            sent[0] += 10_000 * len(nothing)

    assert zlib.decompressobj(wbits=31).decompress(start + nothing * 100) == b""
    with pytest.raises(Refused, match="more than 1,048,576 bytes"):
        get(serve(endless))
    assert sent[0] < 2**25  # what the sockets hold


@pytest.mark.parametrize(
    ("encoding", "body", "message"),
    [
        ("gzip, gzip", gzip.compress(gzip.compress(b"{}")), "its encoding is gzip, gzip; expected gzip"),
        ("br", b"{}", "its encoding is br; expected gzip"),
        ("deflate", zlib.compress(b"{}"), "its encoding is deflate; expected gzip"),
        ("gzip", b"{}", "incorrect header check"),
        ("gzip", gzip.compress(b"{}" * 100)[:-9], "its compressed data is cut off"),
    ],
    ids=["twice", "unknown", "deflate", "not compressed", "cut off"],  # the bytes hold the time
)
def test_other_encodings_are_not_unpacked(encoding: str, body: bytes, message: str, serve: Serve) -> None:
    server = serve(say(response(body, Content_Encoding=encoding)))
    with pytest.raises(GaveUp, match=rf"the reply cannot be read \(.*{message}\), after 1 attempt$"):
        get(server)
    assert b"accept-encoding: gzip\r\n" in server.requests[0].lower()


def test_empty_and_plain_bodies_of_any_name(serve: Serve) -> None:
    assert get(serve(say(response({"answer": 42}, Content_Encoding="identity")))) == {"answer": 42}
    assert get(serve(say(response(gzip.compress(b"42"), Content_Encoding=" GZIP ")))) == 42
    with pytest.raises(GaveUp, match="the reply is empty"):
        get(serve(say(response(b"", Content_Encoding="gzip"))))


PROGRAM = """
import resource, sys
from shfcas.feedback.judge.client import LARGEST_REPLY
from shfcas.utils.http import Endpoint
from shfcas.utils.http_client import Client, RequestError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1024)

client = Client(Endpoint(sys.argv[1], "base_url", "SOME_KEY"), timeout=60, max_retries=0, retry_wait=0,
                concurrency=4, max_reply_bytes=LARGEST_REPLY)
assert client.request("GET", sys.argv[1] + "/good") == {"answer": 42}
before = peak()
for path in sys.argv[2:]:
    try:
        client.request("GET", sys.argv[1] + path)
    except RequestError as error:
        print(path, str(error).partition(" ")[2])
print(peak() - before)
"""


@pytest.mark.system
def test_memory_stays_near_the_limit_of_a_judges_reply(serve: Serve) -> None:
    """Bombs of 400 MB: one that is a reply, one that is an error, and JSON that is large only as objects."""
    bomb = gzip.compress(b" " * 400_000_000, 1)
    fits = b"[" + b"[]," * 600_000 + b"[]]"
    replies = {
        b"/good": GOOD,
        b"/bomb": response(bomb, Content_Encoding="gzip"),
        b"/error": response(bomb, "500 X", Content_Encoding="gzip"),
        b"/objects": response(gzip.compress(fits), Content_Encoding="gzip"),
        b"/plain": response(b" " * 50_000_000),
    }

    def talk(connection: socket.socket, request: bytes) -> None:
        (path,) = (path for path in replies if path + b" " in request.split(b"\r\n")[0])
        connection.sendall(replies[path].replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))

    server = serve(talk)
    paths = [path.decode() for path in replies if path != b"/good"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", PROGRAM, server.url, *paths]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    *failures, growth = done.stdout.splitlines()
    assert [line.split()[0] for line in failures] == ["/bomb", "/error", "/plain"]
    assert "more than 2,097,152 bytes" in failures[0] and "status 500" in failures[1]
    assert len(fits) < 2**21 and float(growth) < 100  # MB
