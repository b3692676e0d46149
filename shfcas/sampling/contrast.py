"""The contrast: how much likelier a completion is under a good instruction than under a bad one.

    contrast(y | x) = log p(y | x, good) - log p(y | x, bad)

Nothing is trained: the policy, or another causal model, is asked through its probabilities under a principle that
people state in words, such as their annotation guidelines. Contrastive prompts as a model's own reward: Yang et al.
2023 (RLCD, arXiv 2307.12950), Liu et al. 2024 (DLMA, arXiv 2402.11907).
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from shfcas.data.candidates import CONTRAST_PREFIX
from shfcas.data.chat import encode_prompt, end_token_ids
from shfcas.data.messages import Message, Prompt, as_messages
from shfcas.data.templates import render
from shfcas.models.loading import context_length, has_key_value_cache
from shfcas.ops.logprobs import token_logprobs
from shfcas.rewards.scorers import padded
from shfcas.utils.config import Options, fingerprint, option, unexpected
from shfcas.utils.errors import UserError
from shfcas.utils.files import read_text

PREFIX = CONTRAST_PREFIX  # of the columns, one per principle
OPPOSITE = "Do the opposite of what these instructions ask for."
TEXT_FILES = (".md", ".txt")


@dataclass
class Principle(Options):
    """Two instructions that ask for opposite completions."""

    good: str = option("", "instruction that asks for what people want: a text, or a .md or .txt file")
    bad: str | None = option(None, "instruction that asks for the opposite (none: to do the opposite of good)")

    def texts(self) -> tuple[str, str]:
        """Returns both instructions; the content of a file stands for its name.

        Raises:
            UserError: a file cannot be read or is empty, or both instructions are the same.
        """
        good = _text(self.good)
        bad = f"{OPPOSITE}\n\n{good}" if self.bad is None else _text(self.bad)
        if good == bad:
            raise unexpected("principles", "two instructions that differ", good, "the contrast of equal texts is 0")
        return good, bad

    @property
    def column(self) -> str:
        """Name of the column of its contrasts, which depends on both texts."""
        return f"{PREFIX}{fingerprint(self.texts())[:8]}"


def _text(text_or_file: str) -> str:
    named = text_or_file.endswith(TEXT_FILES) and "\n" not in text_or_file
    text = (read_text(text_or_file) if named else text_or_file).strip()
    if not text:
        raise unexpected("principles", "an instruction", text_or_file, "write a sentence, or name a file with one")
    return text


def with_instruction(tokenizer: Any, prompt: Prompt, instruction: str) -> Prompt:
    """Adds an instruction to a prompt: to its system turn, or in front of the first user turn.

    The second way is for templates that refuse or drop a system turn. A plain text prompt gets the instruction in
    front, separated by a blank line.

    Raises:
        UserError: the template shows the instruction in neither place.
    """
    if isinstance(prompt, str):
        return f"{instruction}\n\n{prompt}"
    messages = as_messages(prompt)
    for changed in (_in_system_turn(messages, instruction), _in_user_turn(messages, instruction)):
        try:
            if instruction in render(tokenizer, changed, add_generation_prompt=True):
                return changed
        except UserError:
            continue
    raise UserError(
        f"principles: the chat template of {tokenizer.name_or_path or 'the policy'} drops the instruction "
        f"{instruction[:60]!r}; use another template or another instruction"
    )


def contrasts(
    model: Any,
    tokenizer: Any,
    rows: Sequence[dict[str, Any]],
    *,
    principles: Sequence[Principle],
    batch_tokens: int = 1024,
) -> Iterator[dict[str, list[float]]]:
    """Yields the contrasts of each row's completions.

    A prompt is read once per instruction for all of its completions, so both passes together cost less than scoring
    prompt and completion once each where completions are no longer than prompts.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        rows: rows with `prompt_id`, `prompt`, `completions` and, where known, `finished`.
        principles: instruction pairs.
        batch_tokens: tokens of completions per forward pass, with their padding; limits the memory of the logits.

    Yields:
        A list per principle, by the name of its column: log p(y | x, good) - log p(y | x, bad) in nats, summed over
        the completion's tokens. A finished completion includes the token that ends it.

    Raises:
        UserError: a prompt and its completion are longer than the model's context.
    """
    ends, texts = end_token_ids(model, tokenizer), {p.column: p.texts() for p in principles}
    waiting: list[tuple[dict[str, Any], list[list[int]]]] = []
    for row in rows:
        finished = row.get("finished") or [True] * len(row["completions"])
        pairs = zip(row["completions"], finished, strict=True)
        completions = [completion_ids(tokenizer, text, ends, done) for text, done in pairs]
        if waiting and 2 * len(texts) * _padded_tokens([*waiting, (row, completions)]) > batch_tokens:
            yield from _contrasts_of(model, tokenizer, waiting, texts)
            waiting = []
        waiting.append((row, completions))
    if waiting:
        yield from _contrasts_of(model, tokenizer, waiting, texts)


def _padded_tokens(group: Sequence[tuple[dict[str, Any], list[list[int]]]]) -> int:
    everything = [ids for _, completions in group for ids in completions]
    return len(everything) * max(map(len, everything), default=0)


def _contrasts_of(
    model: Any,
    tokenizer: Any,
    group: Sequence[tuple[dict[str, Any], list[list[int]]]],
    texts: dict[str, tuple[str, str]],
) -> Iterator[dict[str, list[float]]]:
    """Yields the contrasts of a few rows, which are scored together; equal completions of a row are scored once."""
    prompts, completions, places = [], [], []
    for row, ids in group:
        unique = {key: place for place, key in enumerate(dict.fromkeys(map(tuple, ids)))}
        places.append([unique[tuple(one)] for one in ids])
        for instruction in (text for pair in texts.values() for text in pair):
            prompt = encode_prompt(tokenizer, with_instruction(tokenizer, row["prompt"], instruction))
            _check_length(model, prompt, ids, row["prompt_id"])
            prompts.append(prompt)
            completions.append([list(key) for key in unique])
    found = iter(completion_logprobs(model, prompts, completions))
    for which in places:
        yield {column: (next(found) - next(found))[which].tolist() for column in texts}


def completion_ids(tokenizer: Any, text: str, ends: set[int], finished: bool) -> list[int]:
    """Token ids of a completion's text; a finished one is closed by the tokenizer's end token."""
    ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    if finished and ends:
        ids.append(tokenizer.eos_token_id if tokenizer.eos_token_id in ends else min(ends))
    return ids


@torch.inference_mode()
def completion_logprobs(
    model: Any, prompts: Sequence[list[int]], completions: Sequence[Sequence[list[int]]]
) -> list[torch.Tensor]:
    """Log-probability of each completion after its prompt; each prompt is read once.

    Args:
        model: a causal language model. One without a key-value cache reads the prompt again for each completion.
        prompts: token ids of each prompt; at least one.
        completions: token ids of the completions of each prompt; an empty one has log-probability 0.

    Returns:
        Per prompt, sums of log-probabilities in nats at temperature 1, shape (number of completions,), float64, on the
        CPU.
    """
    from transformers import DynamicCache

    flat, counts = [ids for group in completions for ids in group], [len(group) for group in completions]
    which = torch.arange(len(prompts)).repeat_interleave(torch.tensor(counts)).to(model.device)
    width = max(map(len, flat), default=0)
    if width == 0:
        return [torch.zeros(count, dtype=torch.float64) for count in counts]
    before = padded(prompts, 0, model.device, "left")
    after = padded(flat, 0, model.device)
    ids, inside = after["input_ids"], after["attention_mask"]
    cache = DynamicCache(config=model.config.get_text_config(decoder=True)) if has_key_value_cache(model) else None
    if cache is not None:
        first = _forward(model, before["input_ids"], before["attention_mask"], kept=1, past_key_values=cache)
        cache.batch_select_indices(which)
        mask = torch.cat([before["attention_mask"][which], inside], dim=1)
        rest = _forward(model, ids, mask, kept=width, past_key_values=cache)
        logprobs = torch.cat(
            [token_logprobs(first[which, -1:], ids[:, :1]), token_logprobs(rest[:, :-1], ids[:, 1:])], dim=1
        )
    else:
        whole = torch.cat([before["input_ids"][which], ids], dim=1)
        mask = torch.cat([before["attention_mask"][which], inside], dim=1)
        logprobs = token_logprobs(_forward(model, whole, mask, kept=width + 1)[:, :-1], ids)
    return list((logprobs.double() * inside).sum(dim=1).cpu().split(counts))


def _forward(model: Any, ids: torch.Tensor, mask: torch.Tensor, *, kept: int, **options: Any) -> torch.Tensor:
    """Logits of the last `kept` positions; `mask` also covers what is in a cache."""
    accepted = inspect.signature(model.forward).parameters
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    where = {"position_ids": positions} if "position_ids" in accepted else {}
    few = {"logits_to_keep": kept} if "logits_to_keep" in accepted else {}
    use = {"use_cache": True} if options else {}
    return model(input_ids=ids, attention_mask=mask, **where, **few, **use, **options).logits[:, -kept:]


def _in_system_turn(messages: Sequence[Message], instruction: str) -> list[Message]:
    if messages and messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{instruction}".strip()}
        return [first, *messages[1:]]
    return [{"role": "system", "content": instruction}, *messages]


def _in_user_turn(messages: Sequence[Message], instruction: str) -> list[Message]:
    position = next((i for i, message in enumerate(messages) if message["role"] == "user"), 0)
    changed = {**messages[position], "content": f"{instruction}\n\n{messages[position]['content']}"}
    return [*messages[:position], changed, *messages[position + 1 :]]


def _check_length(model: Any, prompt: list[int], completions: Sequence[list[int]], prompt_id: str) -> None:
    length, limit = len(prompt) + max(map(len, completions), default=0), context_length(model)
    if length > limit:
        raise UserError(
            f"prompt {prompt_id!r}: with its principle and its longest completion it has {length} tokens, and the "
            f"model's context has {limit}; shorten the principle or the prompt"
        )
