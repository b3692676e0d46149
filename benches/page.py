"""Generator of docs/performance.md, and its plots, from the lines of JSON in benches/results.

python -m benches.page
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benches.bench import cell, shown_columns
from benches.targets import Results, read, rows

DOCS = Path(__file__).resolve().parents[1] / "docs"
RESULTS = Path(__file__).parent / "results"
TITLES = {
    "kendall": "Counting pairs",
    "pacs": "PACS and conflict scores",
    "matrix": "Matrices of tau",
    "logprobs": "Log-probabilities of sequences",
    "training": "Sampling, scoring and training",
    "table": "Tables larger than memory",
    "annotate": "Annotation server",
}
HEADINGS = {
    "data": "Answers, log-probabilities and rewards of a round, compared with one answer at a time",
    "policy step": "Answers, rewards and one pass of updates of a LoRA adapter, compared with TRL's RLOO",
    "update": "Loss and gradients of a LoRA adapter on the same tokens, compared with TRL's GRPO",
    "parts of a policy step": "Parts of the time of a policy step",
    "score": "`shfcas score`, compared with pyarrow alone; MB is the peak of the whole process",
    "at once": "50 annotators without pauses; an answer counts when it is on disk",
    "in turn": "50 annotators with a second between answers",
    "locked": "the same, while another process holds the lock of the database for 10 s",
    "one row": "One long row; MB is the peak memory beyond the arguments",
    "one call": "A call from Python on one row of eight",
    "beside": "The op compared with itself: time per row, as a multiple of the time of another kind of row",
}


def page(results: Results) -> str:
    """Returns the page: the handwritten part, then the measurements."""
    parts = [(DOCS / "_make" / "performance.md").read_text(encoding="utf-8")]
    if not results:
        return parts[0] + "\nNothing measured yet: `make bench-results`.\n"
    first = next(iter(results.values()))["machine"]
    parts += [_machine(first), "## Targets\n", _targets(results), _plots()]
    for bench, title in TITLES.items():
        if bench in results:
            machine = results[bench]["machine"]
            other = [] if machine["processor"] == first["processor"] else [_machine(machine)]
            parts += [f"## {title}\n", *other, *_tables(results[bench]["cases"])]
    return "\n".join(parts)


def _machine(machine: dict[str, Any]) -> str:
    rivals = ", ".join(f"{name} {version}" for name, version in machine["rivals"].items() if version)
    processor = f"{machine['processor']}, {machine['cores']} cores, {machine['instructions']}"
    short = " These are short timings (`--quick`), only for a first look." if machine["quick"] else ""
    return (
        f"Measured on {machine['gpu'] or processor}; torch {machine['torch']}, numpy {machine['numpy']}, "
        f"Python {machine['python']}; {rivals}.{short}\n"
    )


def _targets(results: Results) -> str:
    lines = [("", "target", "measured", ""), *rows(results)]
    counted = sum(line[3] == "reached" for line in lines)
    text = (
        "One thread and float32 unless stated otherwise; with several cases, the worst one counts. "
        f"{counted} of {len(lines) - 1} are reached.\n\n"
    )
    return text + _table([list(line) for line in lines])


def _plots() -> str:
    return (
        "## Plots\n\n"
        "One thread, float32.\n\n"
        "![Rows per second against N, by op and rival](plots/rows.svg)\n\n"
        "![Speed as a multiple of the best rival's, against N](plots/ratio.svg)\n"
    )


def _tables(cases: list[dict[str, Any]]) -> list[str]:
    """Returns a table for each kind of case, in the order of the bench."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        kinds.setdefault("beside" if "beside" in case else case["case"], []).append(case)
    parts = []
    for kind, group in kinds.items():
        columns = shown_columns(group)
        lines = [columns, *([cell(case.get(name, "")) for name in columns] for case in group)]
        parts += [f"### {HEADINGS.get(kind, kind)}\n", _table(lines)]
    return parts


def _table(lines: list[list[str]]) -> str:
    """Formats a Markdown table; the first column is text, aligned left."""
    rule = [":--", *["--:"] * (len(lines[0]) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]]) + "\n"


def main() -> None:
    results = read(RESULTS)
    if results:
        from benches.plots import ratio_plot, rows_plot

        (DOCS / "plots").mkdir(exist_ok=True)
        (DOCS / "plots" / "rows.svg").write_text(rows_plot(results), encoding="utf-8")
        (DOCS / "plots" / "ratio.svg").write_text(ratio_plot(results), encoding="utf-8")
    (DOCS / "performance.md").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
