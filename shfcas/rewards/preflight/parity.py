"""Parity: scores of a reward model here against those of the same model at an inference server, such as vLLM's.

Engines pool, activate and tokenise in their own ways, and still return plausible numbers. The comparison with token ids
shows how the server computes. The comparison with text shows what it reads.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from shfcas.data.messages import completion_text, plain_text
from shfcas.data.preferences import Preference
from shfcas.data.templates import conversation
from shfcas.models.loading import load_reward_model
from shfcas.ops.functional import kendall_tau
from shfcas.rewards.preflight.checks import encode
from shfcas.rewards.preflight.finding import FAIL, PASS, Finding
from shfcas.rewards.scorers import ModelScorer
from shfcas.utils.errors import UserError
from shfcas.utils.http import Endpoint
from shfcas.utils.http_client import BadReply, Client, Refused

KEY = "VLLM_API_KEY"
PATHS = ("/classify", "/pooling", "/score")
ANSWERS = 64  # at most
TOLERANCE = 0.05  # standard deviations of the scores: what half precision changes


class RewardEndpoint:
    """A reward model at a server that speaks vLLM's protocol.

    Args:
        url: address of the server, such as http://localhost:8000, or of its `/classify`, `/pooling` or `/score`.
        model: name of the model there.

    Raises:
        UserError: it is not an address.
    """

    def __init__(self, url: str, model: str) -> None:
        self.model = model
        self.endpoint = Endpoint(url, "server", KEY)
        named = next((path for path in PATHS if self.endpoint.url.endswith(path)), None)
        self.root = self.endpoint.url.removesuffix(named or "").removesuffix("/v1")
        self.path = named
        self.client = Client(
            self.endpoint, timeout=120.0, max_retries=2, retry_wait=1.0, concurrency=4, max_reply_bytes=1 << 26
        )

    def find_path(self) -> str:
        """Returns the path that the server has; `/classify` is asked for first, because it pools over the answer.

        Raises:
            UserError: it has none.
        """
        for path in [self.path] if self.path else PATHS[:2]:
            try:
                self.client.request("POST", f"{self.root}{path}", self._body(path, ["a"]))
            except Refused as error:
                if error.failure.status not in (404, 405):
                    raise
            else:
                return path
        raise UserError(f"server: {self.endpoint.host} has no {' or '.join(PATHS[:2])}; serve the model for pooling")

    def scores(self, path: str, inputs: Sequence[Any]) -> list[float]:
        """Returns a score per input.

        Args:
            path: one of `PATHS`.
            inputs: texts or lists of token ids; for `/score`, pairs of texts.
        """
        found: list[float] = []
        for start in range(0, len(inputs), 8):
            part = inputs[start : start + 8]

            def read(reply: Any, count: int = len(part)) -> list[float]:
                return _values(reply, count)

            found += self.client.request("POST", f"{self.root}{path}", self._body(path, part), read)
        return found

    def _body(self, path: str, inputs: Sequence[Any]) -> dict[str, Any]:
        if path == "/score":
            pairs = [pair if isinstance(pair, tuple) else (pair, pair) for pair in inputs]
            first, second = [one for one, _ in pairs], [other for _, other in pairs]
            return {"model": self.model, "text_1": first, "text_2": second, "use_activation": False}
        return {"model": self.model, "input": list(inputs), "use_activation": False}


def _values(reply: Any, count: int) -> list[float]:
    """Returns the scores in a reply; of several positions or labels, the last."""
    try:
        rows = sorted(reply["data"], key=lambda row: row["index"])
        values = [next(row[name] for name in ("probs", "data", "score") if name in row) for row in rows]
        scores = []
        for value in values:
            while isinstance(value, list):
                value = value[-1]
            scores.append(float(value))
    except (LookupError, TypeError, ValueError, StopIteration):
        raise BadReply("the reply holds no scores") from None
    if len(scores) != count:
        raise BadReply(f"the reply has {len(scores)} scores of {count}")
    return scores


def check_parity(name: str, pairs: Sequence[Preference], endpoint: RewardEndpoint) -> list[Finding]:
    """Compares the scores of a model here with those at a server.

    Args:
        name: the model, see `shfcas.models.loading`.
        pairs: whose answers are scored.
        endpoint: the server.

    Returns:
        The finding for token ids, and the finding for text if the model has a chat template. A server with only
        `/score` gets pairs of texts.

    Raises:
        UserError: the server cannot be reached, or has no suitable path.
    """
    scorer = ModelScorer(*load_reward_model(name), batch_size=1)
    answers = [(pair, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)][:ANSWERS]
    encoded = [encode(scorer.tokenizer, pair, answer) for pair, answer in answers]
    fit = [i for i, inputs in enumerate(encoded) if len(inputs["input_ids"]) <= scorer.max_length]
    answers, encoded = [answers[i] for i in fit], [encoded[i] for i in fit]
    ours = np.array(scorer.score_inputs(encoded))
    path = endpoint.find_path()
    if path == "/score":
        both = [(plain_text(pair.prompt), completion_text(answer)) for pair, answer in answers]
        return [_compared("parity, text", ours, np.array(endpoint.scores(path, both)), _WRONG_TEXT)]
    ids = [inputs["input_ids"] for inputs in encoded]
    findings = [_compared("parity, tokens", ours, np.array(endpoint.scores(path, ids)), _WRONG_MODEL)]
    if scorer.tokenizer.chat_template:
        bos = scorer.tokenizer.bos_token or ""
        rendered = [conversation(scorer.tokenizer, pair.prompt, answer) for pair, answer in answers]
        plain = [text.removeprefix(bos) for text in rendered]
        findings.append(_compared("parity, text", ours, np.array(endpoint.scores(path, plain)), _WRONG_TEXT))
    return findings


_WRONG_MODEL = "compare the server's weights, head and pooling with the model's; it has to pool at the last token"
_WRONG_TEXT = "if token ids agree, the server adds or drops special tokens: send token ids, or compare the tokenizers"


def _compared(check: str, ours: np.ndarray, theirs: np.ndarray, remedy: str) -> Finding:
    """Compares scores, and names the relation if they differ in a known way."""
    spread = float(np.std(ours)) or 1.0
    shift = float(np.abs(ours - theirs).max())
    tau = float(kendall_tau(torch.tensor(ours), torch.tensor(theirs)))
    values = {"answers": len(ours), "moved": shift, "standard_deviation": spread, "kendall_tau": tau}
    if shift <= TOLERANCE * spread:
        message = f"{len(ours)} scores are those of the server, within {shift:.2g} (standard deviation {spread:.2g})"
        return Finding(check, PASS, message, values=values)
    for relation, known, action in _RELATIONS:
        expected = relation(ours, theirs)
        if np.abs(expected - theirs).max() <= TOLERANCE * max(float(np.std(expected)), 1e-6):
            return Finding(check, FAIL, known, action, values)
    message = f"scores differ from those of the server by up to {shift:.2g} (standard deviation {spread:.2g}; "
    return Finding(check, FAIL, f"{message}Kendall's tau {tau:.2f})", remedy, values)


Relation = Callable[[np.ndarray, np.ndarray], np.ndarray]
_RELATIONS: list[tuple[Relation, str, str]] = [
    (
        lambda ours, theirs: np.ones_like(ours),
        "the server's scores are all 1: it applies a softmax to one output",
        "switch the activation off: use_activation in the request, or the server's pooler configuration",
    ),
    (
        lambda ours, theirs: 1 / (1 + np.exp(-ours)),
        "the server's scores are sigmoids of the model's",
        "switch the activation off: use_activation in the request, or the server's pooler configuration",
    ),
    (lambda ours, theirs: -ours, "the server's scores have the opposite sign", "set cost_model on one side only"),
    (
        lambda ours, theirs: ours + (theirs - ours).mean(),
        "the server's scores differ by a constant, as without the head's bias",
        "compare rewards within a prompt only, or centre them",
    ),
]
