"""Prompts as text or chat messages, and their tokens under each model's own tokenizer and chat template.

Models exchange only text or messages: the policy, the reward model and the gold model each have their own
tokenizer and template.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shfcas.utils.errors import UserError
from shfcas.utils.files import read_text

Message = dict[str, str]
Prompt = str | list[Message]

# Chat template for base models without one: each message follows the name of its role; an end token ends answers.
PLAIN_TEMPLATE = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def check_prompt(prompt: Any, where: str) -> Prompt:
    """Returns the prompt if it is non-empty text or a list of role/content messages; otherwise raises UserError."""
    if isinstance(prompt, str):
        if prompt.strip():
            return prompt
        raise UserError(f"{where}: the prompt is empty")
    if isinstance(prompt, list) and prompt:
        for message in prompt:
            if not (
                isinstance(message, dict)
                and isinstance(message.get("role"), str)
                and isinstance(message.get("content"), str)
            ):
                break
        else:
            return prompt
    raise UserError(f"{where}: expected a prompt that is text or a non-empty list of {{role, content}} messages")


def as_messages(prompt: Prompt) -> list[Message]:
    """Returns the prompt as chat messages; plain text becomes one user turn."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def prompt_key(prompt: Prompt) -> str:
    """Returns a key that is equal for equal prompts, however they are written.

    Text is one user message. White space around a text, and keys of a message without a value (`name: null`,
    `tool_calls: []`), do not count.

    >>> prompt_key("hi ") == prompt_key([{"role": "user", "content": "hi", "tool_calls": []}])
    True
    """
    messages = [
        {key: value for key, value in message.items() if value not in (None, "", [], {})}
        | {"content": message["content"].strip()}
        for message in as_messages(prompt)
    ]
    return json.dumps(messages, sort_keys=True, default=str)


def plain_text(prompt: Prompt) -> str:
    """Returns the prompt as readable text, for pages, lexicons and models without a chat template."""
    return prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)


def set_chat_template(tokenizer: Any, template: str) -> None:
    """Sets the chat template of a tokenizer: `plain`, or the content of a Jinja file."""
    if template == "plain" and tokenizer.eos_token is None:
        raise UserError("chat_template: expected a tokenizer with an end token for plain, got none; set eos_token")
    tokenizer.chat_template = template_text(template)


def template_text(template: str) -> str:
    """Returns the chat template named `plain`, or the content of a Jinja file."""
    return PLAIN_TEMPLATE if template == "plain" else read_text(Path(template).expanduser())


def render(tokenizer: Any, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    """Renders messages with the tokenizer's chat template.

    Raises:
        UserError: the template rejects them (many allow no system turn, or require alternating roles).
    """
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(
            f"the chat template of {tokenizer.name_or_path or 'the tokenizer'} rejects a conversation of {roles} "
            f"({' '.join(str(error).split())[:120]}): {plain_text(list(messages))[:60]!r}; change its roles"
        ) from error


def render_prompt(tokenizer: Any, prompt: Prompt) -> str:
    """Returns the text that the policy continues: messages rendered with its chat template, plain text unchanged."""
    if isinstance(prompt, str):
        return prompt
    if not tokenizer.chat_template:
        raise UserError(
            "the prompts are chat messages, but the policy's tokenizer has no chat template; "
            "set chat_template (plain, or a Jinja file), or give plain text prompts"
        )
    return render(tokenizer, prompt, add_generation_prompt=True)


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Returns the token ids of a rendered prompt.

    A chat template already contains its special tokens. Plain text gets the tokenizer's leading special tokens, but
    no end token, since the policy continues it.
    """
    text = render_prompt(tokenizer, prompt)
    ids = tokenizer(text, add_special_tokens=isinstance(prompt, str), verbose=False)["input_ids"]
    if isinstance(prompt, str) and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    return ids


def turn_end_id(tokenizer: Any) -> int | None:
    """Returns the special token that ends an answer in the chat template, if any; often not the EOS token."""
    if not tokenizer.chat_template:
        return None
    mark = "answer"
    try:
        text = render(tokenizer, [{"role": "user", "content": "question"}, {"role": "assistant", "content": mark}])
    except UserError:
        return None
    ids = tokenizer(text.rpartition(mark)[2].lstrip(), add_special_tokens=False, verbose=False)["input_ids"]
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return ids[0] if ids and ids[0] in special | set(tokenizer.all_special_ids) else None


def end_token_ids(model: Any, tokenizer: Any) -> set[int]:
    """Returns all tokens that end an answer: from the generation configuration, the tokenizer and the chat template."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = set(configured if isinstance(configured, list | tuple) else [configured])
    ids |= {tokenizer.eos_token_id, turn_end_id(tokenizer)}
    return {i for i in ids if i is not None}


def answer_text(tokenizer: Any, tokens: Sequence[int], finished: bool) -> str:
    """Decodes sampled tokens to the text in tables, rewards and pages, without surrounding white space.

    Args:
        tokenizer: the policy's.
        tokens: tokens of one answer, up to its end token.
        finished: whether the last token is an end token, which is not part of the text, special or not.
    """
    return tokenizer.decode(tokens[:-1] if finished else tokens, skip_special_tokens=True).strip()


def encode_demonstration(
    tokenizer: Any, prompt: Prompt, completion: str, end_ids: set[int]
) -> tuple[list[int], list[int]]:
    """Returns the token ids of a prompt, as in sampling, and of the answer to learn, with its end token.

    Args:
        tokenizer: the policy's.
        prompt: text or messages.
        completion: the answer. Text follows its prompt without a space between them, as in TRL.
        end_ids: tokens that end an answer. If the template adds none of them, the tokenizer's end token is added.

    Raises:
        UserError: there is no token to end the answer with.
    """
    prompt_ids, prompt_text = encode_prompt(tokenizer, prompt), render_prompt(tokenizer, prompt)
    if isinstance(prompt, str):
        whole = prompt + completion
    else:
        whole = render(tokenizer, [*prompt, {"role": "assistant", "content": completion}])
        if not whole.startswith(prompt_text):  # for example templates that drop the beginning of an answer
            whole = prompt_text + whole[whole.rfind(completion) :]
    ids = tokenizer(whole, add_special_tokens=isinstance(prompt, str), verbose=False)["input_ids"]
    if ids[: len(prompt_ids)] == prompt_ids:
        answer = ids[len(prompt_ids) :]
    else:  # a token spans the boundary: keep the prompt tokens of sampling
        answer = tokenizer(whole[len(prompt_text) :], add_special_tokens=False, verbose=False)["input_ids"]
    if not end_ids.intersection(answer):
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end token, so the policy cannot learn to end answers; set eos_token")
        answer = [*answer, tokenizer.eos_token_id]
    return prompt_ids, answer


def encode_answer(tokenizer: Any, prompt: Prompt, completion: str, max_length: int) -> list[int]:
    """Returns the token ids of a prompt and its answer for a reward model, the same in training and in scoring.

    With a chat template, the whole conversation is rendered. Without one, a tokenizer with a separator (BERT)
    encodes the two texts as a pair. Any other joins them with a blank line and appends its end token.

    Raises:
        UserError: the conversation is longer than `max_length`.
    """
    if tokenizer.chat_template:
        text = render(tokenizer, [*as_messages(prompt), {"role": "assistant", "content": completion}])
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    elif tokenizer.sep_token_id is not None:
        ids = tokenizer(plain_text(prompt), completion, verbose=False)["input_ids"]
    else:
        ids = tokenizer(f"{plain_text(prompt)}\n\n{completion}", verbose=False)["input_ids"]
        if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
            ids = [*ids, tokenizer.eos_token_id]
    if len(ids) > max_length:
        raise UserError(
            f"a prompt with its answer has {len(ids)} tokens, more than the reward model's limit of {max_length}: "
            f"{plain_text(prompt)[:60]!r}; raise max_length or shorten the prompt"
        )
    return ids


def completion_message(prompt: Prompt, completion: str) -> str | list[Message]:
    """Returns the completion in the format of its prompt: text, or one assistant message."""
    return completion if isinstance(prompt, str) else [{"role": "assistant", "content": completion}]


def completion_text(completion: str | Sequence[Message]) -> str:
    """Returns the text of a completion given as text or as messages."""
    return completion if isinstance(completion, str) else "".join(message["content"] for message in completion)


def answer_suffix_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Returns the tokens after every answer in a reward model's input, such as an end token."""
    one, other = (encode_answer(tokenizer, prompt, answer, 1 << 30) for answer in ("yes", "no"))
    shared = 0
    while shared < min(len(one), len(other)) and one[-1 - shared] == other[-1 - shared]:
        shared += 1
    return one[len(one) - shared :]
