"""Items, answers and exports of other tools, for the tests of the exchange with them."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from shfcas.feedback.annotation.schema import Item, Judgement, item_id
from shfcas.feedback.annotation.store import Store
from shfcas.feedback.exchange import ExchangeBaseConfig, export_answers, import_answers
from shfcas.utils.errors import UserError

CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "how?"}]
WHOLE = ("jsonl", "label-studio", "argilla")  # the formats that carry the log
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["", "a\nb\r\nc", "\u2028\u2029\x85", "\u202eright to left\u202c", "\x00\x1b[31m", '"]}\\', "\U0001f600", "\ud800"]
)


def item(position: int, prompt: Any = "how?", first: str = "yes", second: str = "no", queue: str = "round-1") -> Item:
    why = {"kendall_distance": 0.5, "rewards": [2.0 + position, 1.0], "pacs": [0.25, None]}
    key = (queue, f"p{position}", 0, 2)
    return Item(item_id(*key), queue, 1, position, f"p{position}", 0, 2, prompt, first, second, why)


ITEMS = [
    item(0),
    item(1, CHAT, "a\nb", "\u202ec"),
    item(2, "why?", "", "so"),
    item(3, "same?", "twice", "twice"),
    item(4),
]


def answer(id: str, place: int, annotator: str = "ada", choice: str = "first", **more: Any) -> Judgement:
    more = {"left": "second", "time": f"2025-01-31T12:00:0{place}.000+00:00", "page_version": "1"} | more
    return Judgement(id, ITEMS[place].id, annotator, choice, **more)


LOG = [
    answer("j0", 0, choice="first", strength="clearly", comment="better\n\u202e!", seconds=3.25),
    answer("j1", 1, choice="second", seconds=1.0),
    answer("j2", 1, choice="undo", undoes="j1"),
    answer("j3", 1, choice="tie"),
    answer("j4", 0, "ben", "second", left="first", strength="slightly"),
    answer("j5", 2, "ben", "skip"),
    answer("j6", 2, choice="both_bad", comment="\x00\x07"),
    answer("j7", 0, choice="second", left="first", repeat=True),
    answer("j8", 3, "ben", "flag", comment="rude"),
]


def new_store(path: Path, log: list[Judgement] = (), items: list[Item] = ITEMS) -> Store:
    store = Store(path)
    store.add_queue(items, seed=7)
    store.record_all(log)
    return store


def exported(store: Store, path: Path, format: str, **options: Any) -> Any:
    export_answers(store, path, ExchangeBaseConfig(format, **options))
    text = path.read_text(encoding="utf-8")
    lines = format in ("jsonl", "trl")
    return [json.loads(line) for line in text.split("\n") if line] if lines else json.loads(text)


def imported(store: Store, rows: Any, path: Path, format: str, **options: Any) -> dict[str, Any]:
    lines = format in ("jsonl", "trl")
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows), encoding="utf-8")
    return import_answers(store, [path], ExchangeBaseConfig(format, **options))


def refusal(store: Store, rows: Any, path: Path, format: str, **options: Any) -> str:
    """The error of an import, after which the log is what it was."""
    before, queues = store.judgements(), store.queues()
    with pytest.raises(UserError) as caught:
        imported(store, rows, path, format, **options)
    assert store.judgements() == before and store.queues() == queues
    return str(caught.value)


def label_studio_export(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What Label Studio makes of the first two tasks after people have answered."""
    common = {"ground_truth": False, "prediction": {}, "parent_prediction": None, "import_id": None, "project": 4}
    left = {"value": {"selected": "left"}, "from_name": "better", "to_name": "better", "type": "pairwise"}
    clearly = {"value": {"choices": ["clearly"]}, "from_name": "strength", "to_name": "prompt", "type": "choices"}
    comment = {
        "value": {"text": ["short", "and clear"]},
        "from_name": "comment",
        "to_name": "prompt",
        "type": "textarea",
    }
    bad = {"value": {"choices": ["both_bad"]}, "from_name": "other", "to_name": "prompt", "type": "choices"}
    ada = {"id": 2, "email": "ada@example.org", "first_name": "Ada", "last_name": ""}
    annotations = [
        {
            "id": 11,
            "completed_by": ada,
            "result": [{**r, "id": f"x{n}", "origin": "manual"} for n, r in enumerate((left, clearly, comment))],
            "was_cancelled": False,
            "created_at": "2024-05-06T09:08:09.123456+02:00",
            "updated_at": "2024-05-06T07:09:00Z",
            "lead_time": 12.5,
        },
        {
            "id": 12,
            "completed_by": 3,
            "result": [],
            "was_cancelled": True,
            "lead_time": 2,
            "created_at": "2024-05-06T08:00:00Z",
        },
        {"id": 13, "completed_by": 4, "result": [{**bad, "id": "y"}], "was_cancelled": False, "lead_time": None},
    ]
    outer = {"file_upload": "tasks.json", "drafts": [], "predictions": [], "project": 4, "total_annotations": 2}
    first = {
        **tasks[0],
        **outer,
        "id": 101,
        "inner_id": 1,
        "annotations": [{**a, **common, "task": 101} for a in annotations],
    }
    return [first, {**tasks[1], **outer, "id": 102, "inner_id": 2, "annotations": []}]


def argilla_export(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What Argilla makes of the first two records after people have answered."""
    one, two = "0b5f6a0e-3f1c-4f53-8b07-6f0a2d3c1e11", "1c5f6a0e-3f1c-4f53-8b07-6f0a2d3c1e22"
    responses = {
        "preference": [{"value": "answer_b", "user_id": one}, {"value": "tie", "user_id": two}],
        "strength": [{"value": "slightly", "user_id": one}],
        "comment": [{"value": "hm", "user_id": two}],
    }
    server = "6a0e0b5f-3f1c-4f53-8b07-6f0a2d3c1e33"
    suggestion = {"preference": {"value": "answer_a", "score": 0.9, "agent": "model"}}
    first = {**records[0], "responses": responses, "suggestions": suggestion, "_server_id": server}
    return [first, {**records[1], "status": "pending"}]
