"""What `shfcas feedback export` and `shfcas feedback import` do."""

from pathlib import Path
from typing import Any

from shfcas.errors import UsageError, UserError
from shfcas.feedback.exchange import ExchangeOptions, export_answers, import_answers
from shfcas.feedback.settings import settings_of_run
from shfcas.feedback.store import STORE, Store


def exchange(config: ExchangeOptions, out: str | None, action: str, run: str = "", *files: str) -> dict[str, Any]:
    """Exchanges a run's answers with another tool.

    Args:
        config: the format and its options.
        out: the file to export to.
        action: `export` or `import`.
        run: the run directory.
        files: what to import.
    """
    if action not in ("export", "import") or not run or (action == "import") != bool(files):
        raise UsageError("expected export RUN --out FILE, or import RUN FILE ...")
    if action == "export" and out is None:
        raise UsageError("missing: out, the file to export to")
    if not Path(run).is_dir():
        raise UserError(f"{run} is no run directory; name the one of the run")
    path = Path(run) / STORE
    if not path.exists() and (action, config.format) != ("import", "jsonl"):
        raise UserError(f"{run} has no {STORE}: nobody was asked anything in it yet")
    settings = settings_of_run(run)
    with Store(path) as store:
        if action == "export":
            return export_answers(store, str(out), config, settings)
        return import_answers(store, files, config, settings)
