"""Match of two evaluations by their prompts, so that differences are paired."""

from collections.abc import Sequence
from typing import Any

from shfcas.data.messages import plain_text, prompt_key
from shfcas.utils.errors import UserError


def matching_rows(
    prompts: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]], name: str
) -> list[dict[str, Any]]:
    """Returns the earlier row of each prompt, in the order of the prompts.

    Two prompts are the same if their ids and their texts are, however the texts are written.

    Args:
        prompts: rows with `prompt_id` and `prompt`.
        before: rows of the earlier evaluation.
        name: how errors name the earlier evaluation.

    Raises:
        UserError: the prompts differ; the message counts them and names the first.
    """
    known = {row["prompt_id"]: row for row in before}
    missing = [row for row in prompts if not _same(row, known.get(row["prompt_id"]))]
    asked = {row["prompt_id"] for row in prompts}
    unasked = [row for row in before if row["prompt_id"] not in asked]
    if missing or unasked:
        first = (missing or unasked)[0]
        side = "these prompts have" if missing else f"{name} has"
        raise UserError(
            f"{name}: expected the same prompts, by id and text; {len(missing)} of {len(prompts)} are not in it, and "
            f"{len(unasked)} of its {len(before)} are not asked; first, {side} {first['prompt_id']!r} "
            f"({plain_text(first['prompt'])[:60]!r}); evaluate both policies on the same prompts"
        )
    return [known[row["prompt_id"]] for row in prompts]


def _same(row: dict[str, Any], before: dict[str, Any] | None) -> bool:
    return before is not None and prompt_key(row["prompt"]) == prompt_key(before["prompt"])
