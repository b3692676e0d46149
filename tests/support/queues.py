"""Queues of small comparisons and judgements about them, for the tests of feedback from people."""

import uuid
from typing import Any

from shfcas.feedback.annotation.schema import Item, Judgement, item_id


def make_queue(count: int, queue: str = "round-1") -> list[Item]:
    return [
        Item(
            id=item_id(queue, f"p{k}", 0, 2),
            queue=queue,
            round=int(queue[-1]),
            position=k,
            prompt_id=f"p{k}",
            first=0,
            second=2,
            prompt=[{"role": "user", "content": f"question {k}"}] if k % 2 else f"question {k}",
            first_text=f"yes to {k}",
            second_text=f"no to {k}",
            why={"pacs": [0.5, -1.5], "kendall_distance": 3.0},
        )
        for k in range(count)
    ]


def judged(item: Item | str, annotator: str, choice: str, **fields: Any) -> Judgement:
    """A judgement with an id of its own, unless one is given."""
    id = item if isinstance(item, str) else item.id
    return Judgement(**{"id": str(uuid.uuid4()), "item": id, "annotator": annotator, "choice": choice} | fields)
