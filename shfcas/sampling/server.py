"""Answers from a server of OpenAI's completions protocol, such as `vllm serve`.

The server gets token ids (or text that we rendered), never messages, so that no template of its own comes in.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from shfcas.sampling.client import CompletionsClient, Trouble
from shfcas.sampling.protocol import Answer, Request
from shfcas.utils.errors import UserError

if TYPE_CHECKING:
    from shfcas.sampling.config import SamplingConfig

logger = logging.getLogger(__name__)

# Scripts, digits, spaces and a symbol, which tokenizers split in their own ways.
PROBE = 'The 3 cafés\' "naïve" prices: 12,50 €\n\tdéjà vu? 你好, мир! \U0001f600 {x: 100000}'


class ServerGenerator:
    """Draws answers at a server, several requests at a time.

    Args:
        config: sampling parameters, and the server in `config.server`.
        policy: the policy's name, under which the server knows it unless `config.server.model` says otherwise.
        end_ids: tokens that end an answer.

    Raises:
        UserError: the server cannot be reached, or serves no model of that name.
    """

    def __init__(self, config: "SamplingConfig", policy: str, end_ids: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.config, self.settings, self.end_ids = config, config.server, sorted(end_ids)
        self.client = CompletionsClient(config.server)
        self.model = config.server.model or policy
        listed = self.client.get(f"{self.client.url}/models")
        try:
            names = [card["id"] for card in listed["data"]] if listed is not None else [self.model]
        except (LookupError, TypeError):
            raise UserError(f"{self.client.url} is no completions server: it lists no models") from None
        if self.model not in names:
            raise UserError(
                f"{self.client.host} serves {', '.join(map(str, names))[:200]}, not {self.model}; "
                "start it with the policy, or say what it calls it (sampling.server.model)"
            )

    def __call__(self, requests: Sequence[Request]) -> Iterator[list[Answer]]:
        """Yields the answers to each request, in the given order."""
        stop = threading.Event()
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            try:
                yield from pool.map(lambda request: self._draw(request, stop), requests)
            finally:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Nothing is held."""

    def identity(self) -> dict[str, Any]:
        """The generator's name and, where the server tells it, its version."""
        said = self.client.get(f"{self.client.root}/version")
        version = said.get("version") if isinstance(said, dict) else None
        return {"name": "openai", "server": f"vllm {version}" if version else None}

    def repeats(self) -> bool:
        """Whether two requests with one seed got the same answer, when this was tried just now."""
        body = self._body(PROBE, 2**31 - 1, 1, 16) | {"temperature": 2.0, "top_p": 1.0}
        first, second = (self.client.complete(body, lambda reply: self._read(reply, 1)) for _ in range(2))
        same = (first[0].tokens, first[0].text) == (second[0].tokens, second[0].text)
        if not same:
            logger.warning("%s draws other answers for the same seed: this table cannot be repeated", self.client.host)
        return same

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Compares how the server and the policy's tokenizer split a text, where the server says it.

        Raises:
            UserError: they differ, so the server has another model.
        """
        body = self._body(PROBE, 0, 1, 1) | {"add_special_tokens": False}
        theirs = self.client.complete(body, lambda reply: reply["choices"][0].get("prompt_token_ids"))
        ours = tokenizer(PROBE, add_special_tokens=False, verbose=False)["input_ids"]
        if theirs is not None and theirs != ours:
            at = next(
                (i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(map(len, (theirs, ours)))
            )
            raise UserError(
                f"{self.client.host} splits text into other tokens than the policy's tokenizer (token {at}: "
                f"{theirs[at : at + 1]} there, {ours[at : at + 1]} here): {self.model} there is another model; "
                "start the server with the policy"
            )

    def _draw(self, request: Request, stop: threading.Event) -> list[Answer]:
        tokens = self.settings.prompts == "tokens"
        body = self._body(
            request.prompt if tokens else request.text, request.seed, request.count, self.config.max_new_tokens
        )
        if not tokens:
            body["add_special_tokens"] = request.special

        def read(reply: Any) -> list[Answer]:
            answers = self._read(reply, request.count)
            seen = reply["choices"][0].get("prompt_token_ids")
            if seen is not None and seen != request.prompt:
                raise UserError(
                    f"{self.client.host} read a prompt as other tokens than the policy's tokenizer gives "
                    f"({len(seen)} there, {len(request.prompt)} here): {request.text[:60]!r}; "
                    "set sampling.server.prompts to tokens, or start the server with the policy"
                )
            return answers

        return self.client.complete(body, read, stop)

    def _body(self, prompt: str | list[int], seed: int, count: int, max_tokens: int) -> dict[str, Any]:
        """A request; what it leaves open a server may fill from the model's generation config, so it leaves nothing."""
        return {
            "model": self.model,
            "prompt": prompt,
            "n": count,
            "seed": seed,
            "max_tokens": max_tokens,
            "temperature": self.config.temperature,
            "top_p": self.config.top_p,
            "top_k": self.config.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": self.end_ids,
            "logprobs": 1,
            "echo": False,
            "stream": False,
            "return_token_ids": True,
        }

    def _read(self, reply: Any, count: int) -> list[Answer]:
        """The answers in a reply that ought to be a completion."""
        try:
            choices = sorted(reply["choices"], key=lambda choice: choice["index"])
            answers = [_answer(choice) for choice in choices]
        except (LookupError, TypeError, AttributeError, ValueError):
            raise Trouble("the reply is not a completion") from None
        if len(answers) != count:
            raise Trouble(f"the reply has {len(answers)} answers of {count}")
        return answers


def _answer(choice: dict[str, Any]) -> Answer:
    reason, tokens = choice["finish_reason"], choice.get("token_ids")
    if reason not in ("stop", "length"):
        raise Trouble(f"the server ended an answer for the reason {reason!r}")
    logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
    if tokens is not None and logprobs is not None and len(tokens) != len(logprobs):
        raise ValueError
    end = choice.get("stop_reason")
    return Answer(
        finished=reason == "stop",
        tokens=None if tokens is None else [int(token) for token in tokens],
        text=str(choice["text"]),
        end=end if isinstance(end, int) else None,
        logprobs=None if logprobs is None else [float(value) for value in logprobs],
    )
