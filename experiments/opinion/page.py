"""Write the tables of docs/evidence.md from those in results/opinion/: `python -m experiments.opinion.page`.

Each table of the page is between `<!-- table NAME -->` and `<!-- end -->`. Everything else is written by hand.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.opinion.bench import LABEL_FREE, STRATEGIES
from experiments.opinion.figure import read
from experiments.opinion.grid import CONTRASTS, PRIMARY, RESULTS, SCORES, TABLES
from experiments.opinion.predict import OVER, RULES
from experiments.opinion.tasks import TASKS, WORDINGS
from experiments.page import MARK
from shfcas.compare.tables import markdown
from shfcas.utils.files import read_json, write_text

PAGE = Path(__file__).parents[2] / "docs" / "evidence.md"
Row = dict[str, str]
FREE = {
    "nothing": "proxy as it is",
    "reward_alone": "its own soft labels",
    "equal_trust": "second opinion, equal trust",
    "policy_alone": "policy alone",
}
ASKED = {"random": "random", "shf_cas": "SHF-CAS", "half": "half random, half SHF-CAS"}
USED = {"labels": "as pairs", "arbitrate": "as arbiters"}
BIASES = {"inverted": "biased", "none": "sound"}
SPENDS = {"always": "always spend", "never": "never spend"}


def tasks(name: str) -> list[str]:
    """Return the tasks of a table, in the order of the plan."""
    present = {row["task"] for row in read(name)}
    return [task for task in TASKS if task in present]


def mean(row: Row, digits: int = 3, sign: bool = False) -> str:
    """Return the mean of a row with its interval."""
    form = f"{'+' if sign else ''}.{digits}f"
    middle, low, high = (format(float(row[name]), form) for name in ("mean", "low", "high"))
    return f"{middle} [{low}, {high}]"


def interval(found: Mapping[str, float], digits: int = 3) -> str:
    """Return a difference with its interval."""
    return f"{found['mean']:+.{digits}f} [{found['low']:+.{digits}f}, {found['high']:+.{digits}f}]"


def one(name: str, **values: Any) -> Row | None:
    """Return the row of a table with these values; None if the task lacks it."""
    rows = read(name, **values)
    return rows[0] if rows else None


def scores() -> Iterator[Row]:
    """Yield a row per task and policy score: what it knows, and what its conflicts find, for biased proxies."""
    for task in tasks("scores"):
        for score in SCORES[: SCORES.index(CONTRASTS[-1]) + 1]:
            row = {"task": task, "score": wording(task, score)}
            names = {
                "policy_knows": "correlation with gold",
                "finds_errors": "finds misordered prompts",
                "finds_blind": "finds blind prompts",
                "finds_answers": "finds misjudged answers",
            }
            for name, words in names.items():
                found = one("scores", task=task, bias="inverted", score=score, measure=name)
                row[words] = mean(found, 2) if found else ""
            yield row


def wording(task: str, score: str) -> str:
    """Return a score's name, and for a contrast its instructions."""
    if score not in CONTRASTS:
        return f"`{score}`"
    principle = WORDINGS[task][CONTRASTS.index(score)]
    return f"contrast: {principle.good} / {principle.bad}"


def proxies() -> Iterator[Row]:
    """Yield a row per task and bias: how good the proxies are before any label."""
    for task in tasks("scores"):
        for bias in dict.fromkeys(row["bias"] for row in read("scores", task=task)):
            row = {"task": task, "bias": bias}
            for name, words in {"proxy_sound": "sound groups", "proxy_blind": "blind groups"}.items():
                found = one("scores", task=task, bias=bias, score="logprob", measure=name)
                row[words] = mean(found, 3) if found else ""
            yield row


def arms(bias: str) -> Iterator[Row]:
    """Yield a row per arm: held-out accuracy in each task at 8, 24 and 40 comparisons."""
    here = tasks("labels")
    for arm in LABEL_FREE:
        row = {"labels": "none", "use": FREE[arm], "comparisons": "0"}
        yield row | {task: cell(task, bias, "", arm, 0) for task in here}
    for strategy in STRATEGIES:
        for how in USED:
            for budget in (8, 24, 40):
                row = {"labels": ASKED[strategy], "use": USED[how], "comparisons": str(budget)}
                yield row | {task: cell(task, bias, strategy, how, budget) for task in here}


def cell(task: str, bias: str, strategy: str, how: str, budget: int, measure: str = "accuracy") -> str:
    """Return a measure of one arm with the primary contrast."""
    values = {"strategy": strategy, "how": how, "budget": budget, "measure": measure}
    found = one("labels", task=task, bias=bias, score=PRIMARY, **values)
    return mean(found) if found else ""


def best_of_n() -> Iterator[Row]:
    """Yield a row per arm: gold of the best of all answers, for biased proxies, at 24 comparisons."""
    here = tasks("labels")
    rows = [("none", FREE[arm], "", arm, 0) for arm in LABEL_FREE]
    rows += [(ASKED[s], USED[how], s, how, 24) for s in STRATEGIES for how in USED]
    for labels, use, strategy, how, budget in rows:
        found = {task: cell(task, "inverted", strategy, how, budget, "best_of_n") for task in here}
        yield {"labels": labels, "use": use, **found}


def h1(found: Mapping[str, Any]) -> Iterator[Row]:
    """Yield a row per task: what the contrast's conflicts find more than those of the log-probability."""
    for task, of in found["tasks"].items():
        areas = {
            name: f"{of['auroc'][score]['mean']:.2f}" for name, score in (("log", "logprob"), ("contrast", PRIMARY))
        }
        yield {
            "task": task,
            "log-probability": areas["log"],
            "contrast": areas["contrast"],
            "difference over prompts": interval(of["gain"]),
            "the same for blind prompts": interval(of["gain_blind"]),
        }


def h2(found: Mapping[str, Any]) -> Iterator[Row]:
    """Yield a row per task: what the second opinion gains or costs without labels."""
    for task, of in found["tasks"].items():
        yield {"task": task, "biased proxy": interval(of["inverted"]), "sound proxy": interval(of["none"])}


def h3(found: Mapping[str, Any]) -> Iterator[Row]:
    """Yield a row per task and strategy: against twice as many random labels, and against every arm without."""
    for task, strategies in found["tasks"].items():
        for strategy, of in strategies.items():
            free = {f"over: {FREE[arm]}": interval(value) for arm, value in of["over_label_free"].items()}
            yield {"task": task, "labels": ASKED[strategy], "over twice as many random": interval(of["twice"]), **free}


def h4(found: Mapping[str, Any]) -> Iterator[Row]:
    """Yield a row per strategy: how labels as arbiters compare with random labels as pairs over all settings."""
    for strategy in STRATEGIES:
        yield {
            "labels as arbiters": ASKED[strategy],
            "mean difference": f"{found['mean'][strategy]:+.3f}",
            "where the score is noise": f"{found['noise'][strategy]:+.3f}",
            "settings": str(found["settings"]),
            "worse by more than a point": str(found["worse"][strategy]),
            "cannot exclude a point": str(found["not_excluded"][strategy]),
        }


def h6() -> Iterator[Row]:
    """Yield a row per gain and rule: how often the rule was right about spending labels."""
    for over, words in OVER.items():
        for rule in RULES:
            of_all, clear = (one("predict", over=over, rule=rule, of=of) for of in ("all", "clear"))
            assert of_all and clear
            yield {
                "gain over": words,
                "rule": SPENDS.get(rule, f"`{rule}`"),
                "spends": f"{float(of_all['spends']):.2f}",
                "settings with a gain": f"{of_all['positive']} of {of_all['settings']}",
                "right": mean(of_all, 2),
                "right where the gain is clear": f"{mean(clear, 2)}, {clear['settings']} settings",
            }


def clean() -> Iterator[Row]:
    """Yield a row per task, bias and score: three ways to use 24 labels on conflicts, and what the third left out."""
    for key in dict.fromkeys((row["task"], row["bias"], row["score"]) for row in read("clean")):
        values = dict(zip(("task", "bias", "score"), key, strict=True))

        def found(arm: str, measure: str = "accuracy", values: Row = values) -> str:
            asked = {"strategy": "", "budget": 0} if arm == "nothing" else {"strategy": "shf_cas", "budget": 24}
            row = one("clean", arm=arm, measure=measure, **asked, **values)
            if row is None:
                return ""
            return mean(row) if measure == "accuracy" else f"{float(row['mean']):.2f}"

        yield {
            **values,
            "score": "contrast" if key[2] == PRIMARY else f"`{key[2]}`",
            "proxy as it is": found("nothing"),
            "as pairs": found("pairs"),
            "as arbiters": found("arbitrate"),
            "original pairs cleaned": found("clean"),
            "left out": found("clean", "left_out"),
            "of them wrong": found("clean", "wrong"),
        }


def again(found: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Row]:
    """Yield a row per task and claim of the replication: the value on the first answers, and on new ones."""
    of = {
        "H1: contrast over log-probability, AUROC": lambda r, t: r["H1"]["tasks"][t]["gain"],
        "H2: second opinion, biased proxy": lambda r, t: r["H2"]["tasks"][t]["inverted"],
        "H2: second opinion, sound proxy": lambda r, t: r["H2"]["tasks"][t]["none"],
        "H3: SHF-CAS over twice as many random": lambda r, t: r["H3"]["tasks"][t]["shf_cas"]["twice"],
        "H3: SHF-CAS over the second opinion": lambda r, t: r["H3"]["tasks"][t]["shf_cas"]["over_label_free"][
            "equal_trust"
        ],
    }
    for task in new["H1"]["tasks"]:
        for claim, value in of.items():
            yield {
                "task": task,
                "claim": claim,
                "first answers": interval(value(found, task)),
                "new answers": interval(value(new, task)),
            }


def about() -> Iterator[Row]:
    """Yield a row per table: the command and the commit that made it."""
    for name in (*TABLES, "predict", "clean"):
        path = RESULTS / f"{name}_about.json"
        if path.exists():
            entry = read_json(path)
            yield {
                "table": f"`opinion/{name}.csv`",
                "command": f"`{entry['command']}`",
                "code": entry["commit"],
                "machine": entry["machine"],
            }


def tables() -> dict[str, list[Row]]:
    """Return all tables of the page by name."""
    verdicts = read_json(RESULTS / "verdicts.json")
    found: dict[str, Iterator[Row]] = {
        "scores": scores(),
        "proxies": proxies(),
        "best_of_n": best_of_n(),
        "about": about(),
        **{f"arms-{name}": arms(bias) for bias, name in BIASES.items()},
        "h1": h1(verdicts["H1"]),
        "h2": h2(verdicts["H2"]),
        "h3": h3(verdicts["H3"]),
        "h4": h4(verdicts["H4"]),
        "h6": h6(),
        "clean": clean(),
        "replication": again(verdicts, read_json(RESULTS / "replication.json")),
    }
    return {name: list(rows) for name, rows in found.items()}


def page(text: str) -> str:
    """Return the page with its tables written again."""
    found = tables()
    return MARK.sub(lambda match: f"{match[1]}\n{markdown(found[match[2]], marked_up=True)}\n\n{match[3]}", text)


if __name__ == "__main__":
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8")))
