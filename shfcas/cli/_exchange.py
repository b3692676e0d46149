"""`shfcas feedback export`, `import` and `backup`: labels of a run to and from other files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.feedback.annotation.backup import backup
from shfcas.feedback.annotation.config import settings_of_run
from shfcas.feedback.annotation.store import STORE, Store
from shfcas.feedback.exchange import ExchangeBaseConfig, export_answers, import_answers
from shfcas.utils.config import option
from shfcas.utils.errors import UsageError, UserError

ACTIONS = "export RUN, import RUN FILE ... or backup RUN FILE"
INPUTS, INPUTS_HELP = "action", f"{ACTIONS}; without it, the comparisons are labelled"


@dataclass
class ExchangeConfig(ExchangeBaseConfig):
    """Options of `shfcas feedback` for export and import."""

    action: list[str] = option(list, INPUTS_HELP)
    out: str | None = option(None, "file to export to (none: no export)", common=True)


def exchange(config: ExchangeConfig) -> dict[str, Any]:
    """Exports, imports or backs up, as the first word says."""
    action, run, *files = [*config.action, "", ""][: max(2, len(config.action))]
    count = {"export": len(files) == 0, "import": len(files) > 0, "backup": len(files) == 1}
    if not run or not count.get(action):
        raise UsageError(
            f"action: expected export RUN --out FILE, import RUN FILE ... or backup RUN FILE, "
            f"got {' '.join(config.action)}"
        )
    if action == "export" and config.out is None:
        raise UsageError("missing: out, the file to export to")
    if not Path(run).is_dir():
        raise UserError(f"{run} is not a run directory; name one")
    path = Path(run) / STORE
    if not path.exists() and (action, config.format) != ("import", "jsonl"):
        raise UserError(f"{run} has no {STORE}: it has no queue for annotators yet")
    if action == "backup":
        return {"judgements": backup(path, files[0], config.replace), "output": files[0]}
    settings = settings_of_run(run)
    with Store(path) as store:
        if action == "export":
            return export_answers(store, str(config.out), config, settings)
        return import_answers(store, files, config, settings)
