"""Configuration of human feedback: overlap, repeats, aggregation, and the page's address."""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from shfcas.utils.config import Options, build, option, read_yaml, unexpected

# Browsers write all other letters in a host name as xn--.
_ADDRESS = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?/?")
_ROOT = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
_HEADER = re.compile(r"[A-Za-z0-9-]+")


@dataclass
class HumanConfig(Options):
    """Feedback from people, through the page or through files."""

    overlap: int = option(1, "annotators per comparison", ge=1, common=True)
    max_overlap: int | None = option(
        None,
        "annotators per comparison where the first ones disagree: one more is asked at a time until more than half "
        "gave the same answer (none: never more than overlap)",
        ge=1,
    )
    repeat_share: float = option(
        0.05, "share of an annotator's answered comparisons that are asked again, once", ge=0, lt=1
    )
    lease_minutes: float = option(
        30.0, "minutes until an unanswered comparison is given to another annotator", volatile=True, gt=0
    )
    aggregation: str = option(
        "majority",
        "how several answers become one: by majority; weighted by each annotator's agreement with the others; or by "
        "the model of Dawid and Skene (1979), with each annotator's error rates",
        ("majority", "weighted", "dawid_skene"),
    )
    exclude_informed: bool = option(
        False, "leave out changes of an answer after its annotator looked at why it was asked; the answer before counts"
    )
    known_answers: str | None = option(
        None,
        "preferences whose better answer is known, asked in between to measure annotators (none: no such questions)",
        volatile=True,
    )
    known_share: float = option(0.05, "share of the questions with known answers", volatile=True, ge=0, lt=1)
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
    root_path: str | None = option(
        None, "path of the page behind a proxy, such as /labels; the proxy may strip it or not (none: /)", volatile=True
    )
    allow_public: bool = option(False, "allow a host that other machines reach, without TLS", volatile=True)
    user_header: str | None = option(
        None,
        "header with the name of the signed-in annotator, set by a proxy for single sign-on (none: sign-in links only)",
        volatile=True,
    )
    user_header_from: list[str] = option(
        list, "addresses of the proxies whose user_header is trusted, comma-separated", volatile=True
    )

    def check(self) -> None:
        """Checks the order of the margins, the overlaps, and the page's address and proxy."""
        if self.slightly > self.clearly:
            raise unexpected("slightly", f"at most clearly ({self.clearly})", self.slightly)
        if self.address is not None and not _ADDRESS.fullmatch(self.address):
            example = "use the form https://labels.example.org"
            raise unexpected(
                "address", "http:// or https:// and a name without a path, which is root_path", self.address, example
            )
        if self.max_overlap is not None and not 2 <= self.overlap <= self.max_overlap:
            raise unexpected(
                "max_overlap", f"at least overlap ({self.overlap}), which must be at least 2", self.max_overlap
            )
        if self.root_path and not _ROOT.fullmatch(self.root_path):
            raise unexpected("root_path", "a path without a / at its end", self.root_path, "use the form /labels")
        if (self.user_header is None) != (not self.user_header_from):
            raise unexpected("user_header_from", "addresses together with user_header", self.user_header_from)
        if self.user_header is not None and not _HEADER.fullmatch(self.user_header):
            raise unexpected("user_header", "a header's name", self.user_header, "use the form X-Remote-User")
        for address in self.user_header_from:
            try:
                ip_address(address)
            except ValueError:
                raise unexpected("user_header_from", "numeric addresses", address, "such as 127.0.0.1") from None

    @property
    def root(self) -> str:
        """Path of the page behind a proxy, empty without one."""
        return self.root_path or ""

    def missing(self, people: int, leading: int) -> int:
        """Returns how many more annotators a comparison needs now.

        Args:
            people: number of annotators who answered it.
            leading: number of those who gave the most frequent answer.
        """
        if people < self.overlap:
            return self.overlap - people
        return int(people < (self.max_overlap or 0) and 2 * leading <= people)


def settings_of_run(folder: str | Path, **over: Any) -> HumanConfig:
    """Returns the settings in the run's configuration (or the defaults if it has none), overridden by `over`."""
    file = Path(folder) / "config.yaml"
    values = (read_yaml(file).get("human") or {}) if file.exists() else {}
    return build(HumanConfig, {**values, **over}, "human.")
