"""One prompt in its many spellings."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shfcas.data.chat import encode_prompt
from shfcas.data.messages import check_prompt, normalised, prompt_key
from tests.support.tiny import policy_tokenizer

SPELLINGS: list[Any] = [
    "how was the soup?",
    " how was the soup?\n",
    [{"role": "user", "content": "how was the soup?"}],
    [{"content": "how was the soup?", "role": "user"}],
    [{"role": "user", "content": "how was the soup?", "name": None, "tool_calls": None}],
    [{"role": "user", "content": "how was the soup? ", "tool_calls": [], "name": ""}],
    [{"from": "human", "value": "how was the soup?"}],
    [{"role": "user", "content": [{"type": "text", "text": "how was "}, {"type": "text", "text": "the soup?"}]}],
]
OTHERS: list[Any] = [
    "how was the bread?",
    [{"role": "system", "content": "how was the soup?"}],
    [{"role": "user", "content": "how was the soup?", "name": "ada"}],
    [{"role": "user", "content": "how was the soup?"}, {"role": "assistant", "content": "good"}],
]


def test_one_prompt_has_one_key_and_another_has_another() -> None:
    assert len({prompt_key(prompt) for prompt in SPELLINGS}) == 1
    assert len({prompt_key(prompt) for prompt in [SPELLINGS[0], *OTHERS]}) == 1 + len(OTHERS)


@pytest.mark.parametrize("prompt", SPELLINGS[2:])
def test_the_normal_form_has_one_spelling_and_the_same_tokens(prompt: Any) -> None:
    tokenizer = policy_tokenizer()
    no = "{{ raise_exception('no') }}"
    strict = "{% for m in messages %}{% if 'tool_calls' in m or 'name' in m %}" + no + "{% endif %}{% endfor %}"
    tokenizer.chat_template = strict + tokenizer.chat_template
    found = check_prompt(prompt, "row 0")
    assert [{**m, "content": m["content"].strip()} for m in found] == SPELLINGS[2]
    assert encode_prompt(tokenizer, prompt) == encode_prompt(tokenizer, found)


def test_arrow_and_json_give_the_same_messages(tmp_path: Path) -> None:
    called = {"type": "function", "function": {"name": "look", "arguments": {"x": 1}}}
    rows = [
        SPELLINGS[2],
        [
            *SPELLINGS[2],
            {"role": "assistant", "content": None, "tool_calls": [called]},
            {"role": "tool", "content": "late"},
        ],
        [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "go", "arguments": {"y": "b"}}}]}],
    ]
    pq.write_table(pa.table({"prompt": rows}), tmp_path / "t.parquet")
    read = pq.read_table(tmp_path / "t.parquet").column("prompt").to_pylist()
    assert read != rows and [normalised(prompt) for prompt in read] == [normalised(prompt) for prompt in rows]
    assert normalised(rows[1])[1]["content"] == ""
