"""Configuration of human feedback: overlap, repeats, aggregation, and the page's address."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.utils.config import Options, build, option, read_yaml, unexpected

# No path: the page requests /static and /api. Browsers write all other letters in a host name as xn--.
_ADDRESS = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?/?")


@dataclass
class HumanConfig(Options):
    """Feedback from people, through the page or through files."""

    overlap: int = option(1, "annotators per comparison", ge=1, common=True)
    repeat_share: float = option(
        0.05, "share of an annotator's answered comparisons that are asked again, once", ge=0, lt=1
    )
    lease_minutes: float = option(
        30.0, "minutes until an unanswered comparison is given to another annotator", volatile=True, gt=0
    )
    aggregation: str = option(
        "majority",
        "how several answers become one: by majority, or weighted by each annotator's agreement with the others",
        ("majority", "weighted"),
    )
    slightly: float = option(0.5, "margin of an answer that is slightly better", ge=0)
    clearly: float = option(1.0, "margin of an answer that is clearly better", ge=0)
    guidelines: str | None = option(
        None,
        "Markdown file that the page shows beside the comparisons (none: no guidelines)",
        volatile=True,
        common=True,
    )
    host: str = option("127.0.0.1", "address that the page listens on", volatile=True)
    port: int = option(8900, "port of the page (0: any free port)", volatile=True, ge=0, le=65535)
    address: str | None = option(
        None,
        "address of the page behind a proxy, such as https://labels.example.org (none: host and port)",
        volatile=True,
    )
    allow_public: bool = option(False, "allow a host that other machines reach, without TLS", volatile=True)

    def check(self) -> None:
        """Checks the order of the margins, and the page's address."""
        if self.slightly > self.clearly:
            raise unexpected("slightly", f"at most clearly ({self.clearly})", self.slightly)
        if self.address is not None and not _ADDRESS.fullmatch(self.address):
            example = "use the form https://labels.example.org"
            raise unexpected("address", "http:// or https:// and a name without a path", self.address, example)


def settings_of_run(folder: str | Path, **over: Any) -> HumanConfig:
    """Returns the settings in the run's configuration (or the defaults if it has none), overridden by `over`."""
    file = Path(folder) / "config.yaml"
    values = (read_yaml(file).get("human") or {}) if file.exists() else {}
    return build(HumanConfig, {**values, **over}, "human.")
