"""Cards of models and data sets, as Markdown with metadata: data, seeds, settings, metrics and their intervals."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shfcas.data.messages import completion_text
from shfcas.data.preferences import Preference
from shfcas.evaluation.statistics import mean_with_interval
from shfcas.models.resolve import HUB_ID
from shfcas.utils.files import null_for_nan

Row = Sequence[Any]
PAPER = "[SHF-CAS](https://arxiv.org/abs/2512.09212)"
INTERVALS = (
    "Intervals are 95 % bootstrap intervals over prompts or pairs, of one run with one seed. "
    "They do not include how much results differ between seeds."
)


def metric(name: str, value: Mapping[str, Any] | float | None, count: int | None = None) -> Row:
    """Returns a row of the table of metrics: a number, or a mean with `low`, `high` and perhaps `count`."""
    if isinstance(value, Mapping):
        interval = f"[{_number(value['low'])}, {_number(value['high'])}]" if "low" in value else ""
        return name, _number(value["mean"]), interval, value.get("count", "" if count is None else count)
    return name, _number(value), "", "" if count is None else count


def model_card(
    name: str,
    about: str,
    *,
    base: str,
    task: str,
    data: Sequence[Row],
    metrics: Sequence[Row],
    seed: int,
    settings: Mapping[str, Any],
    note: str = INTERVALS,
) -> str:
    """Returns the card of a model.

    Args:
        name: title.
        about: what the model is and how it was made, in a sentence or two.
        base: name of the model that it was trained from; named as such in the metadata if it is on the Hub.
        task: the Hub's name of the task, such as text-generation.
        data: name and value of each fact about the data.
        metrics: rows of `metric`.
        seed: of everything random.
        settings: of the training.
        note: how the metrics and their intervals were computed.
    """
    metadata: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": task, "tags": ["shfcas", "rlhf"]}
    if on_hub(base):
        metadata["base_model"] = base.partition("@")[0]
    return _card(metadata, name, about, [("base model", shown(base)), *data], metrics, seed, settings, note)


def preferences_card(
    name: str, preferences: Sequence[Preference], *, about: str, data: Sequence[Row], seed: int | None
) -> str:
    """Returns the card of preferences: who labelled, in which rounds, and how often the longer answer won."""
    sources, rounds = Counter(p.source for p in preferences), Counter(p.round for p in preferences)
    facts: list[Row] = [
        ("pairs", len(preferences)),
        ("prompts", len({p.prompt_id or repr(p.prompt) for p in preferences})),
        ("labels by source", _counts(sources)),
        ("labels by round", _counts(rounds)),
        ("annotators", len({p.annotator for p in preferences if p.annotator})),
    ]
    lengths = [(len(completion_text(p.chosen)), len(completion_text(p.rejected))) for p in preferences]
    longer = [float(chosen > rejected) for chosen, rejected in lengths if chosen != rejected]
    metrics = [metric("the longer answer is preferred", mean_with_interval(longer), len(longer))] if longer else []
    metadata = {
        "task_categories": ["text-generation"],
        "tags": ["shfcas", "preference", "rlhf", "trl"],
        "configs": [{"config_name": "default", "data_files": "preferences.jsonl"}],
    }
    columns = (
        "Each row has `prompt`, `chosen` and `rejected`, as TRL reads them, and where the label is from. Names of "
        "annotators are replaced by numbers."
    )
    note = "The interval is a 95 % bootstrap interval over pairs."
    return _card(metadata, name, f"{about} {columns}", [*facts, *data], metrics, seed, {}, note)


def without_names(preferences: Sequence[Preference]) -> list[dict[str, Any]]:
    """Returns rows of preferences, with a number for the name of each annotator, in order of appearance."""
    names = {name: f"annotator-{i + 1}" for i, name in enumerate(dict.fromkeys(p.annotator for p in preferences))}
    return [{**p.to_row(), "annotator": names[p.annotator] if p.annotator else ""} for p in preferences]


def shown(name: str | None) -> str:
    """Returns a name that may be published: of a local file or folder only the last part, of an address nothing."""
    if name is None:
        return "none"
    if "://" in name:
        return "(an address)"
    return Path(name).name if Path(name).expanduser().exists() or Path(name).is_absolute() else name


def on_hub(name: str) -> bool:
    """Returns whether a model's name can only be one on the Hub."""
    local = Path(name).expanduser().exists() or name.startswith(("pypi:", "/", ".", "~"))
    return "/" in name and not local and HUB_ID.fullmatch(name) is not None


def _card(
    metadata: Mapping[str, Any],
    name: str,
    about: str,
    data: Sequence[Row],
    metrics: Sequence[Row],
    seed: int | None,
    settings: Mapping[str, Any],
    note: str,
) -> str:
    import yaml

    from shfcas import __version__

    parts = [
        f"---\n{yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)}---",
        f"# {name}",
        f"{about} Made with shfcas {__version__}, an implementation of {PAPER}.",
        "## Data",
        _table(("", ""), data),
    ]
    if metrics:
        parts += ["## Metrics", _table(("metric", "value", "95 % interval", "n"), metrics), note]
    if seed is not None:
        parts += ["## Reproduce", f"Seed: {seed}."]
    if settings:
        text = json.dumps(null_for_nan(_published(settings)), indent=1, ensure_ascii=False)
        parts.append(f"<details><summary>Settings</summary>\n\n```json\n{text}\n```\n\n</details>")
    return "\n\n".join(parts) + "\n"


def _published(value: Any) -> Any:
    """Returns settings without the folders of local paths."""
    if isinstance(value, Mapping):
        return {key: _published(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_published(inner) for inner in value]
    return shown(value) if isinstance(value, str) else value


def _table(heads: Row, rows: Sequence[Row]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _counts(counter: Counter[Any]) -> str:
    return ", ".join(f"{key}: {count}" for key, count in sorted(counter.items())) or "none"


def _number(value: Any) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:z.4g}"
