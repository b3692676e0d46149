"""Candidate tables of made-up rewards and log-probabilities."""

import random

from shfcas.data.candidates import CandidateTable


def table(*rows: dict) -> CandidateTable:
    """Rows of rewards and logprobs (and more), filled up to a candidate table."""
    return CandidateTable.from_rows(
        [
            {
                "prompt_id": f"p{i}",
                "prompt": "how?",
                "completions": [f"answer {j}" for j in range(len(row["logprobs"]))],
                "num_tokens": [1] * len(row["logprobs"]),
                **row,
            }
            for i, row in enumerate(rows)
        ],
        {"policy": "tiny"},
    )


def random_rows(lengths: list[int]) -> list[dict]:
    draw = random.Random(0)
    return [
        {
            "rewards": [round(draw.gauss(0, 1), 1) for _ in range(n)],  # rounded: with ties
            "logprobs": [draw.uniform(-50, 0) for _ in range(n)],
            "reference_logprobs": [draw.uniform(-50, 0) for _ in range(n)],
            "num_tokens": [draw.randint(1, 20) for _ in range(n)],
            "contrast_a": [draw.gauss(0, 3) for _ in range(n)],
            "contrast_b": [draw.gauss(0, 3) for _ in range(n)],
        }
        for n in lengths
    ]
