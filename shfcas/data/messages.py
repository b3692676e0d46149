"""Prompts and completions as text or chat messages: one normal form, one identity."""

import json
import re
from typing import Any

from shfcas.utils.config import fingerprint
from shfcas.utils.errors import UserError

Message = dict[str, Any]
Prompt = str | list[Message]
Completion = str | list[Message]

MESSAGES_AS_TEXT = re.compile(r"\s*\[\s*\{\s*\"")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "observation": "tool"}


def check_prompt(prompt: Any, where: str) -> Prompt:
    """Returns the prompt in its normal form, see `normalised`.

    Raises:
        UserError: it is neither non-empty text nor a list of role/content messages.
    """
    prompt = normalised(prompt)
    if isinstance(prompt, str):
        if prompt.strip():
            return prompt
        raise UserError(f"{where}: the prompt is empty")
    if are_messages(prompt):
        return prompt
    raise UserError(f"{where}: expected a prompt that is text or a non-empty list of {{role, content}} messages")


def are_messages(value: Any) -> bool:
    """Returns whether a value is a non-empty list of messages, each with a role and content as text."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in value
        )
    )


def normalised(prompt: Any) -> Any:
    """Returns a prompt or completion in the one form that all stages use; text stays, unless it is messages as JSON.

    Messages lose keys without a value (`name: null`, `tool_calls: []`), which Arrow adds and templates stumble over.
    `from` and `value` (ShareGPT) become `role` and `content`. Content given as parts of text becomes text. A turn that
    only calls tools has empty content.

    >>> normalised([{"from": "human", "value": "hi", "name": None}])
    [{'role': 'user', 'content': 'hi'}]
    """
    if isinstance(prompt, str) and MESSAGES_AS_TEXT.match(prompt):
        try:
            found = normalised(json.loads(prompt))
        except ValueError:
            return prompt
        return found if are_messages(found) else prompt
    if isinstance(prompt, dict) and ("role" in prompt or "from" in prompt):
        prompt = [prompt]
    if not isinstance(prompt, list):
        return prompt
    return [_message(message) if isinstance(message, dict) else message for message in prompt]


def _message(message: dict[str, Any]) -> dict[str, Any]:
    if "from" in message and "value" in message and "role" not in message:
        role = message["from"]
        message = {"role": SHAREGPT_ROLES.get(role, role), "content": message["value"]}
    found = {key: _without_nulls(value) for key, value in message.items()}
    found = {key: value for key, value in found.items() if key == "content" or value not in (None, "", [], {})}
    content = found.get("content")
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        found["content"] = "".join(part["text"] for part in content)
    elif content is None and "tool_calls" in found:
        found["content"] = ""
    return found


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def as_messages(prompt: Prompt) -> list[Message]:
    """Returns the prompt as chat messages; plain text becomes one user turn."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def prompt_key(prompt: Prompt) -> str:
    """Returns a key that is equal for equal prompts, however they are written.

    Text is one user message, and white space around a text does not count; see `normalised` for the rest.

    >>> prompt_key("hi ") == prompt_key([{"role": "user", "content": "hi", "tool_calls": []}])
    True
    """
    messages = as_messages(normalised(prompt))
    return fingerprint([{**message, "content": message["content"].strip()} for message in messages])


def plain_text(prompt: Prompt) -> str:
    """Returns the prompt as readable text, for pages, lexicons and models without a chat template."""
    return prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)


def completion_message(prompt: Prompt, completion: Completion) -> Completion:
    """Returns a completion in the format of its prompt: text, or one assistant message; several turns stay."""
    if isinstance(prompt, str) or not isinstance(completion, str):
        return completion
    return [{"role": "assistant", "content": completion}]


def completion_text(completion: Completion) -> str:
    """Returns the text of a completion given as text or as messages."""
    return completion if isinstance(completion, str) else "".join(message["content"] for message in completion)


def plain_completion(completion: Completion) -> Completion:
    """Returns the text of a completion of one plain assistant turn; several turns, or tool calls, stay messages."""
    if isinstance(completion, str):
        return completion
    turns = normalised(completion)
    plain = len(turns) == 1 and turns[0].keys() == {"role", "content"} and turns[0]["role"] == "assistant"
    return turns[0]["content"] if plain else turns


def answer_key(completion: Completion) -> str:
    """Returns a key that is equal for equal completions."""
    return completion if isinstance(completion, str) else fingerprint(normalised(completion))
