"""The demo's conclusion: two sentences that follow from the numbers by rule, whatever they are."""

from typing import Any

from shfcas.demo.labels import NONE
from shfcas.utils.numbers import interval


def conclude(results: dict[str, Any]) -> list[str]:
    """Returns two sentences: about finding errors and labels, and about the policies.

    A difference is called clear if its 95 % interval excludes 0 (an AUROC: 0.5), otherwise it is not distinguishable.

    Args:
        results: `scores`, `labels`, `reward_models` and `policies` of the demo.
    """
    return [f"{_finding(results['scores'])}; {_labels(results['labels'])}.", f"{_policies(results['policies'])}."]


def _finding(scores: list[dict[str, Any]]) -> str:
    by_name = {row["score"]: row["finds_blind"] for row in scores}
    return (
        f"Conflicts of the contrast {_auroc(by_name['contrast'])} the blind topics (AUROC "
        f"{by_name['contrast']['value']:.2f}), and those of the log-probability {_auroc(by_name['logprob'])} them "
        f"({by_name['logprob']['value']:.2f})"
    )


def _auroc(found: dict[str, float]) -> str:
    if found["low"] > 0.5:
        return "find"
    return "avoid" if found["high"] < 0.5 else "do not clearly find"


def _labels(rows: list[dict[str, Any]]) -> str:
    """Compares SHF-CAS labels as arbiters with the best arm without labels, at the largest budget."""
    free = max((row for row in rows if row["strategy"] == NONE), key=lambda row: row["mean"])
    budget = max(row["budget"] for row in rows)
    asked = next(r for r in rows if (r["strategy"], r["arm"], r["budget"]) == ("shf_cas", "arbiter", budget))
    compared = _direction(asked["vs_random"])
    gain = 100 * (asked["mean"] - free["mean"])
    return (
        f"{budget} SHF-CAS labels as arbiters are {compared} random ones and {abs(gain):.1f} points "
        f"{'above' if gain >= 0 else 'below'} the best arm without labels"
    )


def _policies(rows: list[dict[str, Any]]) -> str:
    parts = []
    for row in rows[2:]:
        difference = row["difference_to_biased"]
        compared = f"{_direction(difference)} PPO on the biased proxy ({interval(difference, 2, sign=True)})"
        parts.append(f"{row['policy']} is {compared}")
    return f"On held-out gold, {' and '.join(parts)}"


def _direction(difference: dict[str, float]) -> str:
    if difference["low"] > 0:
        return "clearly better than"
    return "clearly worse than" if difference["high"] < 0 else "not distinguishable from"
