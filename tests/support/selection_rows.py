"""Rows of a scored table, small enough to follow by hand."""

from typing import Any

import numpy as np

from shfcas.selection import SelectionConfig, select


def row(prompt_id: str, pacs: list[float], distance: float, **columns: Any) -> dict[str, Any]:
    return {
        "prompt_id": prompt_id,
        "completions": [f"answer {i}" for i in range(len(pacs))],
        "pacs": pacs,
        "kendall_distance": distance,
        "mean_abs_pacs": float(np.mean(np.abs(pacs))),
        "degenerate": False,
        **columns,
    }


TABLE = [
    row("low", [3.0, -3.0, 0.0], 0.2),
    row("mid", [0.1, -2.0, 1.5, 0.4], 0.6),
    row("high", [2.0, 0.5, -1.0, -2.5, 1.0], 0.9),
]


def config(strategy: str = "shf_cas", **values: Any) -> SelectionConfig:
    values = {"kendall_threshold": "0.5", "pacs_threshold": "1.0", **values}
    return SelectionConfig(strategy=strategy, **values)


def asked(rows: list, settings: SelectionConfig, seed: int = 0) -> list[tuple[str, int, int]]:
    return [(c.prompt_id, c.first, c.second) for c in select(rows, settings, seed)]


def full_table(rows: int = 200, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts with every column; few different numbers, so that much is equal."""
    draw = np.random.default_rng(seed)
    made = []
    for i in range(rows):
        n = 2 + i % 5
        members = draw.standard_normal((n, 3)).round(1)
        made.append(
            row(
                f"p{i}",
                draw.standard_normal(n).round(1).tolist(),
                float(draw.integers(0, 11)) / 10,
                degenerate=i % 50 == 0,
                rewards=members.mean(axis=1).round(1).tolist(),
                reward_variances=members.var(axis=1, ddof=1).round(1).tolist(),
                member_rewards=members.tolist(),
            )
        )
    return made
