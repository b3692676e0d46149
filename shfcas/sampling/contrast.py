"""The contrast: how much likelier a completion is under a good instruction than under a bad one.

    contrast(y | x) = log p(y | x, good) - log p(y | x, bad)

Nothing is trained: the policy, or another causal model, is asked through its probabilities under a principle that
people state in words, such as their annotation guidelines. Contrastive prompts as a model's own reward: Yang et al.
2023 (RLCD, arXiv 2307.12950), Liu et al. 2024 (DLMA, arXiv 2402.11907).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from shfcas.data.chat import encode_prompt, end_token_ids
from shfcas.data.messages import Message, Prompt, as_messages
from shfcas.data.templates import render
from shfcas.models.loading import context_length
from shfcas.utils.config import Options, fingerprint, option, unexpected
from shfcas.utils.errors import UserError
from shfcas.utils.files import read_text

PREFIX = "contrast_"  # of the columns, one per principle
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
    model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], *, principles: Sequence[Principle], batch_size: int = 64
) -> Iterator[dict[str, list[float]]]:
    """Yields the contrasts of each row's completions.

    The prompt is read once for all of its completions, so both passes together cost less than scoring prompt and
    completion once each where completions are no longer than prompts.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        rows: rows with `prompt_id`, `prompt`, `completions` and, where known, `finished`.
        principles: instruction pairs.
        batch_size: completions per forward pass.

    Yields:
        A list per principle, by the name of its column: log p(y | x, good) - log p(y | x, bad) in nats, summed over
        the completion's tokens. A finished completion includes the token that ends it.

    Raises:
        UserError: a prompt and its completion are longer than the model's context.
    """
    ends, texts = end_token_ids(model, tokenizer), {p.column: p.texts() for p in principles}
    for row in rows:
        finished = row.get("finished") or [True] * len(row["completions"])
        pairs = zip(row["completions"], finished, strict=True)
        completions = [completion_ids(tokenizer, text, ends, done) for text, done in pairs]
        found = {}
        for column, instructions in texts.items():
            good, bad = (
                _logprobs(model, tokenizer, row, instruction=text, completions=completions, batch_size=batch_size)
                for text in instructions
            )
            found[column] = (good - bad).tolist()
        yield found


def _logprobs(
    model: Any,
    tokenizer: Any,
    row: dict[str, Any],
    *,
    instruction: str,
    completions: Sequence[list[int]],
    batch_size: int,
) -> torch.Tensor:
    """Log-probability of each completion under an instruction, shape (len(completions),); equal ones are read once."""
    prompt = encode_prompt(tokenizer, with_instruction(tokenizer, row["prompt"], instruction))
    _check_length(model, prompt, completions, row["prompt_id"])
    places = {ids: place for place, ids in enumerate(dict.fromkeys(map(tuple, completions)))}
    unique = [list(ids) for ids in places]
    parts = (unique[start : start + batch_size] for start in range(0, len(unique), batch_size))
    values = torch.cat([completion_logprobs(model, prompt, part) for part in parts])
    return values[[places[tuple(ids)] for ids in completions]]


def completion_ids(tokenizer: Any, text: str, ends: set[int], finished: bool) -> list[int]:
    """Token ids of a completion's text; a finished one is closed by the tokenizer's end token."""
    ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    if finished and ends:
        ids.append(tokenizer.eos_token_id if tokenizer.eos_token_id in ends else min(ends))
    return ids


@torch.inference_mode()
def completion_logprobs(model: Any, prompt: list[int], completions: Sequence[list[int]]) -> torch.Tensor:
    """Log-probability of each completion after one prompt, which is read once.

    Args:
        model: a causal language model. One without a key-value cache reads the prompt again for each completion.
        prompt: token ids; at least one.
        completions: token ids of each completion; an empty one has log-probability 0.

    Returns:
        Sums of log-probabilities in nats at temperature 1, shape (len(completions),), float64, on the CPU.
    """
    from transformers import DynamicCache

    count, width = len(completions), max(map(len, completions), default=0)
    if width == 0:
        return torch.zeros(count, dtype=torch.float64)
    device = model.device
    ids = torch.zeros(count, width, dtype=torch.long, device=device)
    mask = torch.zeros(count, width, dtype=torch.long, device=device)
    for row, tokens in enumerate(completions):
        ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        mask[row, : len(tokens)] = 1
    first = model(input_ids=torch.tensor([prompt], device=device), use_cache=True)
    cache = first.past_key_values
    if isinstance(cache, DynamicCache):
        cache.batch_repeat_interleave(count)
        seen = torch.ones(count, len(prompt), dtype=torch.long, device=device)
        rest = model(input_ids=ids, attention_mask=torch.cat([seen, mask], dim=1), past_key_values=cache)
        logits = torch.cat([first.logits[:, -1:].expand(count, -1, -1), rest.logits[:, :-1]], dim=1)
    else:
        whole = torch.cat([torch.tensor([prompt], device=device).expand(count, -1), ids], dim=1)
        logits = model(input_ids=whole).logits[:, len(prompt) - 1 : -1]
    chosen = logits.gather(-1, ids[..., None]).squeeze(-1).float() - logits.float().logsumexp(-1)
    return (chosen.double() * mask).sum(dim=1).cpu()


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
