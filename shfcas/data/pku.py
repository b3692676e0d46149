"""PKU-SafeRLHF (Ji et al. 2024, arXiv 2406.15513) as in the paper's experiments: a proxy that saw half of the harms.

Ten harm categories; the original preferences are about five of them only. Which ten of the nineteen the authors took is
not known to us, so these are ours. Functions without arguments, so that configurations can name them.

Rows come from `SHFCAS_PKU_SAFERLHF`: a file, or by default the training split on the Hub. They have `prompt`,
`response_0`, `response_1`, `better_response_id`, `safer_response_id`, and for each response `is_response_0_safe` and
`response_0_harm_category`, which says yes or no for each category.
"""

import os
from collections.abc import Iterator
from functools import cache
from typing import Any

from shfcas.data.reading import read_rows
from shfcas.utils.errors import UserError
from shfcas.utils.seeds import derive_seed

SOURCE, HUB = "SHFCAS_PKU_SAFERLHF", "PKU-Alignment/PKU-SafeRLHF:train"
SEEN = ("Insulting Behavior", "Discriminatory Behavior", "Violence", "Drugs", "Privacy Violation")
BLIND = ("Economic Crime", "Mental Manipulation", "Physical Harm", "Cybercrime", "White-Collar Crime")
PER_CATEGORY = 300  # prompts of each category that answers are sampled to (the paper's number)
HELD_OUT_PER_CATEGORY = 50
COLUMNS = (
    "prompt", "response_0", "response_1", "better_response_id", "safer_response_id", "is_response_0_safe",
    "is_response_1_safe",
)  # fmt: skip


def category_of(row: dict[str, Any]) -> str | None:
    """Returns the first of our categories that a row's responses belong to; None if they belong to none."""
    marked = [row.get(f"response_{i}_harm_category") or {} for i in (0, 1)]
    return next((name for name in (*SEEN, *BLIND) if any(flags.get(name) for flags in marked)), None)


@cache
def _parts() -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[dict[str, Any]]], list[dict[str, Any]]]:
    """Returns the held-out prompts and those to train on, by category in random order, and all other rows."""
    source = os.environ.get(SOURCE, HUB)
    by_category: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in (*SEEN, *BLIND)}
    taken: dict[str, str] = {}
    for number, row in enumerate(read_rows(source)):
        if missing := [column for column in COLUMNS if column not in row]:
            raise UserError(f"{source}: row {number} lacks {missing[0]}; set {SOURCE} to rows of PKU-SafeRLHF")
        name = taken.setdefault(row["prompt"], category_of(row) or "")
        if name:
            by_category[name].setdefault(row["prompt"], []).append(row)
    held_out, trained, others = {}, {}, []
    for name, prompts in by_category.items():
        order = sorted(prompts, key=lambda prompt: (derive_seed("pku", prompt), prompt))
        if len(order) < 3:
            raise UserError(f"{source}: expected prompts of the category {name}, got {len(order)}; set {SOURCE}")
        count = min(HELD_OUT_PER_CATEGORY, len(order) // 3)
        held_out[name] = [_prompt(name, text) for text in order[:count]]
        trained[name] = [_prompt(name, text) for text in order[count : count + PER_CATEGORY]]
        others += [row | {"category": name} for text in order[count:] for row in prompts[text]]
    return held_out, trained, others


def _prompt(category: str, text: str) -> dict[str, Any]:
    key = f"{derive_seed('pku', text):08x}"
    return {"prompt_id": key, "category": category, "prompt": [{"role": "user", "content": text}]}


def train_prompts() -> list[dict[str, Any]]:
    """Returns 300 prompts of each category to sample, select and train on."""
    return [row for rows in _parts()[1].values() for row in rows]


def held_out_prompts() -> list[dict[str, Any]]:
    """Returns 50 prompts of each category that only the evaluation uses."""
    return [row for rows in _parts()[0].values() for row in rows]


def _pairs(key: str) -> Iterator[dict[str, Any]]:
    """Yields the pairs of the categories that the proxy sees, ordered by a column of the data."""
    for row in _parts()[2]:
        if row["category"] in SEEN and row[key] in (0, 1):
            better, worse = row[key], 1 - row[key]
            yield {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "chosen": row[f"response_{better}"],
                "rejected": row[f"response_{worse}"],
                "chosen_safe": row[f"is_response_{better}_safe"],
                "rejected_safe": row[f"is_response_{worse}_safe"],
            }


def safety_preferences() -> list[dict[str, Any]]:
    """Returns the original preferences of the task safety: the safer response is better."""
    return list(_pairs("safer_response_id"))


def helpfulness_preferences() -> list[dict[str, Any]]:
    """Returns the original preferences of the task helpfulness: the more helpful response is better."""
    return list(_pairs("better_response_id"))


def demonstrations() -> list[dict[str, Any]]:
    """Returns the better response to each prompt of all categories that is neither trained on nor held out."""
    used = {row["prompt"][0]["content"] for row in train_prompts()}
    return [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": row[f"response_{row['better_response_id']}"],
        }
        for row in _parts()[2]
        if row["prompt"] not in used
    ]
