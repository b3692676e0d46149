"""An HTTP server that speaks vLLM's pooling protocol and runs a real reward model, on a free port."""

import math
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.support.local_server import LocalServer


class PoolingServer(LocalServer):
    """A reward model at `url`, as `vllm serve` offers it.

    Args:
        folder: the model.
        paths: those that it has.
        change: applied to each score, as an engine's activation or head would.
        suffix: added to each text, as by another tokenizer.
        name: what the model is called.
    """

    def __init__(
        self,
        folder: str,
        paths: tuple[str, ...] = ("/classify", "/pooling"),
        change: Callable[[float], float] = lambda score: score,
        suffix: str = "",
        name: str = "reward",
    ) -> None:
        super().__init__()
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.paths, self.change, self.suffix, self.name = paths, change, suffix, name
        self.root = self.url.removesuffix("/v1")

    def post(self, handler: BaseHTTPRequestHandler, request: dict[str, Any], number: int) -> None:
        if handler.path not in self.paths:
            self.send(handler, {"detail": "Not Found"}, 404)
        elif request["model"] != self.name:
            self.send(handler, {"error": {"message": f"no model {request['model']}"}}, 404)
        elif handler.path == "/score":
            pairs = zip(request["text_1"], request["text_2"], strict=True)
            scores = [self.score(self.tokenizer(one, other)["input_ids"]) for one, other in pairs]
            self.reply(handler, [{"score": score} for score in scores])
        else:
            scores = [self.score(self.ids(given)) for given in request["input"]]
            if handler.path == "/classify":
                self.reply(handler, [{"label": "LABEL_0", "probs": [score], "num_classes": 1} for score in scores])
            else:  # one value per token, of which the last counts
                self.reply(handler, [{"object": "pooling", "data": [[0.0], [score]]} for score in scores])

    def ids(self, given: str | list[int]) -> list[int]:
        if isinstance(given, list):
            return given
        return self.tokenizer(given + self.suffix, add_special_tokens=False)["input_ids"]

    @torch.inference_mode()
    def score(self, ids: list[int]) -> float:
        batch = torch.tensor([ids])
        return self.change(self.model(input_ids=batch, attention_mask=torch.ones_like(batch)).logits.item())

    def reply(self, handler: BaseHTTPRequestHandler, rows: list[dict[str, Any]]) -> None:
        data = [{"index": i, **row} for i, row in enumerate(rows)]
        self.send(handler, {"object": "list", "model": self.name, "data": data[::-1]})


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))
