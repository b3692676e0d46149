"""Write the tables of docs/evidence-paper.md from those in experiments/results/: `python -m experiments.page`.

Each table of the page is between `<!-- table NAME -->` and `<!-- end -->`. Everything else is written by hand.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from experiments.arms import TUNED
from experiments.figure import read
from experiments.grid import BUDGETS, DEFAULTS, SAMPLED
from experiments.policies import BEFORE
from shfcas.compare.tables import markdown
from shfcas.utils.files import read_json, write_text

PAGE = Path(__file__).parents[1] / "docs" / "evidence-paper.md"
ABOUT = Path(__file__).parent / "results" / "about.json"
MARK = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
ACCURACY = "pair_accuracy"
Row = dict[str, str]
OWN = {"sentiment": 99, "safety": 100}  # number of examples for the policies that sampled the answers
FACTS = {
    "pool_prompts": "prompts to ask about",
    "share_of_ties": "share of pairs with equal gold",
    "proxy_accuracy_elsewhere": "proxy's pair accuracy, elsewhere",
    "proxy_accuracy_blind": "proxy's pair accuracy, blind groups",
    "policy_knows": "correlation of the policy's score with gold",
    "kendall_finds_blind": "Kendall distance finds blind prompts (AUROC)",
    "found_kendall_auroc": "Kendall distance finds misordered prompts (AUROC)",
    "found_pacs_auroc": "abs(PACS) finds misjudged answers (AUROC)",
}


def number(text: str, digits: int = 3, sign: bool = False) -> str:
    """Return a cell of a result table, rounded for reading."""
    return f"{float(text):{'+' if sign else ''}.{digits}f}" if text else ""


def gain(row: Row) -> str:
    """Return a paired difference from random with its interval, in bold if it holds after Holm's correction."""
    if not row["vs_random_difference"]:
        return ""
    middle, low, high = (number(row[f"vs_random_{part}"], sign=True) for part in ("difference", "low", "high"))
    return f"**{middle}** [{low}, {high}]" if float(row["vs_random_p_holm"]) < 0.05 else f"{middle} [{low}, {high}]"


def plain_gain(row: Row) -> str:
    """Return a difference without bold, because it was corrected over fewer tests than those of the main tables."""
    return gain(row).replace("**", "")


def chosen(name: str, **values: str) -> list[Row]:
    """Return the rows of a result table with these values."""
    return [row for row in read(name) if all(row[key] == value for key, value in values.items())]


def facts(name: str) -> Iterator[Row]:
    """Yield what is known about each task before any label."""
    for metric, words in FACTS.items():
        row = {"": words}
        for task in DEFAULTS:
            (found,) = chosen(f"{name}_facts", task=task, metric=metric)
            digits = 0 if metric == "pool_prompts" else 3
            row[task] = number(found["mean"], digits)
        yield row


def main_table(name: str, task: str) -> Iterator[Row]:
    """Yield a row per strategy of one task: gains at each budget, and details of the labels at the middle one."""
    strategies = dict.fromkeys(row["strategy"] for row in chosen(name, task=task, metric=ACCURACY))
    for strategy in ["random", *(s for s in strategies if s not in ("random", "none")), "none"]:
        row = {"strategy": f"`{strategy}`"}
        for budget in BUDGETS[task]:
            at = "0" if strategy == "none" else str(budget)
            (found,) = chosen(name, task=task, metric=ACCURACY, strategy=strategy, budget=at)[:1]
            plain = number(found["mean"])
            row[f"{budget} comparisons"] = plain if strategy in ("random", "none") else gain(found)
        at = "0" if strategy == "none" else str(BUDGETS[task][1])
        further = {
            "errors found": "errors_found",
            "about blind groups": "blind_share",
            "labels": "labels",
            "best-of-n gold": "best_of_n_gold",
            "best-of-n words": "best_of_n_words",
        }
        for words, metric in further.items():
            found_rows = chosen(name, task=task, metric=metric, strategy=strategy, budget=at)
            digits = {"labels": 1, "best_of_n_words": 1}.get(metric, 2)
            row[words] = number(found_rows[0]["mean"], digits) if found_rows else ""
        yield row


def varied(name: str, *columns: str) -> Iterator[Row]:
    """Yield a row per setting: the accuracy of random labels, and the gain of each strategy over it."""
    rows = [row for row in read(name) if row["metric"] == ACCURACY]
    strategies = [s for s in dict.fromkeys(row["strategy"] for row in rows) if s not in ("random", "none")]
    for values in dict.fromkeys(tuple(row[c] for c in ("task", *columns)) for row in rows):
        here = [row for row in rows if tuple(row[c] for c in ("task", *columns)) == values]
        found = {row["strategy"]: row for row in here}
        yield {
            **dict(zip(("task", *columns), values, strict=True)),
            "no labels": number(found["none"]["mean"]),
            "random": number(found["random"]["mean"]),
            **{f"`{s}` minus random": gain(found[s]) for s in strategies},
        }


def by_examples() -> Iterator[Row]:
    """Yield the gains with policies that were fine-tuned on few to many examples, and what their scores know."""
    for row in sorted(varied("examples", "policy"), key=lambda row: (SAMPLED.index(row["task"]), examples(row))):
        count, task, policy = examples(row), row.pop("task"), row.pop("policy")
        (fact,) = chosen("examples_facts", task=task, policy=policy, metric="policy_knows")
        known = number(fact["mean"], sign=True)
        yield {"task": task, "examples": str(count), "correlation with gold": known, **row}


def examples(row: Row) -> int:
    """Return the number of examples that the policy of a row was fine-tuned on."""
    _, tuned, count = row["policy"].partition(TUNED)
    return int(count) if tuned else OWN[row["task"]]


def policies() -> Iterator[Row]:
    """Yield the metrics of policies trained on the refined reward models, and their gain over random."""
    rows = read("ppo")
    golds = {name: of_policy(rows, name, "gold_reward") for name in dict.fromkeys(row["strategy"] for row in rows)}
    first = (BEFORE, "none", "random")
    for name in (*first, *(name for name in golds if name not in first)):
        gained = "" if name in (BEFORE, "random") else over_seeds(golds[name] - golds["random"])
        yield {
            "reward model refined with": name if name == BEFORE else f"`{name}`",
            "gold reward": f"{golds[name].mean():.3f}",
            "per seed": ", ".join(f"{gold:.3f}" for gold in golds[name]),
            "minus `random`": gained,
            "win rate": f"{of_policy(rows, name, 'win_rate').mean():.3f}",
            "KL": f"{of_policy(rows, name, 'kl').mean():.2f}",
            "tokens": f"{of_policy(rows, name, 'length').mean():.1f}",
            "reward model's accuracy": f"{of_policy(rows, name, 'pair_accuracy').mean():.3f}",
        }


def of_policy(rows: list[Row], strategy: str, metric: str) -> np.ndarray:
    """Return a metric of the policies of one strategy, one value per seed, in the order of the seeds."""
    return np.array([float(row[metric]) for row in rows if row["strategy"] == strategy])


def over_seeds(differences: np.ndarray) -> str:
    """Return the mean of differences over seeds with Student's 95 % interval, which is wide for few seeds."""
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    reach = error * float(student.ppf(0.975, len(differences) - 1))
    middle = float(differences.mean())
    return f"{middle:+.3f} [{middle - reach:+.3f}, {middle + reach:+.3f}]"


def over_prompts() -> Iterator[Row]:
    """Yield the gains of SHF-CAS, with intervals over seeds and over prompts, and on first and later prompts alone."""
    rows, parts = (chosen(name, metric=ACCURACY, strategy="shf_cas") for name in ("prompts", "later"))
    for at in dict.fromkeys((row["task"], row["policy"], row["budget"]) for row in rows):
        task, policy, budget = at
        here = {row["left_out"]: row for row in rows if (row["task"], row["policy"], row["budget"]) == at}
        of = {row["prompts"]: row for row in parts if (row["task"], row["policy"], row["budget"]) == at}
        whole = here.pop("-1")
        low, high = jackknife(
            float(whole["vs_random_difference"]), [float(row["vs_random_difference"]) for row in here.values()]
        )
        yield {
            "task": task,
            "policy": policy,
            "comparisons": budget,
            "`shf_cas` minus random, over seeds": plain_gain(whole),
            "over prompts": f"[{low:+.3f}, {high:+.3f}]",
            **{f"{part} prompts": plain_gain(of[part]) if of else "" for part in ("first", "later")},
        }


def jackknife(whole: float, without: list[float]) -> tuple[float, float]:
    """Return a 95 % interval over prompts, by Tukey's jackknife.

    Args:
        whole: the result with all prompts.
        without: the result without one part of them at a time, for equal parts.
    """
    parts = len(without)
    error = math.sqrt((parts - 1) * float(np.var(without)))
    reach = error * float(student.ppf(0.975, parts - 1))
    return whole - reach, whole + reach


def tables() -> dict[str, list[Row]]:
    """Return all tables of the page by name."""
    found = {"facts": list(facts("main")), "prompts": list(over_prompts())}
    found |= {"examples": list(by_examples()), "ppo": list(policies())}
    for name in ("main", "main_informed"):
        found |= {f"{name}-{task}": list(main_table(name, task)) for task in DEFAULTS}
    changes = {
        "informedness": ("policy",),
        "policy_score": ("policy",),
        "pairing": ("policy",),
        "answers": ("answers",),
        "temperature": ("temperature",),
        "bias": ("bias", "policy"),
        "strength": ("strength", "policy"),
        "rounds": ("rounds", "policy"),
    }
    return found | {name: list(varied(name, *columns)) for name, columns in changes.items()}


def about() -> list[Row]:
    """Return a row per table: the command and commit that made it."""
    return [
        {
            "table": f"`{name}.csv`",
            "command": f"`{entry['command']}`",
            "code": entry["commit"],
            "machine": entry["machine"],
        }
        for name, entry in read_json(ABOUT).items()
    ]


def page(text: str) -> str:
    """Return the page with its tables written again."""
    found = tables() | {"about": about()}
    return MARK.sub(lambda match: f"{match[1]}\n{markdown(found[match[2]], marked_up=True)}\n\n{match[3]}", text)


if __name__ == "__main__":
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8")))
