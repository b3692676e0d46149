"""Prompts as text and as messages, and what each model's tokenizer makes of them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer, ByT5Tokenizer

from shfcas.data.chat import answer_text, encode_answer, encode_prompt, end_token_ids, render_prompt, turn_end_id
from shfcas.data.messages import as_messages, check_prompt, completion_message, completion_text, plain_text
from shfcas.data.templates import set_chat_template
from shfcas.utils.errors import UserError
from tests.support import architectures
from tests.support.tiny import policy_tokenizer, reward_tokenizer

CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "how was the soup?"}]


@pytest.fixture(scope="module")
def policy() -> Any:
    return policy_tokenizer()


@pytest.fixture(scope="module")
def bert() -> Any:
    return reward_tokenizer()


@pytest.mark.parametrize("prompt", ["how?", CHAT])
def test_good_prompts_pass_unchanged(prompt: Any) -> None:
    assert check_prompt(prompt, "row 3") == prompt


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


ASKED = [{"role": "user", "content": "how was the soup?"}]
CONVERSATION = [*ASKED, {"role": "assistant", "content": "fine"}, {"role": "user", "content": "and the bread?"}]


@pytest.mark.parametrize("make", [architectures.llama, architectures.gemma, architectures.mistral])
def test_a_template_and_its_tokenizer_put_one_begin_of_text(make: Any) -> None:
    tokenizer = make()
    bos = tokenizer.bos_token_id
    assert tokenizer("how?")["input_ids"][0] == bos  # so it would be doubled without care
    for ids in (
        encode_prompt(tokenizer, "how was it?"),
        encode_prompt(tokenizer, CONVERSATION),
        encode_answer(tokenizer, CONVERSATION, "good", 128),
        encode_answer(tokenizer, "how was it?", "good", 128),
    ):
        assert ids[0] == bos and ids.count(bos) == 1
    tokenizer.chat_template = None
    assert encode_answer(tokenizer, ASKED, "good", 128).count(bos) == 1


@pytest.mark.parametrize(
    ("make", "conversation", "roles"),
    [
        (architectures.gemma, CHAT, "system, user"),
        (architectures.mistral, CHAT, "system, user"),
        (architectures.mistral, [*ASKED, *ASKED], "user, user"),
    ],
)
def test_a_conversation_that_a_template_refuses_is_named(make: Any, conversation: list, roles: str) -> None:
    tokenizer = make()
    for encode in (encode_prompt, lambda t, p: encode_answer(t, p, "good", 128)):
        with pytest.raises(UserError, match=f"rejects a conversation of {roles}.*how was the soup") as error:
            encode(tokenizer, conversation)
        assert "\n" not in str(error.value)
    encode_prompt(tokenizer, CONVERSATION)


def test_the_end_of_a_turn_is_found_in_the_template() -> None:
    ends = {"llama": "<|eot_id|>", "qwen": "<|im_end|>", "gemma": "<end_of_turn>", "mistral": "</s>"}
    for name, end in ends.items():
        tokenizer = getattr(architectures, name)()
        assert tokenizer.convert_ids_to_tokens(turn_end_id(tokenizer)) == end
    tokenizer = architectures.gemma()
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[5, 9]))
    assert end_token_ids(model, tokenizer) == {5, 9, tokenizer.eos_token_id, turn_end_id(tokenizer)}
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    assert turn_end_id(tokenizer) is None and end_token_ids(None, tokenizer) == {tokenizer.eos_token_id}
    tokenizer.chat_template = None
    assert turn_end_id(tokenizer) is None


def test_a_plain_template_for_those_without(tmp_path: Path) -> None:
    tokenizer = architectures.opt()
    set_chat_template(tokenizer, "plain")
    prompt = [{"role": "system", "content": "be brief"}, *CONVERSATION]
    assert render_prompt(tokenizer, prompt) == (
        "</s>System: be brief\n\nUser: how was the soup?\n\nAssistant: fine</s>\n\nUser: and the bread?\n\nAssistant:"
    )
    assert turn_end_id(tokenizer) == tokenizer.eos_token_id
    path = tmp_path / "mine.jinja"
    path.write_text("{{ messages[-1].content }}:")
    set_chat_template(tokenizer, str(path))
    assert render_prompt(tokenizer, prompt) == "and the bread?:"
    with pytest.raises(UserError, match=r"none\.jinja does not exist"):
        set_chat_template(tokenizer, str(tmp_path / "none.jinja"))
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="end token for plain, got none"):
        set_chat_template(tokenizer, "plain")


def test_text_to_be_continued_has_no_end_behind_it() -> None:
    tokenizer = ByT5Tokenizer()  # slow, written in Python, ends every text itself
    assert tokenizer("how")["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.decode(encode_prompt(tokenizer, "how was it?")) == "how was it?"
    assert encode_answer(tokenizer, "how?", "good", 64).count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("make", [architectures.llama, architectures.mistral, reward_tokenizer])
def test_what_a_tokenizer_was_saved_with_changes_nothing(make: Any, tmp_path: Path) -> None:
    """Padding, truncation and their sides are ours to choose, whatever tokenizer.json says."""
    tokenizer = make()
    expected = [encode_answer(tokenizer, ASKED, a, 128) for a in ("good", "a good day and a bad night")]
    tokenizer.backend_tokenizer.enable_padding(length=64, direction="left")
    tokenizer.backend_tokenizer.enable_truncation(4, direction="left")
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"]
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert [encode_answer(loaded, ASKED, a, 128) for a in ("good", "a good day and a bad night")] == expected


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


def test_the_text_of_an_answer_has_neither_its_end_nor_white_space_around() -> None:
    tokenizer = policy_tokenizer()
    ids = tokenizer(" a good film.\n")["input_ids"]
    assert answer_text(tokenizer, ids, False) == "a good film."
    assert answer_text(tokenizer, [*ids, tokenizer.eos_token_id], True) == "a good film."
    stop = tokenizer(".")["input_ids"]  # not a special token
    assert answer_text(tokenizer, [*tokenizer(" a film")["input_ids"], *stop], True) == "a film"
