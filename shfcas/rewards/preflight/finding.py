"""What a check found."""

from dataclasses import dataclass, field
from typing import Any

PASS, WARN, FAIL = "pass", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: its name.
        status: `pass`, `warn` or `fail`.
        message: one sentence about what was found.
        remedy: what to do about it, where something should be done.
        values: the numbers behind it.
    """

    check: str
    status: str
    message: str
    remedy: str = ""
    values: dict[str, Any] = field(default_factory=dict)
