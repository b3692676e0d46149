"""Bodies of HTTP replies, read in bounded memory: a limit holds for the bytes as they are sent and as they unpack."""

import zlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import httpx2

ENCODINGS = ("gzip",)  # asked for; the only ones that are unpacked
GZIP = 16 + zlib.MAX_WBITS


class BrokenBody(Exception):
    """A body in an encoding that was not asked for, or that does not unpack."""


class Body(NamedTuple):
    """The body of a reply.

    Attributes:
        content: the bytes after decompression, at most as many as the limit.
        whole: whether that is all of it.
    """

    content: bytes
    whole: bool


async def read_body(response: "httpx2.Response", limit: int) -> Body:
    """Reads a body until it is complete or larger than the limit.

    No piece is unpacked beyond the limit. So memory stays near the limit even if a few bytes unpack to gigabytes, and
    reading ends even if endless bytes unpack to nothing.

    Args:
        response: a reply whose headers were read.
        limit: maximum number of bytes, both as sent and after decompression.

    Raises:
        BrokenBody: it cannot be unpacked.
    """
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", *ENCODINGS):
        raise BrokenBody(f"its encoding is {encoding}; expected {' or '.join(ENCODINGS)}")
    unpacker = zlib.decompressobj(wbits=GZIP) if encoding in ENCODINGS else None
    content, sent = bytearray(), 0
    async for piece in response.aiter_raw():
        sent += len(piece)
        try:
            content += unpacker.decompress(piece, limit + 1 - len(content)) if unpacker else piece
        except zlib.error as error:
            raise BrokenBody(str(error)) from None
        if max(sent, len(content)) > limit:
            return Body(bytes(content[:limit]), False)
    if unpacker and sent and not unpacker.eof:
        raise BrokenBody("its compressed data is cut off")
    return Body(bytes(content), True)
