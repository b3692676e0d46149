"""HTTP servers that speak OpenAI's chat protocol on a free port: one that does as it is told, one with a real model."""

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import torch

from tests.support.local_server import LocalServer

Request = dict[str, Any]


def said(verdict: str, reason: str = "because") -> str:
    """A reply as it is asked for."""
    return json.dumps({"reason": reason, "verdict": verdict})


def answers(request: Request) -> tuple[str, str]:
    """The texts of answers A and B, found by the marks around them."""
    text = request["messages"][-1]["content"]
    found = [re.search(rf"<<<(\w+) begin of answer {n}>>>\n(.*)\n<<<\1 end of answer {n}>>>", text, re.S) for n in "AB"]
    return found[0][2], found[1][2]  # type: ignore[index]


def longer(request: Request) -> str:
    """A judge that anyone can check: the longer answer is better."""
    a, b = map(len, answers(request))
    return said("TIE" if a == b else "A" if a > b else "B")


@dataclass
class Response:
    """An answer that is not a plain reply.

    Attributes:
        content: what the model says, as text or as a list of parts.
        thoughts: what the server separates from it, as `reasoning_content`.
        status: of HTTP.
        body: sent in place of a chat completion.
        headers: further ones.
        cut: the part of the body that is left out, though it was announced.
        delay: seconds before anything is sent.
        usage: whether tokens are counted.
        finish_reason: why the model stopped.
    """

    content: str | list | None = ""
    status: int = 200
    body: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: float = 0.0
    delay: float = 0.0
    usage: bool = True
    finish_reason: str = "stop"
    thoughts: str | list | None = None


def error(status: int, message: str = "no", code: str | None = None, **headers: str) -> Response:
    """A refusal, in the protocol's shape."""
    body = json.dumps({"error": {"message": message, "code": code, "type": "test"}})
    return Response(status=status, body=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


class JudgeServer(LocalServer):
    """Answers requests by a function of what was sent; counts how many there are at a time.

    Args:
        script: the request to what the model says, or to a Response.
    """

    def __init__(self, script: Callable[[Request], str | Response]) -> None:
        super().__init__()
        self.script = script
        self.at_once = self.most_at_once = 0

    def post(self, handler: BaseHTTPRequestHandler, request: Request, number: int) -> None:
        assert handler.path == "/v1/chat/completions"
        with self.guard:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            response = self.script(request)
        finally:
            with self.guard:
                self.at_once -= 1
        if isinstance(response, str):
            response = Response(response)
        time.sleep(response.delay)
        body = completion(response) if response.body is None else response.body
        self.send(handler, body, response.status, response.headers, response.cut)


def completion(response: Response) -> str:
    message = {"role": "assistant", "content": response.content}
    if response.thoughts is not None:
        message["reasoning_content"] = response.thoughts
    value: dict[str, Any] = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": response.finish_reason}],
    }
    if response.usage:
        value["usage"] = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return json.dumps(value)


class ModelJudge:
    """A causal model that replies: in its own words, or with the likeliest of the replies that are allowed.

    Args:
        folder: the model.
        constrained: whether it is held to them.
    """

    def __init__(self, folder: str, constrained: bool) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.constrained, self.guard = constrained, threading.Lock()

    def __call__(self, request: Request) -> str:
        text = self.tokenizer.apply_chat_template(request["messages"], tokenize=False, add_generation_prompt=True)
        with self.guard, torch.inference_mode():
            if self.constrained:
                return max(map(said, ("A", "B", "TIE")), key=lambda reply: self.likelihood(text, reply))
            ids = self.tokenizer(text, return_tensors="pt", verbose=False)
            made = self.model.generate(**ids, max_new_tokens=min(12, request["max_tokens"]), do_sample=False)
            return self.tokenizer.decode(made[0, ids["input_ids"].shape[1] :])

    def likelihood(self, text: str, reply: str) -> float:
        """Mean log-probability of a reply's tokens."""
        start = len(self.tokenizer(text, verbose=False)["input_ids"])
        ids = torch.tensor([self.tokenizer(text + reply, verbose=False)["input_ids"]])
        logprobs = self.model(ids).logits.log_softmax(-1)[0, start - 1 : -1]
        return float(logprobs.gather(1, ids[0, start:, None]).mean())
