"""Configuration of human feedback: overlap, repeats, aggregation, and the page's address."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.utils.config import build, option, read_yaml
from shfcas.utils.errors import UsageError

# No path: the page requests /static and /api. Browsers write all other letters in a host name as xn--.
_ADDRESS = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?/?")


@dataclass
class HumanConfig:
    """Feedback from people, through the page or through files."""

    overlap: int = option(1, "how many people answer each comparison", common=True)
    repeat_share: float = option(0.05, "share of a person's answered comparisons that are asked again, once")
    lease_minutes: float = option(
        30.0, "a comparison that was handed out and not answered goes to others after this", volatile=True
    )
    aggregation: str = option(
        "majority",
        "several answers become one by majority, or weighted by how well each agrees",
        ("majority", "weighted"),
    )
    slightly: float = option(0.5, "margin of an answer that is slightly better")
    clearly: float = option(1.0, "margin of an answer that is clearly better")
    guidelines: str | None = option(
        None, "a Markdown file that the page shows beside the comparisons", volatile=True, common=True
    )
    host: str = option("127.0.0.1", "the address that the page listens at", volatile=True)
    port: int = option(8900, "the port of the page (0: any free one)", volatile=True)
    address: str | None = option(
        None,
        "the address by which people reach the page, where a proxy stands before it: https://labels.example.org",
        volatile=True,
    )
    allow_public: bool = option(
        False, "let the page listen at an address that other machines reach, without TLS", volatile=True
    )

    def __post_init__(self) -> None:
        if self.overlap < 1:
            raise UsageError(f"overlap: expected at least 1 person, got {self.overlap}")
        if not 0 <= self.repeat_share < 1:
            raise UsageError(f"repeat_share: expected a share from 0 to below 1, got {self.repeat_share}")
        if self.lease_minutes <= 0:
            raise UsageError(f"lease_minutes: expected more than 0, got {self.lease_minutes}")
        if not 0 <= self.slightly <= self.clearly:
            raise UsageError(
                f"slightly, clearly: expected 0 <= slightly <= clearly, got {self.slightly}, {self.clearly}"
            )
        if not 0 <= self.port < 65536:
            raise UsageError(f"port: expected 0 to 65535, got {self.port}")
        if self.address is not None and not _ADDRESS.fullmatch(self.address):
            raise UsageError(
                "address: expected http:// or https:// and a name without a path, as in https://labels.example.org, "
                f"got {self.address!r}"
            )


def settings_of_run(folder: str | Path, **over: Any) -> HumanConfig:
    """Returns the settings in the run's configuration (or the defaults if it has none), overridden by `over`."""
    file = Path(folder) / "config.yaml"
    values = (read_yaml(file).get("human") or {}) if file.exists() else {}
    return build(HumanConfig, {**values, **over}, "human.")
