"""Prompts as text and as messages, and what each model's tokenizer makes of them."""

from typing import Any

import pytest
from tiny import policy_tokenizer, reward_tokenizer

from shfcas.chat import (
    as_messages,
    check_prompt,
    completion_message,
    completion_text,
    encode_answer,
    encode_prompt,
    plain_text,
    render_prompt,
)
from shfcas.errors import UserError

CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "how was the soup?"}]


@pytest.fixture(scope="module")
def policy() -> Any:
    return policy_tokenizer()


@pytest.fixture(scope="module")
def bert() -> Any:
    return reward_tokenizer()


@pytest.mark.parametrize("prompt", ["how?", CHAT])
def test_good_prompts_pass_unchanged(prompt: Any) -> None:
    assert check_prompt(prompt, "row 3") is prompt


@pytest.mark.parametrize(
    "prompt",
    ["", " \n", None, 3, [], {}, ["how?"], [{"role": "user"}], [{"role": "user", "content": None}], [*CHAT, "how?"]],
)
def test_other_prompts_are_refused_with_their_place(prompt: Any) -> None:
    with pytest.raises(UserError, match=r"^row 3: .*prompt"):
        check_prompt(prompt, "row 3")


def test_text_and_messages_become_each_other() -> None:
    assert as_messages("how?") == [{"role": "user", "content": "how?"}]
    assert as_messages(CHAT) == CHAT
    assert plain_text("how?") == "how?"
    assert plain_text(CHAT) == "be brief\n\nhow was the soup?"
    assert completion_message("how?", "good") == "good"
    assert completion_message(CHAT, "good") == [{"role": "assistant", "content": "good"}]
    for prompt in ("how?", CHAT):
        assert completion_text(completion_message(prompt, "good")) == "good"


def test_the_policy_continues_messages_after_the_assistants_mark_and_text_as_it_is(policy: Any) -> None:
    rendered = render_prompt(policy, CHAT)
    assert rendered == "<|system|>be brief<|end|><|user|>how was the soup?<|end|><|assistant|>"
    assert policy.decode(encode_prompt(policy, CHAT)) == rendered
    assert render_prompt(policy, "how?") == policy.decode(encode_prompt(policy, "how?")) == "how?"


def test_special_tokens_are_added_to_text_and_never_twice_to_messages(bert: Any) -> None:
    assert encode_prompt(bert, "how was the soup")[0] == bert.cls_token_id
    bert_chat = reward_tokenizer()
    bert_chat.chat_template = "{% for message in messages %}[CLS] {{ message['content'] }} [SEP]{% endfor %}"
    assert encode_prompt(bert_chat, CHAT[1:]).count(bert_chat.cls_token_id) == 1
    assert encode_answer(bert_chat, CHAT[1:], "good", 64).count(bert_chat.cls_token_id) == 2  # one a message


def test_messages_need_a_template(bert: Any) -> None:
    with pytest.raises(UserError, match="chat messages, but the policy's tokenizer has no chat template"):
        render_prompt(bert, CHAT)


@pytest.mark.parametrize("prompt", ["how was the soup?", CHAT])
def test_a_reward_model_with_a_template_sees_the_whole_conversation(policy: Any, prompt: Any) -> None:
    seen = policy.decode(encode_answer(policy, prompt, "good", 64))
    assert seen.endswith("<|user|>how was the soup?<|end|><|assistant|>good<|end|>")
    assert seen.startswith("<|system|>be brief") == (prompt is CHAT)


def test_a_reward_model_with_a_separator_sees_a_pair(bert: Any) -> None:
    ids = encode_answer(bert, "how was the soup", "good", 64)
    assert ids == bert("how was the soup", "good")["input_ids"]
    assert ids.count(bert.sep_token_id) == 2


def test_a_reward_model_with_neither_sees_both_texts_and_one_end(policy: Any) -> None:
    plain = policy_tokenizer()
    plain.chat_template = None
    ids = encode_answer(plain, CHAT, "good", 64)
    assert plain.decode(ids) == "be brief\n\nhow was the soup?\n\ngood<|end|>"
    assert encode_answer(plain, CHAT, "good<|end|>", 64) == ids  # an end that is there already is not doubled


def test_an_answer_that_does_not_fit_is_refused_rather_than_cut(policy: Any) -> None:
    length = len(encode_answer(policy, CHAT, "good", 64))
    assert len(encode_answer(policy, CHAT, "good", length)) == length
    with pytest.raises(
        UserError, match=f"has {length} tokens, more than the reward model's limit of {length - 1}: 'be b"
    ):
        encode_answer(policy, CHAT, "good", length - 1)
