"""Answers from a server of OpenAI's completions protocol, such as `vllm serve`.

The server gets token ids, or text that was rendered here. It never gets messages, so its chat template plays no part.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from shfcas.sampling.protocol import Answer, Request
from shfcas.utils.errors import UserError
from shfcas.utils.http import Endpoint
from shfcas.utils.http_client import BadReply, Client, GaveUp, Refused, RequestError

if TYPE_CHECKING:
    from shfcas.sampling.config import SamplingConfig, ServerConfig

logger = logging.getLogger(__name__)

URL, KEY = "SHFCAS_SERVER_URL", "VLLM_API_KEY"
LARGEST_REPLY = 2**28  # bytes: a token takes about 100, so 2.6 million tokens
VERSION_TIMEOUT = 10.0  # seconds

Value = TypeVar("Value")

# Scripts, digits, spaces and a symbol, which tokenizers split in their own ways.
PROBE = 'The 3 cafés\' "naïve" prices: 12,50 €\n\tdéjà vu? 你好, мир! \U0001f600 {x: 100000}'


class ServerGenerator:
    """Draws answers at a server, several requests at a time.

    Args:
        config: sampling parameters, and the server in `config.server`.
        policy: the policy's name here, and at the server unless `config.server.model` names another.
        end_ids: tokens that end an answer.

    Raises:
        UserError: the server cannot be reached, or serves no model of that name.
    """

    def __init__(self, config: "SamplingConfig", policy: str, end_ids: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.config, self.settings, self.end_ids = config, config.server, sorted(end_ids)
        self.endpoint = _endpoint(config.server)
        self.client = Client(
            self.endpoint,
            timeout=config.server.timeout,
            max_retries=config.server.max_retries,
            retry_wait=config.server.retry_wait,
            concurrency=config.server.concurrency,
            max_reply_bytes=LARGEST_REPLY,
        )
        self.model = config.server.model or policy
        names = self._models()
        if names is not None and self.model not in names:
            raise UserError(
                f"{self.endpoint.host} serves {self.endpoint.quote(', '.join(names))}, not {self.model}; "
                "start it with the policy, or set sampling.server.model to its name there"
            )

    def _models(self) -> list[str] | None:
        """Returns the names of the models at the server; None if it has no such list."""
        try:
            return self._ask("GET", "/models", None, lambda reply: [str(card["id"]) for card in reply["data"]])
        except Refused as error:
            if error.failure.status in (404, 405):
                return None
            raise
        except (LookupError, TypeError):
            raise UserError(f"{self.endpoint.url} is no completions server: it lists no models") from None

    def __call__(self, requests: Sequence[Request]) -> Iterator[list[Answer]]:
        """Yields the answers to each request, in the given order.

        If the caller stops early, or a request fails, the requests under way are ended at once.
        """
        stop = threading.Event()
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            try:
                yield from pool.map(lambda request: self._draw(request, stop), requests)
            finally:
                stop.set()
                self.client.cancel()
                pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Closes the connections."""
        self.client.close()

    def identity(self) -> dict[str, Any]:
        """Returns the generator's name and, if the server tells it, its version.

        vLLM tells it at `/version`. Other servers may answer anything there; then the version is unknown.
        """
        try:
            url = f"{self.endpoint.root}/version"
            reply: Any = self.client.request("GET", url, timeout=VERSION_TIMEOUT, max_retries=1)
        except RequestError:
            reply = None
        version = reply.get("version") if isinstance(reply, dict) else None
        known = isinstance(version, str) and version.strip()
        return {"name": "openai", "server": f"vllm {self.endpoint.quote(version)}" if known else None}

    def repeats(self) -> bool:
        """Whether two requests with one seed get the same answer, by trying it."""
        body = self._body(PROBE, 2**31 - 1, 1, 16) | {"temperature": 2.0, "top_p": 1.0}
        first, second = (self._complete(body, lambda reply: self._read(reply, 1)) for _ in range(2))
        same = (first[0].tokens, first[0].text) == (second[0].tokens, second[0].text)
        if not same:
            logger.warning(
                "%s draws other answers for the same seed: this table cannot be repeated", self.endpoint.host
            )
        return same

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Compares how the server and the policy's tokenizer split a text, if the server tells it.

        Raises:
            UserError: they differ, so the server has another model.
        """
        body = self._body(PROBE, 0, 1, 1) | {"add_special_tokens": False}
        theirs = self._complete(body, _prompt_tokens)
        ours = tokenizer(PROBE, add_special_tokens=False, verbose=False)["input_ids"]
        if theirs is not None and theirs != ours:
            at = next(
                (i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(map(len, (theirs, ours)))
            )
            raise UserError(
                f"{self.endpoint.host} splits text into other tokens than the policy's tokenizer (token {at}: "
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
            answers, seen = self._read(reply, request.count), _prompt_tokens(reply)
            if seen is not None and seen != request.prompt:
                raise UserError(
                    f"{self.endpoint.host} read a prompt as other tokens than the policy's tokenizer gives "
                    f"({len(seen)} there, {len(request.prompt)} here): {request.text[:60]!r}; "
                    "set sampling.server.prompts to tokens, or start the server with the policy"
                )
            return answers

        return self._complete(body, read, stop)

    def _complete(
        self, body: dict[str, Any], read: Callable[[Any], Value], stop: threading.Event | None = None
    ) -> Value:
        return self._ask("POST", "/completions", body, read, stop)

    def _ask(
        self, method: str, path: str, body: Any, read: Callable[[Any], Value], stop: threading.Event | None = None
    ) -> Value:
        try:
            return self.client.request(method, f"{self.endpoint.url}{path}", body, read, stop)
        except GaveUp as error:
            raise UserError(
                f"{error}; finished shards are kept: run the same command again when the server is well"
            ) from None

    def _body(self, prompt: str | list[int], seed: int, count: int, max_tokens: int) -> dict[str, Any]:
        """Returns a request with every sampling parameter; a server may fill others from the model's own settings."""
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
        """Returns the answers in a reply that ought to be a completion."""
        try:
            choices = sorted(reply["choices"], key=lambda choice: choice["index"])
            answers = [self._answer(choice) for choice in choices]
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError):
            raise BadReply("the reply is not a completion") from None
        if len(answers) != count:
            raise BadReply(f"the reply has {len(answers)} answers of {count}")
        return answers

    def _answer(self, choice: dict[str, Any]) -> Answer:
        reason, tokens = choice["finish_reason"], choice.get("token_ids")
        if reason not in ("stop", "length"):
            raise BadReply(f"the server ended an answer for the reason {self.endpoint.quote(repr(reason))}")
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
        if tokens is not None and logprobs is not None and len(tokens) != len(logprobs):
            raise ValueError
        end = choice.get("stop_reason")
        return Answer(
            finished=reason == "stop",
            tokens=None if tokens is None else [int(token) for token in tokens],
            text=self.endpoint.key.hide(str(choice["text"])),
            end=end if isinstance(end, int) else None,
            logprobs=None if logprobs is None else [float(value) for value in logprobs],
        )


def _endpoint(settings: "ServerConfig") -> Endpoint:
    """Returns the server's address and key.

    Raises:
        UserError: no address is set, or it is not one.
    """
    url = settings.base_url or os.environ.get(URL)
    if not url:
        raise UserError(f"sampling.server.base_url: missing; set it, or {URL}, to the address of a completions server")
    return Endpoint(url, "sampling.server.base_url" if settings.base_url else URL, KEY)


def _prompt_tokens(reply: Any) -> list[int] | None:
    """Returns the tokens that the server read as the prompt; None if it does not tell them."""
    try:
        tokens = reply["choices"][0].get("prompt_token_ids")
        return None if tokens is None else [int(token) for token in tokens]
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError):
        raise BadReply("the reply is not a completion") from None
