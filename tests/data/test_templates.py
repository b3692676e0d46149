"""Chat templates: the same text on any day, and content in the form that a template reads."""

import datetime
from typing import Any

import pytest
import transformers.utils.chat_template_utils as template_utils

from shfcas.data.chat import encode_answer, encode_demonstration, encode_prompt, end_token_ids
from shfcas.data.templates import answer_frame, conversation, writes_date
from shfcas.utils.errors import UserError
from tests.support import architectures, tiny

ASKED = [{"role": "user", "content": "how was the soup?"}]
DATED = (
    "{% macro today() %}{{ strftime_now('%d %B %Y') }}{% endmacro %}<|system|>{{ today() }}<|end|>" + tiny.CHAT_TEMPLATE
)
PARTS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% for part in m['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CUT = (  # an answer loses its reasoning
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'].split('</think>')[-1] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def policy(template: str) -> Any:
    tokenizer = tiny.policy_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_a_text_has_the_same_tokens_on_any_day(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = policy(DATED)
    assert writes_date(tokenizer) and not writes_date(policy(tiny.CHAT_TEMPLATE))
    seen = []
    for day in (3, 28):

        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None, day: int = day) -> datetime.datetime:
                return datetime.datetime(2031, 2, day)

        monkeypatch.setattr(template_utils, "datetime", Clock)
        seen.append((encode_prompt(tokenizer, ASKED), encode_answer(tokenizer, ASKED, "good")))
    assert seen[0] == seen[1]
    assert "26 July 2024" in tokenizer.decode(seen[0][0])


def test_a_template_that_reads_only_parts_gets_parts() -> None:
    tokenizer = policy(PARTS)
    assert tokenizer.decode(encode_prompt(tokenizer, ASKED)) == "<|user|>how was the soup?<|end|><|assistant|>"
    _, answer = encode_demonstration(tokenizer, ASKED, "good", end_token_ids(None, tokenizer))
    assert tokenizer.decode(answer) == "good<|end|>"


def test_a_reward_model_reads_what_its_template_would_cut() -> None:
    tokenizer = policy(CUT)
    thought = "I think so.</think>the soup was good"
    assert conversation(tokenizer, ASKED, thought) == f"<|user|>how was the soup?<|end|><|assistant|>{thought}<|end|>"
    turns = [{"role": "assistant", "content": thought}, *ASKED, {"role": "assistant", "content": "good"}]
    with pytest.raises(UserError, match="drops a turn of assistant"):
        conversation(tokenizer, ASKED, turns)


@pytest.mark.parametrize("template", ["nothing", "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}"])
def test_a_template_that_does_not_write_an_answer_once_is_refused(template: str) -> None:
    with pytest.raises(UserError, match=r"writes an answer [02] times, expected once"):
        answer_frame(policy(template), ASKED)


def test_tokens_of_an_answer_decode_to_it_behind_the_prompt() -> None:
    """Also where a token would span the seam, and where SentencePiece would put a space before it."""
    for make in (architectures.gemma, architectures.mistral, architectures.llama, architectures.opt):
        tokenizer = make()
        ends = end_token_ids(None, tokenizer)
        for prompt in ("how was the soup? ", "how was the sou"):
            for completion in (" a good day", "p? good", "good"):
                ids, answer = encode_demonstration(tokenizer, prompt, completion, ends)
                assert ids == encode_prompt(tokenizer, prompt)
                text = tokenizer.decode(ids + answer, skip_special_tokens=True)
                assert text == prompt + completion
