"""Report of a run as one self-contained HTML page: tables, plots, and selected conflicts with their texts."""

from pathlib import Path
from typing import Any

from shfcas.data.candidates import CandidateTable, read_candidates
from shfcas.data.messages import plain_text
from shfcas.data.preferences import read_preferences
from shfcas.feedback import read_queue
from shfcas.report import plots
from shfcas.report.conclusion import conclusion, label_of
from shfcas.report.templates import page_environment
from shfcas.sampling.provenance import describe_generation
from shfcas.utils.errors import UserError
from shfcas.utils.files import existing, read_json, read_numbers, read_object, write_text

SEQUENTIAL = "auto.json"  # of the strategy auto, beside the queue
EXAMPLES = 8


def write_report(run: Path) -> Path:
    """Writes `report.html` into a run directory and returns its path.

    The page shows the completed stages of `shfcas run`, or the arms of `shfcas demo`.

    Raises:
        UserError: the folder is not a run directory, or no stage has been evaluated yet.
    """
    manifest = _read_manifest(run)
    metrics = {name: read_numbers(run / name) for name in _stages(manifest, "metrics.json")}
    if not metrics:
        raise UserError(f"{run}: no stage has been evaluated yet; continue the run first")
    results = read_numbers(run / "results.json") if (run / "results.json").exists() else None
    environment = page_environment()
    done = {name: stage for name, stage in manifest["stages"].items() if stage["state"] == "done"}
    rows = results["policies"] if results else [{"policy": label_of(k), **v} for k, v in metrics.items()]
    page = environment.get_template("page.html.j2").render(
        title=run.name,
        config=manifest["config"],
        versions=manifest["versions"],
        stages=done,
        conclusion=conclusion(run, manifest["config"], list(done), sum(stage["seconds"] for stage in done.values())),
        rows=rows,
        has_gold=any("gold_reward" in row for row in rows),
        results=results,
        labels_figure=(run / "labels.svg").read_text(encoding="utf-8") if results else "",
        compared=[{"policy": label_of(k), **read_json(run / k)} for k in _stages(manifest, "/win_rate.json")],
        opinions=[
            {"name": label_of(name), **read_json(run / name / "arbiter.json")}
            for name in _stages(manifest, "/second_opinion")
        ],
        selections=[_selection(run, name) for name in _stages(manifest, "queue.jsonl")],
        training=plots.training_curves(
            {
                label_of(name): read_numbers(run / name / "history.json")
                for name in _stages(manifest, "/policy")
                if (run / name / "history.json").exists()
            }
        ),
        reward_models=(reward_models := _reward_models(run, manifest)),
        few=plots.CALIBRATION_PAIRS,
        calibration=plots.calibration({name: m["calibration"] for name, m in reward_models.items()}),
        diagnosis=_diagnosis(run),
        groups=plots.accuracy_by_group({label_of(name): m["groups"] for name, m in metrics.items() if "groups" in m}),
    )
    write_text(run / "report.html", page)
    return run / "report.html"


def _read_manifest(run: Path) -> dict[str, Any]:
    """Reads the manifest of a run directory, and checks that it has what a report needs."""
    path = existing(run / "manifest.json")
    manifest = read_object(path)
    stages = manifest.get("stages")
    whole = isinstance(stages, dict) and all(
        isinstance(stage, dict) and {"state", "seconds", "output"} <= stage.keys() for stage in stages.values()
    )
    if not whole or not all(isinstance(manifest.get(key), dict) for key in ("config", "versions")):
        raise UserError(f"{path}: expected stages, config and versions as shfcas run writes them; restore the file")
    return manifest


def _diagnosis(run: Path) -> dict[str, Any] | None:
    """Diagnoses whether conflict finds errors, if gold rewards of the base policy's held-out answers are known."""
    from shfcas.report.diagnosis import diagnose_table

    answers = run / "round-0" / "evaluation.parquet"
    return diagnose_table(read_candidates(answers)) if answers.exists() else None


def _stages(manifest: dict[str, Any], suffix: str) -> list[str]:
    return [name for name, stage in manifest["stages"].items() if name.endswith(suffix) and stage["state"] == "done"]


def _reward_models(run: Path, manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns each trained reward model's metrics on its held-out pairs, if it has any."""
    files = {name: run / name / "training.json" for name in _stages(manifest, "/reward_model")}
    reports = {label_of(name): read_json(file).get("held_out") for name, file in files.items() if file.exists()}
    return {name: report for name, report in reports.items() if report}


def _selection(run: Path, queue_name: str) -> dict[str, Any]:
    """Returns plots and examples of one queue of comparisons."""
    queue = read_queue(run / queue_name)
    folder = (run / queue_name).parent
    conflicts = folder / "conflicts.parquet"
    if not conflicts.exists():  # the arms of the demo share their first candidates
        conflicts = run / "round-1" / "conflicts.parquet"
    table = read_candidates(conflicts)
    labels = (
        {
            (p.prompt_id, frozenset((p.chosen_index, p.rejected_index))): p.chosen_index
            for p in read_preferences(folder / "preferences.jsonl")
        }
        if (folder / "preferences.jsonl").exists()
        else {}
    )
    chosen = {(c.prompt_id, i) for c in queue for i in (c.first, c.second)}
    return {
        "name": label_of(queue_name),
        "comparisons": len(queue),
        "decided": read_object(folder / SEQUENTIAL)["summary"] if (folder / SEQUENTIAL).exists() else "",
        "generation": describe_generation(table),
        "scatter": plots.conflict_scatter(table, chosen),
        "histogram": plots.kendall_histogram(table, {c.prompt_id for c in queue}),
        "examples": _examples(table, queue[:EXAMPLES], labels),
    }


def _examples(table: CandidateTable, queue: list[Any], labels: dict[Any, int]) -> list[dict[str, Any]]:
    rows = {row["prompt_id"]: row for row in table.rows()}
    examples = []
    for c in queue:
        row = rows[c.prompt_id]
        preferred = labels.get((c.prompt_id, frozenset((c.first, c.second))))
        answers = [
            {
                "text": row["completions"][i],
                "pacs": row["pacs"][i],
                "reward": row["rewards"][i],
                "preferred": preferred == i,
            }
            for i in (c.first, c.second)
        ]
        examples.append({"prompt": plain_text(row["prompt"]), "distance": row["kendall_distance"], "answers": answers})
    return examples
