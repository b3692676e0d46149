"""Serve the page where people label the comparisons of a run or of a queue file, until Ctrl-C.

Prints a sign-in link for each annotator. Each label is saved in the run directory (feedback.sqlite) as soon as it is
given. Without a run, --queue queue.jsonl --input conflicts.parquet serves a file of shfcas select; the labels are then
in the folder --output, for shfcas feedback. If the run or folder is served already, the command adds the new annotators
and prints the links of that page; flags that configure the server are refused.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.feedback.annotation.config import HumanConfig, settings_of_run
from shfcas.feedback.folder import FOLDER, add_queue_file, has_queue, save_settings
from shfcas.feedback.web.annotators import add_annotators
from shfcas.feedback.web.server import running, serve, sign_in_links
from shfcas.utils.config import Options, option, read_yaml
from shfcas.utils.errors import UsageError, UserError
from shfcas.utils.files import existing

INPUTS, INPUTS_HELP = "run", "the run directory"
OVERLAPS = ("overlap", "max_overlap")
SERVING = (
    *("queue", "host", "port", "address", "root_path", "user_header", "user_header_from", "allow_public"),
    *("guidelines", *OVERLAPS, "repeat_share", "known_answers"),
)
SETTINGS = tuple(name for name in SERVING if name not in ("queue", "allow_public"))


@dataclass
class Config(Options):
    """`shfcas annotate`."""

    run: list[str] = option(list, "run directory")
    annotators: list[str] = option(list, "names of annotators, comma-separated; each new one gets a link", common=True)
    observers: list[str] = option(list, "names of people who only see the dashboard, comma-separated")
    queue: str | None = option(
        None,
        "queue of the run to serve (none: the newest, also when it is added later); without a run, a queue file",
        common=True,
    )
    input: str | None = option(
        None, "without a run: candidate table that the queue was selected from (none: a run)", common=True
    )
    output: str | None = option(None, f"without a run: folder for the labels (none: {FOLDER})", common=True)
    host: str | None = option(None, "address that the page listens on (none: the run's, or 127.0.0.1)")
    port: int | None = option(None, "port of the page, 0 for any free port (none: the run's, or 8900)", ge=0, le=65535)
    address: str | None = option(
        None, "address of the page behind a proxy (none: the run's, or host and port)", common=True
    )
    root_path: str | None = option(None, "path of the page behind a proxy, such as /labels (none: the run's)")
    user_header: str | None = option(
        None, "header in which a proxy names the signed-in annotator (none: the run's, or sign-in links only)"
    )
    user_header_from: list[str] | None = option(None, "addresses of the proxies that are trusted with it")
    allow_public: bool = option(False, "allow a host that other machines reach, without TLS")
    guidelines: str | None = option(None, "Markdown file that the page shows (none: the run's)", common=True)
    overlap: int | None = option(
        None, "annotators per comparison (none: the run's; a run with feedback human sets its own)", ge=1, common=True
    )
    max_overlap: int | None = option(
        None, "annotators per comparison where the first ones disagree (none: the run's, or never more)", ge=1
    )
    known_answers: str | None = option(
        None, "preferences with known answers, asked in between to measure annotators (none: the run's)"
    )
    repeat_share: float | None = option(
        None, "share of labelled comparisons that are asked again (none: the run's)", ge=0, lt=1
    )


def run(config: Config) -> dict[str, Any] | None:
    """Serves until it is interrupted; if the run is served already, returns the address and the new links."""
    folder, queue = _folder(config)
    settings = settings_of(folder, config)
    address = running(folder)
    given = [name for name in SERVING if getattr(config, name) is not None and getattr(config, name) is not False]
    if not config.run:
        given.remove("queue")  # the page there serves the newest
    if address and given:
        raise UserError(
            f"{', '.join(given)}: cannot change, since {folder} is served already, at {address}; "
            "leave them out, or stop that process first"
        )
    tokens = add_annotators(folder, config.annotators, config.observers)
    if address:
        return {"address": address, "links": sign_in_links(address, tokens)}
    if not config.run:
        save_settings(folder, settings)
    with serve(folder, settings, queue) as page:
        behind = f" (here: port {page.port})" if settings.address else ""
        print(f"serving {folder} at {page.address}{behind}; stop with Ctrl-C; every label is saved")
        print("\n".join(_lines(page.links)), flush=True)
        threading.Event().wait()
    return None


def _folder(config: Config) -> tuple[Path, str | None]:
    """Returns the folder to serve and the queue in it; None is the newest."""
    if config.run:
        if len(config.run) != 1:
            raise UsageError(f"expected one run directory, got {' '.join(config.run)}")
        for name in ("input", "output"):
            if getattr(config, name) is not None:
                raise UsageError(f"{name}: expected only without a run directory; leave one of them out")
        folder = existing(config.run[0])
        if not has_queue(folder):
            raise UserError(
                f"{folder} has no comparisons to label yet; start shfcas run --feedback human, "
                "or give --queue FILE --input TABLE instead of a run directory"
            )
        return folder, config.queue
    missing = [f"--{name}" for name in ("queue", "input") if getattr(config, name) is None]
    if missing:
        raise UsageError(f"expected a run directory, or --queue FILE --input TABLE; missing: {', '.join(missing)}")
    folder = Path(config.output or FOLDER)
    add_queue_file(folder, str(config.queue), str(config.input))
    return folder, None


def settings_of(folder: Path, config: Config) -> HumanConfig:
    """Returns the settings of the run's configuration, overridden by the command line.

    Raises:
        UserError: the run has feedback human and another overlap.
    """
    file = folder / "config.yaml"
    given = {name: getattr(config, name) for name in SETTINGS if getattr(config, name) is not None}
    if file.exists() and _waits(read_yaml(file)):
        for name in OVERLAPS:
            asked = getattr(settings_of_run(folder), name)
            if name in given and given[name] != asked:
                raise UserError(
                    f"{name}: the run waits for {asked} answers to each comparison (human.{name} in {file}), not "
                    f"{given[name]}; leave it out, or start a new run with --human.{name} {given[name]}"
                )
    return settings_of_run(folder, **given, **({"allow_public": True} if config.allow_public else {}))


def _waits(values: dict[str, Any]) -> bool:
    """Tells whether the run with this configuration waits for people."""
    return "human" in (values.get("feedback"), (values.get("evaluation") or {}).get("judge"))


def text(result: dict[str, Any]) -> str:
    """Formats the address and the links of a page that another process serves."""
    return "\n".join([f"served already, at {result['address']}", *_lines(result["links"])])


def _lines(links: dict[str, str]) -> list[str]:
    width = max(map(len, links))
    return [f"  {name:<{width}}  {link}" for name, link in links.items()]
