"""Clients of `shfcas serve-reward` for trainers. This file needs Python and aiohttp alone, so copy it where you train.

- verl: `reward.custom_reward_function.path=client.py`, with the default name `compute_score`
- OpenRLHF: `--reward.remote_url client.py`, or without this file the server's own address
- slime: `--custom-rm-path client.slime_reward`, or without this file the server's own address
- TRL: `reward_funcs=[remote_reward()]`

`SHFCAS_REWARD_URL` names the server, by default `http://127.0.0.1:8901`. `SHFCAS_REWARD_TOKEN` is its token, if it has
one.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

URL, TOKEN = "SHFCAS_REWARD_URL", "SHFCAS_REWARD_TOKEN"
DEFAULT_URL = "http://127.0.0.1:8901"
ATTEMPTS = 8  # the waits between them add up to two minutes
LONGEST_WAIT = 60.0  # seconds between two attempts
TIMEOUT = 600.0  # seconds for a reply


class RewardError(RuntimeError):
    """A reward that the server did not give; the message says why."""


async def post(path: str, body: Mapping[str, Any], url: str | None = None) -> Any:
    """Sends a request and returns the reply.

    A server that cannot be reached, or is busy, is asked again.

    Args:
        path: path of the dialect.
        body: the request.
        url: the server; None reads the environment.

    Raises:
        RewardError: the server refused the request, failed, or could not be reached.
    """
    import aiohttp

    address = (url or os.environ.get(URL) or DEFAULT_URL).rstrip("/") + path
    token = os.environ.get(TOKEN, "").strip()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    data = json.dumps(body, default=_plain).encode()
    problem = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            await asyncio.sleep(min(2.0 ** (attempt - 1), LONGEST_WAIT))
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT)) as session,
                session.post(address, data=data, headers=headers) as reply,
            ):
                text = await reply.text()
                if reply.status == 200:
                    return json.loads(text)
                problem = f"{reply.status}: {_message(text)}"
                if reply.status not in (408, 429, 502, 503, 504):
                    break
        except (aiohttp.ClientError, TimeoutError) as error:
            problem = f"{type(error).__name__}: {error}"
    raise RewardError(f"no reward from {address} ({problem})")


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    url: str | None = None,
    **_: Any,
) -> dict[str, float]:
    """Returns the reward of an answer, as verl calls it.

    Args:
        data_source: the prompt's data set, passed on as a column.
        solution_str: the answer.
        ground_truth: passed on as a column.
        extra_info: holds the prompt under `prompt`, as text or messages; `prompt_id` and `step` are passed on.
        url: the server; None reads the environment. In verl, `+reward.custom_reward_function.reward_kwargs.url=...`.

    Raises:
        RewardError: there is no prompt, or the server gave no reward.
    """
    info = extra_info or {}
    if info.get("prompt") is None:
        raise RewardError("extra_info: expected the prompt under `prompt`, got none; shfcas export verl writes it")
    answer = solution_str.strip()
    body = {"prompts": [info["prompt"]], "completions": [answer], "data_source": [data_source]}
    body |= {"ground_truth": [ground_truth]}
    body |= {name: [info[name]] for name in ("prompt_id", "step") if info.get(name) is not None}
    found = await post("/score", body, url)
    (reward,) = found["rewards"]
    if reward is None:
        raise RewardError(f"the reward does not apply to the answer {answer[:60]!r}")
    return {"score": reward} | ({"reward_variance": found["variances"][0]} if "variances" in found else {})


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any]) -> dict[str, Any]:
    """Returns the rewards of answers, as OpenRLHF calls it.

    Raises:
        RewardError: the server gave no reward.
    """
    body = {"query": list(queries), "prompts": list(prompts), "labels": list(labels)}
    return asyncio.run(post("/openrlhf", body))


async def slime_reward(args: Any, sample: Any, **_: Any) -> float:
    """Returns the reward of a sample, as slime calls it.

    Raises:
        RewardError: the server gave no reward.
    """
    return await post("/slime", {"prompt": sample.prompt, "response": sample.response, "label": sample.label})


def remote_reward(url: str | None = None) -> Callable[..., Awaitable[list[float | None]]]:
    """Returns a reward function for TRL's trainers, which sends all columns to the server.

    Args:
        url: the server; None reads the environment.
    """

    async def remote(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        kept = {name: v for name, v in columns.items() if isinstance(v, list) and len(v) == len(completions)}
        found = await post("/score", {"prompts": prompts, "completions": completions, **kept}, url)
        return found["rewards"]

    return remote


def _plain(value: Any) -> Any:
    """Returns arrays and numbers of numpy and torch as JSON has them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"expected a value that JSON has, got {type(value).__name__}")


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text[:200]
