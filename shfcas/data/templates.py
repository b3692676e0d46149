"""Chat templates: messages as the text that a model reads, on any day the same."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from shfcas.data.messages import Completion, Message, Prompt, as_messages, normalised, plain_text
from shfcas.utils.errors import UserError
from shfcas.utils.files import read_text

# Chat template for base models without one: each message follows the name of its role; an end token ends answers.
PLAIN_TEMPLATE = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)

PINNED_DATE = datetime(2024, 7, 26, 12)  # the date that Llama 3's template writes where it knows none
_parts: dict[str, bool] = {}  # by template


def set_chat_template(tokenizer: Any, template: str) -> None:
    """Sets the chat template of a tokenizer: `plain`, or the content of a Jinja file."""
    if template == "plain" and tokenizer.eos_token is None:
        raise UserError("chat_template: expected a tokenizer with an end token for plain, got none; set eos_token")
    tokenizer.chat_template = template_text(template)


def template_text(template: str) -> str:
    """Returns the chat template named `plain`, or the content of a Jinja file."""
    return PLAIN_TEMPLATE if template == "plain" else read_text(Path(template).expanduser())


def render(tokenizer: Any, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    """Renders messages with the tokenizer's chat template, on the same date whatever the day.

    Raises:
        UserError: the template rejects them (many allow no system turn, or require alternating roles), or drops text.
    """
    template = tokenizer.get_chat_template()
    pin_date(template)
    plain: list[Message] = normalised(list(messages))
    if _takes_parts(tokenizer, template):
        plain = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in plain]
    return _apply(tokenizer, plain, add_generation_prompt)


def _apply(tokenizer: Any, messages: list[Any], add_generation_prompt: bool = False) -> str:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        roles = ", ".join(message["role"] for message in messages)
        text = plain_text(normalised(messages))[:60]
        raise UserError(
            f"the chat template of {tokenizer.name_or_path or 'the tokenizer'} rejects a conversation of {roles} "
            f"({' '.join(str(error).split())[:120]}): {text!r}; change its roles"
        ) from error


def _takes_parts(tokenizer: Any, template: str) -> bool:
    """Returns whether a template, as of many vision models, drops content that is not given as a list of parts."""
    if template not in _parts:
        probe = "question"

        def shown(content: Any) -> str:
            try:
                return _apply(tokenizer, [{"role": "user", "content": content}])
            except UserError:
                return ""

        parts = shown([{"type": "text", "text": probe}])
        _parts[template] = probe not in shown(probe) and probe in parts and "'text'" not in parts
    return _parts[template]


def pin_date(template: str, date: datetime = PINNED_DATE) -> None:
    """Sets the date that a chat template writes as today's, in this process: a text has the same tokens on any day."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    _compile_jinja_template(template).globals["strftime_now"] = date.strftime


def writes_date(tokenizer: Any) -> bool:
    """Returns whether the chat template's text depends on the date: it is rendered under two dates."""
    template = tokenizer.get_chat_template() if tokenizer.chat_template else ""
    if "strftime_now" not in template:
        return False
    texts = set()
    for date in (PINNED_DATE, PINNED_DATE + timedelta(days=400, hours=7)):
        pin_date(template, date)
        try:
            texts.add(_apply(tokenizer, [{"role": "user", "content": "question"}], add_generation_prompt=True))
        except UserError:
            return False
        finally:
            pin_date(template)
    return len(texts) > 1


def answer_frame(tokenizer: Any, prompt: Prompt) -> tuple[str, str]:
    """Returns the text that a chat template writes before and after an answer to a prompt.

    Raises:
        UserError: the template refuses the conversation, or does not write an answer exactly once.
    """
    messages, number = as_messages(prompt), 0
    while (mark := f"answer{number}mark") in plain_text(messages):
        number += 1
    text = render(tokenizer, [*messages, {"role": "assistant", "content": mark}])
    if text.count(mark) != 1:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path or 'the tokenizer'} writes an answer {text.count(mark)} "
            "times, expected once; use another chat template"
        )
    before, _, after = text.partition(mark)
    return before, after


def conversation(tokenizer: Any, prompt: Prompt, completion: Completion) -> str:
    """Returns the text that a reward model with a chat template reads: the whole answer, also if the template cuts it.

    Raises:
        UserError: the template refuses the conversation, or drops a turn of the answer.
    """
    messages = as_messages(prompt)
    if not isinstance(completion, str):
        text = render(tokenizer, [*messages, *completion])
        lost = [m["role"] for m in normalised(completion) if m["content"].strip() not in text]
        if lost:
            raise UserError(
                f"the chat template of {tokenizer.name_or_path or 'the tokenizer'} drops a turn of {lost[0]} in an "
                f"answer of several turns: {plain_text(messages)[:60]!r}; use another template"
            )
        return text
    text = render(tokenizer, [*messages, {"role": "assistant", "content": completion}])
    inside = completion.strip()
    if not inside or (inside in text and not any(inside in message["content"] for message in messages)):
        return text
    before, after = answer_frame(tokenizer, prompt)
    return text if text.count(inside) > (before + after).count(inside) else before + completion + after
