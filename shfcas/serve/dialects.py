"""Requests and replies of each trainer.

| path | request | reply |
|---|---|---|
| `/score` | `prompts`, `completions`, other columns, as in TRL | `rewards`, and `variances` of an ensemble |
| `/openrlhf` | `query`, `prompts`, `labels` | `rewards`, `scores`, `extra_logs` |
| `/slime` | `prompt`, `response`, `label` | a number |

OpenRLHF and slime send text that the policy's chat template has rendered, with its special tokens. The reward model has
a template of its own, so it needs the conversation: the answer is what follows the rendered prompt, without the
policy's end tokens, and the prompt is read from the label, where `shfcas export` writes it as JSON.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shfcas.data.chat import end_token_ids, special_ids
from shfcas.data.messages import are_messages, check_prompt, normalised
from shfcas.models.loading import policy_tokenizer
from shfcas.serve.reward import Answers, Rewards
from shfcas.utils.errors import UserError

MOST_ANSWERS = 1024  # of a request


class BadRequest(UserError):
    """A request that does not have the form of its dialect."""


class PolicyText:
    """Text that a policy reads and writes, with its special tokens.

    Args:
        name: the policy; only its tokenizer is loaded.
    """

    def __init__(self, name: str) -> None:
        self.tokenizer, _ = policy_tokenizer(name)
        ends = self.tokenizer.convert_ids_to_tokens(sorted(end_token_ids(None, self.tokenizer)))
        pad = self.tokenizer.pad_token
        self._ends = tuple(dict.fromkeys([*ends, *([pad] if pad else [])]))
        self._specials = [self.tokenizer.convert_ids_to_tokens(i) for i in sorted(special_ids(self.tokenizer))]

    def answer(self, text: str) -> str:
        """Returns an answer without end tokens and white space around it, as in candidate tables."""
        text = text.strip()
        while text.endswith(self._ends):
            for end in self._ends:
                text = text.removesuffix(end).rstrip()
        return text

    def answer_behind(self, prompt: str, query: str) -> str:
        """Returns the answer in a text that begins with its prompt.

        Raises:
            BadRequest: the text does not begin with the prompt.
        """
        ids = self.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        for start in (self.tokenizer.decode(ids, skip_special_tokens=False), prompt):
            if query.startswith(start):
                return self.answer(query[len(start) :])
        raise BadRequest(
            f"query: expected text that begins with its prompt, got {query[:60]!r}; raise the trainer's limit on "
            "prompts if it cuts them, and check that --policy is the policy that is trained"
        )

    def is_rendered(self, prompt: str) -> bool:
        """Whether a prompt contains special tokens, as rendered chats do."""
        return any(token and token in prompt for token in self._specials)


@dataclass(frozen=True)
class Dialect:
    """A trainer's form of requests and replies.

    Attributes:
        path: path of the server.
        read: returns the answers of a request's body.
        write: returns the reply.
    """

    path: str
    read: Callable[[dict[str, Any]], Answers]
    write: Callable[[Rewards], Any]


def dialects(policy: PolicyText | None) -> list[Dialect]:
    """Returns all dialects.

    Args:
        policy: the policy that is trained; without it, rendered text is refused.
    """

    def text_of(field: str) -> PolicyText:
        if policy is None:
            raise BadRequest(
                f"{field}: this is the policy's text, with its special tokens; start the server with --policy, so that "
                "they are not read as a part of the answer"
            )
        return policy

    def openrlhf(body: dict[str, Any]) -> Answers:
        queries, prompts = _strings(body, "query"), _strings(body, "prompts")
        labels = body.get("labels") or [""] * len(queries)
        _same_length({"query": queries, "prompts": prompts, "labels": labels})
        text = text_of("query")
        rows = [
            (*_prompt(prompt, label, text), text.answer_behind(prompt, query))
            for query, prompt, label in zip(queries, prompts, labels, strict=True)
        ]
        return _answers(rows)

    def slime(body: dict[str, Any]) -> Answers:
        prompt, response, label = body.get("prompt"), body.get("response"), body.get("label")
        if not isinstance(response, str):
            raise BadRequest(f"response: expected text, got {_shown(response)}")
        text = text_of("response")
        return _answers([(*_prompt(prompt, label, text), text.answer(response))])

    return [
        Dialect("/score", plain, _plain_reply),
        Dialect("/openrlhf", openrlhf, _openrlhf_reply),
        Dialect("/slime", slime, _one_reward),
    ]


def plain(body: dict[str, Any]) -> Answers:
    """Reads the arguments of a TRL reward function.

    Raises:
        BadRequest: a field is missing, has another type, or another length.
    """
    prompts, completions = body.get("prompts"), body.get("completions")
    if not isinstance(prompts, list) or not isinstance(completions, list):
        raise BadRequest("expected prompts and completions, two lists of text or messages")
    columns = {name: values for name, values in body.items() if name not in ("prompts", "completions")}
    wrong = [name for name, values in columns.items() if not isinstance(values, list)]
    if wrong:
        raise BadRequest(f"{wrong[0]}: expected a list with one value per answer, got {_shown(columns[wrong[0]])}")
    _same_length({"prompts": prompts, "completions": completions, **columns})
    for i, completion in enumerate(completions):
        if not isinstance(completion, str) and not are_messages(normalised(completion)):
            raise BadRequest(f"completions, {i}: expected text or messages, got {_shown(completion)}")
    checked = [_checked(prompt, f"prompts, {i}") for i, prompt in enumerate(prompts)]
    return Answers(checked, completions, columns)


def _prompt(prompt: Any, label: Any, text: PolicyText) -> tuple[Any, dict[str, Any]]:
    """Returns the prompt, and the columns of its label."""
    columns = _object(label)
    if "prompt" in columns:
        return _checked(columns.pop("prompt"), "the label's prompt"), columns
    columns = {"label": label}
    if isinstance(prompt, str) and text.is_rendered(prompt):
        raise BadRequest(
            "label: expected the prompt as JSON, as shfcas export writes it, since rendered text cannot be read back; "
            f"got {_shown(label)}"
        )
    return _checked(prompt, "prompt"), columns


def _object(label: Any) -> dict[str, Any]:
    if isinstance(label, str) and label.lstrip().startswith("{"):
        try:
            label = json.loads(label)
        except ValueError:
            return {}
    return dict(label) if isinstance(label, dict) else {}


def _answers(rows: list[tuple[Any, dict[str, Any], str]]) -> Answers:
    names = dict.fromkeys(name for _, columns, _ in rows for name in columns)
    return Answers(
        [prompt for prompt, _, _ in rows],
        [answer for _, _, answer in rows],
        {name: [columns.get(name) for _, columns, _ in rows] for name in names},
    )


def _checked(prompt: Any, where: str) -> Any:
    try:
        return check_prompt(prompt, where)
    except UserError as error:
        raise BadRequest(str(error)) from None


def _strings(body: dict[str, Any], name: str) -> list[str]:
    values = body.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise BadRequest(f"{name}: expected a list of texts, got {_shown(values)}")
    return values


def _same_length(fields: dict[str, list[Any]]) -> None:
    lengths = {name: len(values) for name, values in fields.items()}
    if len(set(lengths.values())) > 1:
        given = ", ".join(f"{name} {count}" for name, count in lengths.items())
        raise BadRequest(f"expected lists of one length, got {given}")
    if max(lengths.values()) > MOST_ANSWERS:
        raise BadRequest(f"expected at most {MOST_ANSWERS} answers per request, got {max(lengths.values())}")


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:60]


def _plain_reply(found: Rewards) -> dict[str, Any]:
    return {"rewards": found.rewards} | ({"variances": found.variances} if found.variances is not None else {})


def _openrlhf_reply(found: Rewards) -> dict[str, Any]:
    rewards = _all(found)
    logs = {} if found.variances is None else {"reward_variance": found.variances}
    return {"rewards": rewards, "scores": rewards, "extra_logs": logs}


def _one_reward(found: Rewards) -> float:
    (reward,) = _all(found)
    return reward


def _all(found: Rewards) -> list[float]:
    if None in found.rewards:
        raise UserError("the reward does not apply to an answer, and this trainer needs a number for each")
    return found.rewards  # type: ignore[return-value]
