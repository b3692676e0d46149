"""The tokens of prompts and answers under each model's own tokenizer and chat template.

Models exchange only text or messages: the policy, the reward model and the gold model each have their own tokenizer
and template. A template may trim an answer, cut its reasoning, or wrap it. So an answer is never searched for in a
rendered conversation: the frame around an answer is rendered with a mark in its place, see `answer_frame`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shfcas.data.messages import Completion, Message, Prompt, plain_text
from shfcas.data.templates import answer_frame, conversation, render
from shfcas.utils.errors import UserError

TAG = re.compile(r"</?\w+>")  # of reasoning, such as <think>
OPENED = re.compile(r"(<\w+>)\s*$")  # a tag that a generation prompt opens
NO_LIMIT = 1 << 30

ModelInputs = dict[str, list[int]]


class TooLong(UserError):
    """A prompt with its answer that is longer than a model's limit."""


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
    try:
        _, after = answer_frame(tokenizer, "question")
    except UserError:
        return None
    return _first_special(tokenizer, after)


def _first_special(tokenizer: Any, text: str) -> int | None:
    ids = tokenizer(text.lstrip(), add_special_tokens=False, verbose=False)["input_ids"]
    return ids[0] if ids and ids[0] in special_ids(tokenizer) else None


def special_ids(tokenizer: Any) -> set[int]:
    """Returns the ids of special tokens."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


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
    tokenizer: Any, prompt: Prompt, completion: str, end_ids: set[int], sampled: Sequence[int] | None = None
) -> tuple[list[int], list[int]]:
    """Returns the token ids of a prompt, as in sampling, and of the answer to learn: all of it, then one end token.

    Args:
        tokenizer: the policy's.
        prompt: text or messages.
        completion: the answer. Text follows its prompt without a space between them, as in TRL.
        end_ids: tokens that end an answer. The template's own is learned, or else the tokenizer's end token.
        sampled: token ids of the answer if it was sampled, see `encode_sampled`.

    Raises:
        UserError: the template refuses the answer, an end token occurs inside it, or there is no end token.
    """
    prompt_ids = encode_prompt(tokenizer, prompt)
    if sampled and _are_tokens_of(tokenizer, sampled, completion, end_ids):
        ended = sampled[-1] in end_ids
        return prompt_ids, [*sampled] if ended else [*sampled, _end(tokenizer, turn_end_id(tokenizer), end_ids)]
    completion = following_text(prompt, completion) if sampled else completion  # tokens of another tokenizer
    said, after = (completion, "") if isinstance(prompt, str) else _continuation(tokenizer, prompt, completion)
    for text in tokenizer.convert_ids_to_tokens(sorted(end_ids & special_ids(tokenizer))):
        said = said.removesuffix(text)
    answer = _tokens_behind(tokenizer, prompt, prompt_ids, said)
    if inside := end_ids.intersection(answer):
        raise UserError(
            f"the completion has the end token {tokenizer.decode([min(inside)])!r} inside ({said[:60]!r}), where the "
            "policy would stop; remove it"
        )
    return prompt_ids, [*answer, _end(tokenizer, _first_special(tokenizer, after), end_ids)]


def _continuation(tokenizer: Any, prompt: list[Message], completion: str) -> tuple[str, str]:
    """Returns the text that a policy says behind the rendered prompt to give an answer, and what follows it."""
    prompt_text = render_prompt(tokenizer, prompt)
    before, after = answer_frame(tokenizer, prompt)
    rendered = render(tokenizer, [*prompt, {"role": "assistant", "content": completion}])
    if opened := OPENED.search(prompt_text):  # such as <think>: the policy itself says only what follows
        own, closing = completion.lstrip(), opened[1].replace("<", "</")
        if closing in completion or own.startswith(opened[1]):
            return own.removeprefix(opened[0]).removeprefix(opened[1]), after
    if rendered.endswith(after):
        inner = rendered[: len(rendered) - len(after)]
        for kept in (completion, completion.rstrip(), completion.lstrip(), completion.strip()):  # or as trimmed
            if inner.startswith(prompt_text) and inner[len(prompt_text) :].endswith(kept):
                return inner[len(prompt_text) :], after
            if inner == before + kept:  # the generation prompt says more or less than the turn
                return kept, after
    lead = before.removeprefix(prompt_text) if before.startswith(prompt_text) else ""  # the template rewrote the answer
    return (completion if any(tag in completion for tag in TAG.findall(lead)) else lead + completion), after


def _end(tokenizer: Any, template_end: int | None, end_ids: set[int]) -> int:
    """Returns the token that ends an answer: the template's, or else the tokenizer's."""
    for end in (template_end, tokenizer.eos_token_id, *sorted(end_ids)):
        if end is not None and (not end_ids or end in end_ids):
            return end
    raise UserError("the tokenizer has no end token, so the policy cannot learn to end answers; set eos_token")


def _tokens_behind(tokenizer: Any, prompt: Prompt, prompt_ids: list[int], text: str) -> list[int]:
    """Returns the tokens of a text behind those of a prompt, which stay as they are in sampling.

    Together they decode to the prompt and the text. Where a token would span the seam, the text has tokens of its own.
    """

    def decoded(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    if not text:
        return []
    expected = decoded(prompt_ids) + text
    found = list(_tokenisations(tokenizer, prompt, prompt_ids, text))
    return next((ids for ids in found if decoded(prompt_ids + ids) == expected), found[0])


def _tokenisations(tokenizer: Any, prompt: Prompt, prompt_ids: list[int], text: str) -> Iterator[list[int]]:
    """Yields tokens of a text: behind its prompt, alone, and behind a line break, where SentencePiece adds no space."""

    def ids_of(text: str, special: bool = False) -> list[int]:
        return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

    whole = ids_of(render_prompt(tokenizer, prompt) + text, special=isinstance(prompt, str))
    if isinstance(prompt, str) and whole[-1:] == [tokenizer.eos_token_id]:
        whole = whole[:-1]
    if whole[: len(prompt_ids)] == prompt_ids:
        yield whole[len(prompt_ids) :]
    yield ids_of(text)
    line, both = ids_of("\n"), ids_of(f"\n{text}")
    if both[: len(line)] == line:
        yield both[len(line) :]


def encode_sampled(
    tokenizer: Any, row: Mapping[str, Any], index: int, end_ids: set[int]
) -> tuple[list[int], list[int]]:
    """Returns the token ids of a prompt and of one of its sampled answers, with an end token if it has finished.

    Stored token ids (`completion_ids`) count if they are of this tokenizer, that is, if they decode to the answer. Of
    other answers only the text is known, see `following_text`.

    Args:
        tokenizer: that of the policy to train.
        row: a row of a candidate table.
        index: position of the answer.
        end_ids: tokens that end an answer.

    Raises:
        UserError: see `encode_demonstration`.
    """
    prompt, text = row["prompt"], row["completions"][index]
    sampled = row["completion_ids"][index] if row.get("completion_ids") else None
    if sampled and _are_tokens_of(tokenizer, sampled, text, end_ids):
        return encode_prompt(tokenizer, prompt), list(sampled)
    prompt_ids, answer = encode_demonstration(tokenizer, prompt, following_text(prompt, text), end_ids)
    finished = row["finished"][index] if row.get("finished") else True
    return prompt_ids, answer if finished or len(answer) == 1 else answer[:-1]


def following_text(prompt: Prompt, text: str) -> str:
    """Returns the text of a sampled answer as it follows its prompt.

    Tables keep it without the white space around it. So behind a text prompt that does not end in white space, a space
    comes first.
    """
    return f" {text}" if isinstance(prompt, str) and text and not prompt[-1:].isspace() else text


def _are_tokens_of(tokenizer: Any, ids: Sequence[int], text: str, end_ids: set[int]) -> bool:
    return max(ids) < len(tokenizer) and answer_text(tokenizer, ids, ids[-1] in end_ids) == text


def model_inputs(
    tokenizer: Any, prompt: Prompt, completion: Completion, max_length: int = NO_LIMIT, cut: bool = False
) -> ModelInputs:
    """Returns the inputs of a reward model for a prompt and its answer, the same in training and in scoring.

    With a chat template, the whole conversation is rendered. Without one, a tokenizer with a separator (BERT)
    encodes the two texts as a pair. Any other joins them with a blank line and appends its end token.

    Args:
        tokenizer: the reward model's.
        prompt: text or messages.
        completion: text, or messages if the answer has several turns.
        max_length: maximum number of tokens.
        cut: leave out the first tokens of a longer conversation, behind its leading special token.

    Returns:
        `input_ids`, and `token_type_ids` of a tokenizer that has them.

    Raises:
        TooLong: the conversation is longer than `max_length`, and not to be cut.
        UserError: the template refuses the conversation, or there is none for an answer of several turns.
    """
    end = tokenizer.eos_token_id
    if tokenizer.chat_template:
        encoded = tokenizer(conversation(tokenizer, prompt, completion), add_special_tokens=False, verbose=False)
    elif not isinstance(completion, str):
        raise UserError(
            "an answer has several turns, and the reward model's tokenizer has no chat template to render them: "
            f"{plain_text(prompt)[:60]!r}; give answers as text, or use a model with a chat template"
        )
    elif tokenizer.sep_token_id is not None:
        encoded = tokenizer(plain_text(prompt), completion, verbose=False)
    else:
        encoded = tokenizer(f"{plain_text(prompt)}\n\n{completion}", verbose=False)
        if end is not None and encoded["input_ids"][-1:] != [end]:
            encoded = {name: [*values, end if name == "input_ids" else values[-1]] for name, values in encoded.items()}
    inputs = {name: list(encoded[name]) for name in ("input_ids", "token_type_ids") if name in encoded}
    length = len(inputs["input_ids"])
    if length > max_length and cut:
        kept = int(inputs["input_ids"][0] in special_ids(tokenizer))
        return {name: [*values[:kept], *values[length - max_length + kept :]] for name, values in inputs.items()}
    if length > max_length:
        raise TooLong(
            f"a prompt with its answer has {length} tokens, more than the reward model's limit of {max_length}: "
            f"{plain_text(prompt)[:60]!r}; raise max_length or shorten the prompt"
        )
    return inputs


def encode_answer(tokenizer: Any, prompt: Prompt, completion: Completion, max_length: int = NO_LIMIT) -> list[int]:
    """Returns the token ids of a prompt and its answer for a reward model, see `model_inputs`."""
    return model_inputs(tokenizer, prompt, completion, max_length)["input_ids"]


def answer_suffix_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Returns the tokens after every answer in a reward model's input, such as an end token."""
    one, other = (encode_answer(tokenizer, prompt, answer) for answer in ("yes", "no"))
    shared = 0
    while shared < min(len(one), len(other)) and one[-1 - shared] == other[-1 - shared]:
        shared += 1
    return one[len(one) - shared :]
