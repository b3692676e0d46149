"""Seeds: every stage and every answer derives its own seed from the run's seed."""

import hashlib


def derive_seed(*parts: object, bits: int = 31) -> int:
    """Derives a seed from parts such as the run's seed and the name of a stage; different parts, different seeds.

    >>> derive_seed(0, "sampling") == derive_seed(0, "sampling")
    True
    >>> derive_seed(0, "sampling") == derive_seed(1, "sampling")
    False
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> (64 - bits)
