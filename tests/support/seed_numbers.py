"""The numbers that a seed stands for, which must stay the same in every version."""

import hashlib
from typing import Any


def number(*parts: Any, bits: int = 64) -> int:
    """The first bits of SHA-256 over the parts, little-endian."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> (64 - bits)
