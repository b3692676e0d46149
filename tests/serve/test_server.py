"""The server over real sockets: dialects, tokens, limits, errors, metrics, log and its end."""

import base64
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shfcas.cli import main
from shfcas.models.loading import load_tokenizer
from shfcas.rewards.scorers import load_scorer
from shfcas.serve.app import Limits
from shfcas.serve.server import token_for
from shfcas.utils.errors import UserError
from shfcas.utils.listening import listen
from tests.support import reward_functions, tiny
from tests.support.reward_server import reward_server, send

LETTERS = "tests.support.tiny:letter_reward"
PICKY = "tests.support.reward_functions:picky"
PROMPT = [{"role": "user", "content": "how was it?"}]


def reward_of(text: str) -> float:
    return tiny.letter_reward([PROMPT], [text])[0]


def test_the_plain_dialect_is_trl_s(tiny_models: dict[str, str]) -> None:
    with reward_server([tiny_models["reward_model"]]) as (address, _):
        said = [{"role": "assistant", "content": "a good film"}]
        reply = send(address, "/score", {"prompts": [PROMPT, "how?"], "completions": [said, "bad"], "topic": [1, 2]})
    scorer: Any = load_scorer(tiny_models["reward_model"])
    scorer.batch_size = 1
    assert reply.status == 200
    assert reply.json == {"rewards": [scorer([PROMPT], [said])[0], scorer(["how?"], ["bad"])[0]]}


def test_a_function_gets_the_columns_and_may_not_apply() -> None:
    with reward_server([PICKY]) as (address, _):
        reply = send(address, "/score", {"prompts": ["a", "b"], "completions": ["none", "good"]})
        assert reply.json == {"rewards": [None, 1.0]}
        reply = send(address, "/score", {"prompts": [], "completions": []})
        assert reply.json == {"rewards": []}


def rendered(policy: str) -> str:
    return load_tokenizer(policy).apply_chat_template(PROMPT, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize("ending", ["", "<|end|>", "<|end|><|end|>"])
def test_openrlhf_sends_rendered_text(ending: str, policy: str) -> None:
    prompt, label = rendered(policy), json.dumps({"prompt": PROMPT, "prompt_id": "p0"})
    with reward_server([LETTERS, LETTERS], policy=policy) as (address, _):
        body = {"query": [f"{prompt} the cheese {ending}"], "prompts": [prompt], "labels": [label]}
        reply = send(address, "/openrlhf", body)
        reward = reward_of("the cheese")
        assert reply.json == {"rewards": [reward], "scores": [reward], "extra_logs": {"reward_variance": [0.0]}}
        plain = {"query": ["Tell me: the cheese"], "prompts": ["Tell me:"]}  # without a chat template
        assert send(address, "/openrlhf", plain).json["rewards"] == [reward]


def test_slime_sends_one_answer(policy: str) -> None:
    with reward_server([LETTERS], policy=policy) as (address, _):
        for prompt, label in ((PROMPT, "7"), (rendered(policy), json.dumps({"prompt": PROMPT})), ("how?", None)):
            reply = send(address, "/slime", {"prompt": prompt, "response": "the cheese<|end|>", "label": label})
            assert reply.json == reward_of("the cheese")


BAD: list[tuple[str, Any, str]] = [
    ("/score", b"{", "expected a JSON object"),
    ("/score", b"[1]", "expected a JSON object, got list"),
    ("/score", {}, "expected prompts and completions"),
    ("/score", {"prompts": ["a"], "completions": "b"}, "expected prompts and completions"),
    ("/score", {"prompts": ["a"], "completions": ["b", "c"]}, "expected lists of one length, got prompts 1, complet"),
    ("/score", {"prompts": ["a"], "completions": [1]}, "completions, 0: expected text or messages, got 1"),
    ("/score", {"prompts": [" "], "completions": ["b"]}, "prompts, 0: the prompt is empty"),
    ("/score", {"prompts": ["a"], "completions": ["b"], "topic": "x"}, "topic: expected a list with one value per"),
    ("/score", {"prompts": ["a"] * 1025, "completions": ["b"] * 1025}, "at most 1024 answers per request, got 1025"),
    ("/openrlhf", {"query": ["ab"], "prompts": ["b"]}, "query: expected text that begins with its prompt"),
    ("/openrlhf", {"query": "ab", "prompts": ["b"]}, "query: expected a list of texts"),
    ("/openrlhf", {"query": ["<|user|>hi<|end|>"], "prompts": ["<|user|>hi<|end|>"], "labels": ["7"]}, "label: expec"),
    ("/slime", {"prompt": "<|user|>hi", "response": "a"}, "label: expected the prompt as JSON"),
    ("/slime", {"prompt": "hi", "response": None}, "response: expected text, got nothing"),
    ("/slime", {"prompt": "", "response": "a"}, "prompt: the prompt is empty"),
]


@pytest.mark.parametrize(("path", "body", "message"), BAD)
def test_what_is_not_a_request_is_refused(path: str, body: Any, message: str, policy: str) -> None:
    with reward_server([LETTERS], policy=policy) as (address, _):
        reply = send(address, path, body)
        assert reply.status == 400 and message in reply.json["error"]
        assert send(address, "/score", {"prompts": ["a"], "completions": ["e"]}).json == {"rewards": [1.01]}


@pytest.mark.parametrize("path", ["/openrlhf", "/slime"])
def test_rendered_text_needs_the_policy(path: str) -> None:
    bodies = {"/openrlhf": {"query": ["ab"], "prompts": ["a"]}, "/slime": {"prompt": "a", "response": "b"}}
    with reward_server([LETTERS]) as (address, _):
        reply = send(address, path, bodies[path])
    assert reply.status == 400 and "start the server with --policy" in reply.json["error"]


def test_a_reward_that_fails_never_becomes_a_number(policy: str) -> None:
    with reward_server([PICKY], policy=policy) as (address, _):
        for text, message in (("boom", "no boom, please"), ("nan", "expected a finite reward for answer 0, got nan")):
            reply = send(address, "/score", {"prompts": ["a"], "completions": [text]})
            assert reply.status == 500 and message in reply.json["error"]
        reply = send(address, "/slime", {"prompt": "a", "response": "none"})
        assert reply.status == 500 and "does not apply to an answer" in reply.json["error"]


def test_an_answer_that_is_too_long_is_the_client_s_error(tiny_models: dict[str, str]) -> None:
    with reward_server([tiny_models["reward_model"]], too_long="error") as (address, _):
        reply = send(address, "/score", {"prompts": ["a"], "completions": ["good " * 300]})
    assert reply.status == 422 and "more than the reward model's limit" in reply.json["error"]


def test_a_token_is_asked_for_in_every_form_that_trainers_have() -> None:
    body, token = {"prompts": ["a"], "completions": ["e"]}, "a-long-secret"
    wrong = base64.b64encode(b"x:y").decode()
    with reward_server([LETTERS], token=token) as (address, _):
        assert send(address, "/score", body, token=token).status == 200
        basic = base64.b64encode(f"any:{token}".encode()).decode()
        assert send(address, "/score", body, headers={"Authorization": f"Basic {basic}"}).status == 200
        for value in ("Bearer other", token, f"Basic {wrong}", "Basic !", "Bearer", "Bearer ", "Bearer \u00e9"):
            reply = send(address, "/score", body, headers={"Authorization": value})
            assert reply.status == 401 and "wrong or missing token" in reply.json["error"]
        assert send(address, "/metrics").status == 401 and send(address, "/health").status == 200


def test_a_page_in_a_browser_is_refused() -> None:
    with reward_server([LETTERS]) as (address, _):
        body = {"prompts": ["a"], "completions": ["e"]}
        assert send(address, "/score", body, headers={"Origin": "https://example.org"}).status == 403


@pytest.mark.parametrize(
    ("host", "token", "message"),
    [
        ("0.0.0.0", "", "host: other machines reach 0.0.0.0; set SHFCAS_REWARD_TOKEN"),
        ("127.0.0.1", "short", "expected at least 8 printable ASCII characters"),
    ],
)
def test_other_machines_need_a_token(host: str, token: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHFCAS_REWARD_TOKEN", token)
    with pytest.raises(UserError, match=message):
        token_for(host)
    monkeypatch.setenv("SHFCAS_REWARD_TOKEN", "long enough")
    assert token_for("0.0.0.0") == "long enough"


def test_a_taken_port_is_noticed_before_a_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve-reward", "no/such-model", "--port", str(port)]) == 1
    assert f"port: cannot listen at port {port} of 127.0.0.1" in capsys.readouterr().err
    assert main(["serve-reward"]) == 2
    assert "expected at least one reward model" in capsys.readouterr().err


def test_limits_of_bodies_and_of_the_queue() -> None:
    gate = reward_functions.gates["q"] = reward_functions.Gate(2)
    limits = Limits(most_bytes=1000, most_waiting=2)
    with (
        reward_server(["tests.support.reward_functions:gated"], limits=limits) as (address, app),
        ThreadPoolExecutor(2) as pool,
    ):
        reply = send(address, "/score", {"prompts": ["a"], "completions": ["e" * 2000]})
        assert reply.status == 413 and "at most 1,000 bytes" in reply.json["error"]
        body = {"prompts": ["a"], "completions": ["b"], "gate": ["q"]}
        first = pool.submit(send, address, "/score", body)
        while not gate.waiting:
            threading.Event().wait(0.005)
        second = send(address, "/score", {**body, "prompts": ["a"] * 2, "completions": ["b"] * 2, "gate": ["q"] * 2})
        assert second.status == 503 and second.headers["retry-after"] == "1"
        assert send(address, "/health").json == {"status": "ok", "waiting": 1}
        gate.count = 1  # opens for the one that waits
        gate.waiting[0].get_loop().call_soon_threadsafe(gate.waiting[0].set_result, None)
        assert first.result(timeout=60).json == {"rewards": [1.0]}
        assert app.batcher.waiting == 0


def test_metrics_are_prometheus_text(tiny_models: dict[str, str]) -> None:
    with reward_server([tiny_models["reward_model"]]) as (address, _):
        send(address, "/score", {"prompts": ["a", "b"], "completions": ["e", "good " * 300]})
        send(address, "/score", {})
        reply = send(address, "/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = dict(line.rsplit(" ", 1) for line in reply.text.splitlines() if not line.startswith("#"))
    assert values['shfcas_requests_total{path="/score",status="200"}'] == "1"
    assert values['shfcas_requests_total{path="/score",status="400"}'] == "1"
    assert values["shfcas_rewards_total"] == "2" and values["shfcas_too_long_total"] == "1"
    assert values['shfcas_request_seconds_bucket{le="+Inf"}'] == values["shfcas_request_seconds_count"] == "2"
    assert values['shfcas_answers_together_bucket{le="2"}'] == "1"
    names = {re.split(r"[ {]", line)[0] for line in reply.text.splitlines() if not line.startswith("#")}
    typed = {line.split()[2] for line in reply.text.splitlines() if line.startswith("# TYPE")}
    assert {re.sub("_(bucket|count|sum)$", "", name) for name in names} - {"shfcas_rewards"} <= typed


def test_the_log_has_a_line_for_each_reward(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "rewards.jsonl"
    for _ in range(2):  # a second server adds to it
        with reward_server([LETTERS], log=str(log)) as (address, _):
            body = {"prompts": [PROMPT, "a"], "completions": ["the cheese", "e"], "step": [3, 3]}
            send(address, "/score", body)
            send(address, "/score", {"prompts": []})
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["reward"] for row in rows] == [reward_of("the cheese"), 1.01] * 2
    assert rows[0]["prompt"] == PROMPT and rows[0]["completion"] == "the cheese" and rows[0]["step"] == 3
    assert rows[0]["prompt_id"] == rows[2]["prompt_id"] != rows[1]["prompt_id"]


def test_many_clients_get_the_rewards_of_their_own_answers(tiny_models: dict[str, str]) -> None:
    scorer: Any = load_scorer(tiny_models["reward_model"])
    scorer.batch_size = 1
    texts = [" ".join(["good"] * (i % 7 + 1) + ["film"] * (i % 5)) for i in range(48)]
    with reward_server([tiny_models["reward_model"]]) as (address, app), ThreadPoolExecutor(16) as pool:
        replies = pool.map(lambda text: send(address, "/score", {"prompts": ["a"], "completions": [text]}), texts)
        assert [reply.json["rewards"][0] for reply in replies] == [scorer(["a"], [text])[0] for text in texts]
        assert app.batcher.waiting == 0


def test_the_end_waits_for_what_is_being_scored() -> None:
    gate = reward_functions.gates["end"] = reward_functions.Gate(2)
    with ThreadPoolExecutor(1) as pool:
        with reward_server(["tests.support.reward_functions:gated"]) as (address, app):
            body = {"prompts": ["a"], "completions": ["b"], "gate": ["end"]}
            reply = pool.submit(send, address, "/score", body)
            while not gate.waiting:
                threading.Event().wait(0.005)

            def open_when_stopping() -> None:
                while not app.stopping:
                    threading.Event().wait(0.005)
                gate.waiting[0].get_loop().call_soon_threadsafe(gate.waiting[0].set_result, None)

            opener = threading.Thread(target=open_when_stopping)
            opener.start()
        opener.join()
        assert reply.result(timeout=60).json == {"rewards": [1.0]}
