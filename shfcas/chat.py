"""Prompts as people write them (text, or a list of chat messages) and as each model's own template renders them.

Text is the border between models: the policy, the reward model and the gold model each have their own
tokenizer and template, so nothing but text or messages ever passes from one to another.
"""

from collections.abc import Sequence
from typing import Any

from shfcas.errors import UserError

Message = dict[str, str]
Prompt = str | list[Message]


def check_prompt(prompt: Any, where: str) -> Prompt:
    """Returns the prompt if it is non-empty text or a list of role/content messages; otherwise says where it is."""
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
    raise UserError(f"{where}: a prompt is text or a non-empty list of {{role, content}} messages")


def as_messages(prompt: Prompt) -> list[Message]:
    """The prompt as chat messages; plain text is one user turn."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def plain_text(prompt: Prompt) -> str:
    """The prompt as a person would read it, for pages, lexicons and models without a chat template."""
    return prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)


def render_prompt(tokenizer: Any, prompt: Prompt) -> str:
    """The text that the policy continues: its chat template for messages, plain text as it is."""
    if isinstance(prompt, str):
        return prompt
    if not tokenizer.chat_template:
        raise UserError(
            "the prompts are chat messages, but the policy's tokenizer has no chat template; "
            "give plain text prompts or a tokenizer with a template"
        )
    return tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of a rendered prompt; a chat template already holds its special tokens."""
    text = render_prompt(tokenizer, prompt)
    return tokenizer(text, add_special_tokens=isinstance(prompt, str), verbose=False)["input_ids"]


def encode_answer(tokenizer: Any, prompt: Prompt, completion: str, max_length: int) -> list[int]:
    """Token ids of a prompt and its answer as a reward model sees them, in training and in scoring alike.

    With a chat template: the whole conversation. Without one, a tokenizer with a separator (BERT) gets the
    two texts as a pair, and any other gets them joined by a blank line and ended by its end token.

    Raises:
        UserError: the conversation is longer than `max_length`.
    """
    if tokenizer.chat_template:
        messages = [*as_messages(prompt), {"role": "assistant", "content": completion}]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
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
    """The completion in the shape of its prompt: text for text, one assistant message for messages."""
    return completion if isinstance(prompt, str) else [{"role": "assistant", "content": completion}]


def completion_text(completion: str | Sequence[Message]) -> str:
    """The text of a completion given as text or as messages."""
    return completion if isinstance(completion, str) else "".join(message["content"] for message in completion)
