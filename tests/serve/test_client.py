"""The file for trainers: each of its functions against a running server, and what it does when one fails."""

import ast
import asyncio
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shfcas.rewards.calls import call_reward
from shfcas.serve import client
from tests.support import tiny
from tests.support.local_server import LocalServer
from tests.support.reward_server import reward_server

LETTERS = "tests.support.tiny:letter_reward"
PICKY = "tests.support.reward_functions:picky"
PROMPT = [{"role": "user", "content": "how was it?"}]
CHEESE = tiny.letter_reward([PROMPT], ["the cheese"])[0]


def test_it_needs_nothing_of_the_package_and_no_torch() -> None:
    names = {n.name for node in ast.walk(ast.parse(Path(client.__file__).read_text())) for n in _names(node)}
    assert not [name for name in names if name.split(".")[0] in ("shfcas", "torch", "numpy")]
    script = (
        f"import runpy, sys; runpy.run_path({client.__file__!r}); assert not {{'torch', 'shfcas'}} & {{*sys.modules}}"
    )
    subprocess.run([sys.executable, "-I", "-c", script], check=True)


def _names(node: ast.AST) -> list[ast.alias]:
    if isinstance(node, ast.ImportFrom):
        return [ast.alias(node.module or "")]
    return node.names if isinstance(node, ast.Import) else []


@pytest.mark.parametrize("token", ["", "a-long-secret"])
def test_every_trainer_gets_the_reward(token: str, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with reward_server([LETTERS], policy=policy, token=token) as (address, _):
        monkeypatch.setenv("SHFCAS_REWARD_URL", f"{address}/")
        monkeypatch.setenv("SHFCAS_REWARD_TOKEN", token)
        info = {"prompt": PROMPT, "prompt_id": "p0", "index": 0}
        assert asyncio.run(client.compute_score("shfcas", " the cheese\n", "", info)) == {"score": CHEESE}
        assert client.reward_func(["Tell me: the cheese"], ["Tell me:"], [""])["rewards"] == [CHEESE]
        sample = SimpleNamespace(prompt=PROMPT, response="the cheese", label=None)
        assert asyncio.run(client.slime_reward(None, sample)) == CHEESE
        columns = {"prompts": [PROMPT], "completions": ["the cheese"], "topic": ["x"], "completion_ids": [[1, 2]]}
        assert call_reward(client.remote_reward(), 1, columns) == [CHEESE]


def test_an_ensemble_s_variance_goes_along(policy: str) -> None:
    with reward_server([LETTERS, LETTERS]) as (address, _):
        found = asyncio.run(client.compute_score("shfcas", "the cheese", "", {"prompt": "how?"}, url=address))
    assert found == {"score": CHEESE, "reward_variance": 0.0}


@pytest.mark.parametrize(
    ("text", "info", "message"),
    [
        ("good", {"index": 0}, "expected the prompt under `prompt`, got none"),
        ("boom", {"prompt": "a"}, "500: .*no boom, please"),
        ("none", {"prompt": "a"}, "does not apply to the answer 'none'"),
        ("good", {"prompt": " "}, "400: prompts, 0: the prompt is empty"),
    ],
)
def test_no_reward_is_an_error(text: str, info: dict[str, Any], message: str) -> None:
    with reward_server([PICKY]) as (address, _), pytest.raises(client.RewardError, match=message):
        asyncio.run(client.compute_score("shfcas", text, "", info, url=address))


class Busy(LocalServer):
    """Refuses the first requests."""

    def post(self, handler: Any, request: dict[str, Any], number: int) -> None:
        self.send(handler, {"error": "busy"} if number < 2 else {"rewards": [1.5]}, 503 if number < 2 else 200)


def test_a_busy_server_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LONGEST_WAIT", 0.01)
    with Busy() as server:
        found = asyncio.run(client.compute_score("s", "a", "", {"prompt": "b"}, url=server.url))
        assert found == {"score": 1.5} and len(server.requests) == 3
    with pytest.raises(client.RewardError, match=r"no reward from http://127\.0\.0\.1:9/score"):
        asyncio.run(client.post("/score", {}, "http://127.0.0.1:9"))
