"""An HTTP server that speaks vLLM's completions protocol and runs a real model, on a free port."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import torch

from tests.support.local_server import LocalServer

Request = dict[str, Any]


@dataclass
class Fault:
    """A reply that is not a completion.

    Attributes:
        status: of HTTP.
        body: what is sent; None goes on to the completion after `delay`.
        headers: further ones.
        cut: the connection is closed in the middle of the body.
        delay: seconds before anything is sent.
    """

    status: int = 500
    body: str | None = '{"error": {"message": "engine trouble", "type": "test"}}'
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    delay: float = 0.0


class CompletionsServer(LocalServer):
    """A model at `url`, as `vllm serve` offers it.

    Args:
        folder: the model.
        name: what it is called.
        trouble: a fault for a request, or None; it is asked with the request and its number.
        vllm: whether it knows vLLM's additions: token ids, further sampling parameters, a version.
        seeds: whether seeds count.
        logprob_shift: added to each log-probability, as if another model had been served.
        longest: an answer is cut after so many tokens, as where the context is too short.
    """

    def __init__(
        self,
        folder: str,
        name: str = "policy",
        trouble: Callable[[Request, int], Fault | None] = lambda request, number: None,
        vllm: bool = True,
        seeds: bool = True,
        logprob_shift: float = 0.0,
        longest: int = 128,
    ) -> None:
        super().__init__()
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.name, self.trouble, self.vllm, self.seeds = name, trouble, vllm, seeds
        self.logprob_shift, self.longest = logprob_shift, longest
        self.version = "0.0.test"
        self.drawn = 0

    def get(self, handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/v1/models":
            self.send(handler, {"object": "list", "data": [{"id": self.name, "object": "model"}]})
        elif handler.path == "/version" and self.vllm:
            self.send(handler, {"version": self.version})
        else:
            super().get(handler)

    def post(self, handler: BaseHTTPRequestHandler, request: Request, number: int) -> None:
        assert handler.path == "/v1/completions"
        fault = self.trouble(request, number)
        if fault is not None:
            time.sleep(fault.delay)
            if fault.body is not None:
                self.send(handler, fault.body, fault.status, fault.headers, 0.5 if fault.cut else 0.0)
                return
        if request["model"] != self.name:
            error = {"message": f"The model `{request['model']}` does not exist.", "type": "NotFoundError", "code": 404}
            self.send(handler, {"error": error}, 404)
            return
        with self.guard:
            reply = self.complete(request)
        self.send(handler, reply)

    def complete(self, request: Request) -> dict[str, Any]:
        """A completion, in vLLM's shape; the i-th of n answers has the seed + i, as there."""
        prompt = request["prompt"]
        if isinstance(prompt, str):
            special = bool(request.get("add_special_tokens", True))
            prompt = self.tokenizer(prompt, add_special_tokens=special)["input_ids"]
        choices = []
        for index in range(request["n"]):
            self.drawn += 1
            seed = request["seed"] + index if self.seeds else self.drawn
            tokens, logprobs = self.draw(prompt, request, seed)
            stop = tokens[-1] in self.ends(request)
            choice = {
                "index": index,
                "text": self.tokenizer.decode(tokens[:-1] if stop else tokens, skip_special_tokens=True),
                "finish_reason": "stop" if stop else "length",
                "logprobs": {"token_logprobs": logprobs, "tokens": [self.tokenizer.decode([t]) for t in tokens]},
            }
            if self.vllm:
                own = stop and tokens[-1] != self.tokenizer.eos_token_id
                choice["stop_reason"] = tokens[-1] if own else None
                if request.get("return_token_ids"):
                    choice |= {"token_ids": tokens, "prompt_token_ids": prompt}
            choices.append(choice)
        choices.reverse()  # the protocol promises no order
        return {"id": "1", "object": "text_completion", "created": 0, "model": self.name, "choices": choices}

    def ends(self, request: Request) -> set[int]:
        return {self.tokenizer.eos_token_id, *(request.get("stop_token_ids", []) if self.vllm else [])}

    @torch.inference_mode()
    def draw(self, prompt: list[int], request: Request, seed: int) -> tuple[list[int], list[float]]:
        generator = torch.Generator().manual_seed(seed)
        ids, logprobs = list(prompt), []
        while len(logprobs) < min(request["max_tokens"], self.longest):
            logits = self.model(torch.tensor([ids])).logits[0, -1].float()
            probabilities = torch.softmax(logits / request["temperature"], -1)
            ids.append(int(torch.multinomial(probabilities, 1, generator=generator)))
            logprobs.append(float(logits.log_softmax(-1)[ids[-1]]) + self.logprob_shift)
            if ids[-1] in self.ends(request):
                break
        return ids[len(prompt) :], logprobs
