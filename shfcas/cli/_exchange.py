"""`shfcas feedback export` and `import`: labels of a run to and from files of other tools."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.feedback.annotation.config import settings_of_run
from shfcas.feedback.annotation.store import STORE, Store
from shfcas.feedback.exchange import ExchangeBaseConfig, export_answers, import_answers
from shfcas.utils.config import option
from shfcas.utils.errors import UsageError, UserError

INPUTS, INPUTS_HELP = "action", "export RUN, or import RUN FILE ...; without it, the comparisons are labelled"


@dataclass
class ExchangeConfig(ExchangeBaseConfig):
    """Options of `shfcas feedback` for export and import."""

    action: list[str] = option(list, "export RUN, or import RUN FILE ...")
    out: str | None = option(None, "the file to export to", common=True)


def exchange(config: ExchangeConfig) -> dict[str, Any]:
    """Exports or imports, as the first word says."""
    action, run, *files = [*config.action, "", ""][: max(2, len(config.action))]
    if action not in ("export", "import") or not run or (action == "import") != bool(files):
        raise UsageError(
            f"action: expected export RUN --out FILE, or import RUN FILE ..., got {' '.join(config.action)}"
        )
    if action == "export" and config.out is None:
        raise UsageError("missing: out, the file to export to")
    if not Path(run).is_dir():
        raise UserError(f"{run} is not a run directory; name one")
    path = Path(run) / STORE
    if not path.exists() and (action, config.format) != ("import", "jsonl"):
        raise UserError(f"{run} has no {STORE}: it has no queue for annotators yet")
    settings = settings_of_run(run)
    with Store(path) as store:
        if action == "export":
            return export_answers(store, str(config.out), config, settings)
        return import_answers(store, files, config, settings)
