"""Seeds: one number for a run, from which every stage and every answer derives its own."""

import hashlib


def derive_seed(*parts: object, bits: int = 31) -> int:
    """A seed for one part of a run, such as the run's seed and the part's name; different for different parts.

    >>> derive_seed(0, "sampling") == derive_seed(0, "sampling")
    True
    >>> derive_seed(0, "sampling") == derive_seed(1, "sampling")
    False
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> (64 - bits)
