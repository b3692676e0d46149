"""Result of a check."""

from dataclasses import dataclass, field
from typing import Any

PASS, WARN, FAIL = "pass", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        check: name of the check.
        status: `pass`, `warn` or `fail`.
        message: one sentence about the result.
        remedy: recommended action, if any.
        values: measured numbers.
    """

    check: str
    status: str
    message: str
    remedy: str = ""
    values: dict[str, Any] = field(default_factory=dict)
