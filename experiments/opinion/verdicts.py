"""Test the hypotheses of docs/evidence-plan.md on the finished cells: `python -m experiments.opinion.verdicts`.

Reads the cells that `experiments.opinion.grid` left in `runs/experiments/opinion/cells/`, and writes
`experiments/results/opinion/verdicts.json`. An interval *over prompts* is a jackknife over ten equal parts of the
prompts, an interval *over seeds* is Student's.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.stats import t as student

from experiments.opinion.bench import INFORMED, PARTS, STRATEGIES, TRUST, Setting
from experiments.opinion.grid import PRIMARY, RESULTS, TABLES, Arm, finished, record_of
from experiments.opinion.tasks import TASKS
from shfcas.evaluation.statistics import t_interval
from shfcas.utils.files import write_json

TWICE = (8, 16, 40)  # labels that are compared with twice as many random ones
LEVEL = 0.95

Values = np.ndarray  # one per seed
Results = Mapping[Setting, Sequence[Mapping[str, Any]]]  # of each seed, in order


def read(name: str) -> Results:
    """Read the finished cells of a table by setting."""
    found: dict[Setting, list[dict[str, Any]]] = {}
    for result in finished(record_of(name)):
        found.setdefault(Setting(**result["setting"]), []).append(result)
    return {setting: sorted(results, key=lambda r: r["seed"]) for setting, results in found.items()}


def fact(results: Results, setting: Setting, name: str) -> Values:
    """Return a fact of every seed."""
    return np.array([result["facts"][name] for result in results[setting]], float)


def cell(results: Results, setting: Setting, arm: Arm, measure: str = "accuracy") -> Values:
    """Return a measure of one arm for every seed."""
    found = []
    for result in results[setting]:
        (values,) = [c for c in result["cells"] if tuple(c["arm"]) == arm]
        found.append(values[measure])
    return np.array(found, float)


def over_prompts(estimate: Callable[[int], float], tests: int = 1) -> dict[str, float]:
    """Return an estimate with its jackknife interval over parts of the prompts.

    Args:
        estimate: of the prompts without one part; -1 leaves out none.
        tests: number of intervals that hold together, by Bonferroni.
    """
    parts = np.array([estimate(part) for part in range(PARTS)])
    error = np.sqrt((PARTS - 1) / PARTS * ((parts - parts.mean()) ** 2).sum())
    half = student.ppf(1 - (1 - LEVEL) / 2 / tests, PARTS - 1) * error
    value = estimate(-1)
    return {"mean": value, "low": value - half, "high": value + half}


def _without(task: str, bias: str, score: str, part: int) -> Setting:
    return Setting(task, bias, score, left_out=part)


def h1(scores: Results, parts: Results, parts_of_logprob: Results) -> dict[str, Any]:
    """The contrast's conflicts find a proxy's errors better than the log-probability's."""
    tasks = {}
    for task in _tasks(scores):

        def gain(part: int, name: str = "finds_errors", task: str = task) -> float:
            contrast = fact(parts, _without(task, "inverted", PRIMARY, part), name)
            logprob = fact(parts_of_logprob, _without(task, "inverted", "logprob", part), name)
            return float(np.nanmean(contrast - logprob))

        of_scores = {s: Setting(task, score=s) for s in ("logprob", PRIMARY)}
        tasks[task] = {
            "auroc": {s: t_interval(fact(scores, setting, "finds_errors")) for s, setting in of_scores.items()},
            "gain": over_prompts(gain),
            "gain_blind": over_prompts(lambda part, gain=gain: gain(part, "finds_blind")),  # type: ignore[misc]
            "knows": {s: t_interval(fact(scores, setting, "policy_knows")) for s, setting in of_scores.items()},
        }
    holds = [task for task, found in tasks.items() if found["gain"]["low"] > 0]
    return {"tasks": tasks, "holds_in": holds, "verdict": _verdict(len(holds) >= 2)}


def h2(parts: Results) -> dict[str, Any]:
    """The second opinion without labels gains three points with heads, and harms no sound proxy."""
    tasks = {}
    names = _tasks(parts)
    for task in names:

        def gain(part: int, bias: str, task: str = task) -> float:
            setting = _without(task, bias, PRIMARY, part)
            second = cell(parts, setting, ("", "equal_trust", 0))
            return float(np.mean(second - cell(parts, setting, ("", "nothing", 0))))

        tasks[task] = {
            "inverted": over_prompts(lambda part, gain=gain: gain(part, "inverted")),  # type: ignore[misc]
            "none": over_prompts(lambda part, gain=gain: gain(part, "none"), len(names)),  # type: ignore[misc]
        }
    gains = [task for task, found in tasks.items() if found["inverted"]["low"] >= 0.03]
    harms = [task for task, found in tasks.items() if found["none"]["low"] < -0.01]
    return {
        "tasks": tasks,
        "gains_in": gains,
        "may_harm_in": harms,
        "verdict": _verdict(len(gains) >= 2 and not harms),
    }


def h3(parts: Results) -> dict[str, Any]:
    """Labels chosen by conflict are worth twice as many random ones, and beat every arm without labels."""
    tasks = {}
    for task in _tasks(parts):
        tasks[task] = {}
        for strategy in ("shf_cas", "half"):

            def twice(part: int, strategy: str = strategy, task: str = task) -> float:
                setting = _without(task, "inverted", PRIMARY, part)
                gains = [
                    cell(parts, setting, (strategy, "arbitrate", n))
                    - cell(parts, setting, ("random", "arbitrate", 2 * n))
                    for n in TWICE
                    if _has(parts, setting, ("random", "arbitrate", 2 * n))
                ]
                return float(np.mean(gains))

            def best_free(part: int, arm: str, strategy: str = strategy, task: str = task) -> float:
                setting = _without(task, "inverted", PRIMARY, part)
                mean = np.mean(
                    [
                        cell(parts, setting, (strategy, "arbitrate", n))
                        for n in TWICE
                        if _has(parts, setting, (strategy, "arbitrate", n))
                    ],
                    axis=0,
                )
                return float(np.mean(mean - cell(parts, setting, ("", arm, 0))))

            free = {
                arm: over_prompts(lambda part, arm=arm, f=best_free: f(part, arm))  # type: ignore[misc]
                for arm in ("nothing", *TRUST)
            }
            double = over_prompts(twice)
            tasks[task][strategy] = {
                "twice": double,
                "over_label_free": free,
                "worth_twice": bool(double["low"] > -0.005 and double["mean"] >= 0),
                "beats_label_free": bool(all(found["low"] > 0 for found in free.values())),
            }
    holds = [
        task
        for task, found in tasks.items()
        if any(found[s]["worth_twice"] and found[s]["beats_label_free"] for s in found)
    ]
    return {"tasks": tasks, "holds_in": holds, "verdict": _verdict(len(holds) >= 2)}


def h4(net: Results) -> dict[str, Any]:
    """Labels as arbiters are never worse than random labels as pairs by more than a point."""
    budgets = [b for b in TABLES["safety_net"].budgets or ()]
    tests = len(net) * len(budgets)
    rows = []
    for setting in net:
        for budget in budgets:
            pairs = cell(net, setting, ("random", "labels", budget))
            for strategy in STRATEGIES:
                gain = cell(net, setting, (strategy, "arbitrate", budget)) - pairs
                interval = t_interval(gain, 1 - (1 - LEVEL) / tests)
                rows.append(
                    {
                        "task": setting.task,
                        "bias": setting.bias,
                        "score": setting.score,
                        "budget": budget,
                        "strategy": strategy,
                        **interval,
                    }
                )
    worse = {s: [r for r in rows if r["strategy"] == s and r["high"] < -0.01] for s in STRATEGIES}
    unsure = {s: sum(r["low"] < -0.01 for r in rows if r["strategy"] == s) for s in STRATEGIES}
    return {
        "settings": tests,
        "worse": {s: len(found) for s, found in worse.items()},
        "not_excluded": unsure,
        "worst": sorted(rows, key=lambda r: r["mean"])[:10],
        "mean": {s: float(np.mean([r["mean"] for r in rows if r["strategy"] == s])) for s in STRATEGIES},
        "noise": {
            s: float(np.mean([r["mean"] for r in rows if r["strategy"] == s and r["score"] == f"{INFORMED}0.0"]))
            for s in STRATEGIES
        },
        "verdict": _verdict(not any(worse.values())),
    }


def _has(results: Results, setting: Setting, arm: Arm) -> bool:
    return any(tuple(c["arm"]) == arm for c in results[setting][0]["cells"])


def _tasks(results: Results) -> list[str]:
    present = {setting.task for setting in results}
    return [task for task in TASKS if task in present]


def _verdict(holds: bool) -> str:
    return "supported" if holds else "refuted"


def replication() -> dict[str, Any]:
    """The same for new answers to the same prompts, in the tasks whose answers the policy samples."""
    parts, of_logprob = (
        {replace(setting, draw=0): cells for setting, cells in read(name).items()}
        for name in ("replication", "replication_scores")
    )
    return {"H1": h1({**parts, **of_logprob}, parts, of_logprob), "H2": h2(parts), "H3": h3(parts)}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replication", action="store_true", help="H1 to H3 on new answers, into replication.json")
    if parser.parse_args().replication:
        found, name = replication(), "replication.json"
    else:
        scores, parts, of_logprob, net = (read(name) for name in ("scores", "prompts", "prompts_scores", "safety_net"))
        found = {"H1": h1(scores, parts, of_logprob), "H2": h2(parts), "H3": h3(parts), "H4": h4(net)}
        name = "verdicts.json"
    write_json(RESULTS / name, found)
    for hypothesis, result in found.items():
        print(hypothesis, result["verdict"])


if __name__ == "__main__":
    main()
