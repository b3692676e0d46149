"""Answers that others draw: rescored, never mixed, refused where another model draws; at a server with a real one."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from shfcas.cli import main
from shfcas.conflicts.columns import add_conflicts
from shfcas.data.candidates import read_candidates, write_candidates
from shfcas.data.chat import encode_prompt
from shfcas.models.loading import load_policy, save_model
from shfcas.sampling.config import SamplingConfig, ServerConfig, VLLMConfig
from shfcas.sampling.protocol import Answer
from shfcas.sampling.provenance import describe_generation
from shfcas.sampling.rescored import RescoredSampler
from shfcas.sampling.server import ServerGenerator
from shfcas.sampling.table import sample_policy
from shfcas.utils.errors import MissingExtra, UserError
from tests.support import tiny
from tests.support.completions_server import CompletionsServer, Fault


@pytest.fixture
def server(tiny_models: dict[str, str]) -> Iterator[CompletionsServer]:
    with CompletionsServer(tiny_models["policy"]) as server:
        yield server


def config(server: CompletionsServer, each: int = 1, **options: Any) -> SamplingConfig:
    """Three short answers a prompt at a server that is asked again at once."""
    settings = ServerConfig(server.url, "policy", answers_per_request=each, concurrency=2, retry_wait=0.0)
    return SamplingConfig(
        **{"num_completions": 3, "temperature": 1.0, "max_new_tokens": 6, "generator": "openai", "server": settings}
        | options
    )


def naive_logprob(model: Any, prompt: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        table = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return sum(table[len(prompt) - 1 + k, token].item() for k, token in enumerate(answer))


class Recording(ServerGenerator):
    """Keeps what it was asked for and what came back."""

    def __call__(self, requests: Any) -> Iterator[list[Answer]]:
        self.seen: list[tuple[list[int], Answer]] = []
        for request, answers in zip(requests, super().__call__(requests), strict=True):
            assert len(answers) == request.count
            self.seen += [(request.prompt, answer) for answer in answers]
            yield answers


@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("prompts", ["tokens", "text"])
def test_columns_are_those_of_the_drawn_tokens(
    each: int, prompts: str, server: CompletionsServer, tiny_models: dict[str, str]
) -> None:
    model, tokenizer = load_policy(tiny_models["policy"])
    reference = load_policy(tiny_models["reference"])[0]
    settings = config(server, each, num_completions=3, max_new_tokens=10, batch_size=4, temperature=1.3)
    settings = replace(settings, server=replace(settings.server, prompts=prompts))
    generator = Recording(settings, "policy", {tokenizer.eos_token_id, 40, 41, 42})
    sampler = RescoredSampler(
        model, tokenizer, generator=generator, config=settings, seed=3, references={"reference_logprobs": reference}
    )
    sampler.end_ids |= {40, 41, 42}
    asked = tiny.prompts(4)
    rows = list(sampler(asked))
    assert [(row["prompt_id"], row["topic"]) for row in rows] == [(p["prompt_id"], p["topic"]) for p in asked]
    drawn = iter(generator.seen)
    for row in rows:
        for i in range(3):
            prompt, answer = next(drawn)
            assert prompt == encode_prompt(tokenizer, row["prompt"]) and answer.tokens is not None
            ended = answer.tokens[-1] in sampler.end_ids
            assert row["finished"][i] == ended and row["num_tokens"][i] == len(answer.tokens)
            text = tokenizer.decode(answer.tokens[:-1] if ended else answer.tokens, skip_special_tokens=True)
            assert row["completions"][i] == text.strip()
            expected = naive_logprob(model, prompt, answer.tokens)
            assert row["logprobs"][i] == pytest.approx(expected, abs=1e-4)
            assert row["engine_logprobs"][i] == pytest.approx(expected, abs=1e-4)
            assert row["reference_logprobs"][i] == pytest.approx(
                naive_logprob(reference, prompt, answer.tokens), abs=1e-4
            )
    lengths = {n for row in rows for n in row["num_tokens"]}
    assert max(lengths) == 10 > min(lengths)  # some ended, some were stopped
    assert any(all(row["finished"]) != any(row["finished"]) for row in rows)
    assert {request["n"] for request in server.requests} == ({1} if each == 1 else {1, 2})
    seeds = [request["seed"] for request in server.requests]
    assert len(set(seeds)) == len(seeds) and max(seeds) < 2**53
    assert all(isinstance(request["prompt"], str) == (prompts == "text") for request in server.requests)


def test_seeds_repeat_a_table_and_the_metadata_say_so(
    server: CompletionsServer, tiny_models: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = config(server)
    first = sample_policy(tiny_models["policy"], tiny.prompts(2), config=settings, seed=1, work_dir=tmp_path / "a")
    again = sample_policy(
        tiny_models["policy"], tiny.prompts(2)[::-1], config=settings, seed=1, work_dir=tmp_path / "b"
    )
    assert again.rows()[::-1] == first.rows()
    assert (
        sample_policy(tiny_models["policy"], tiny.prompts(2), config=settings, seed=2, work_dir=tmp_path / "c").rows()
        != first.rows()
    )
    assert first.metadata["engine"] == "transformers"
    assert first.metadata["generator"] == {"name": "openai", "server": "vllm 0.0.test"}
    facts = first.metadata["generation"]
    assert facts["repeatable"] is True and facts["tokens"] == "drawn" and facts["logprob_difference"] < 1e-4
    assert facts["retokenised_otherwise"] == sum(not same for row in first.column("same_tokens") for same in row) > 0
    assert "server" in first.metadata["sampling"] and "base_url" not in first.metadata["sampling"]["server"]
    assert "openai vllm 0.0.test sampled 6 answers, transformers scored them" in caplog.text
    server.seeds = False
    other = sample_policy(tiny_models["policy"], tiny.prompts(2), config=settings, seed=1, work_dir=tmp_path / "d")
    assert other.metadata["generation"]["repeatable"] is False
    assert "cannot be repeated" in caplog.text


def test_sampling_parameters_leave_the_server_no_choice(server: CompletionsServer, tiny_models: dict[str, str]) -> None:
    model, tokenizer = load_policy(tiny_models["policy"])
    settings = config(server, top_k=7, top_p=0.8, num_completions=1)
    generator = ServerGenerator(settings, "elsewhere", {tokenizer.eos_token_id})
    list(RescoredSampler(model, tokenizer, generator=generator, config=settings)(tiny.prompts(1)))
    (request,) = server.requests
    expected = {"top_k": 7, "top_p": 0.8, "temperature": 1.0, "max_tokens": 6, "min_p": 0.0, "repetition_penalty": 1.0}
    assert expected.items() <= request.items()
    assert request["presence_penalty"] == request["frequency_penalty"] == 0.0 and request["echo"] is False
    assert request["stop_token_ids"] == [tokenizer.eos_token_id] and "messages" not in request


def test_a_server_that_knows_no_token_ids_is_read_by_its_text(
    tiny_models: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with CompletionsServer(tiny_models["policy"], vllm=False) as server:
        table = sample_policy(tiny_models["policy"], tiny.prompts(3), config=config(server), seed=0, work_dir=tmp_path)
    tokenizer = load_policy(tiny_models["policy"])[1]
    assert "so it cannot be checked that it has the policy's weights" in caplog.text
    assert "same_tokens" not in table and table.metadata["generation"]["tokens"] == "retokenised"
    assert table.metadata["generator"] == {"name": "openai", "server": None}
    for row in table.rows():
        for text, count, finished in zip(row["completions"], row["num_tokens"], row["finished"], strict=True):
            if "�" not in text and text == text.strip():
                assert abs(len(tokenizer(text)["input_ids"]) + finished - count) <= 1  # white space around it counts


FAULTS = {
    "busy": (Fault(429, headers={"Retry-After": "0"}), r"status 429 \(engine trouble\)"),
    "broken": (Fault(500), r"status 500 \(engine trouble\)"),
    "disconnected": (Fault(200, '{"choices": [{"index": 0,', cut=True), "no connection"),
    "garbled": (Fault(200, "<html>"), "not JSON"),
    "empty": (Fault(200, '{"choices": []}'), "0 answers of 1"),
    "other protocol": (Fault(200, '{"generated_text": "x"}'), "not a completion"),
    "aborted": (
        Fault(200, '{"choices": [{"index": 0, "text": "", "finish_reason": "abort"}]}'),
        "reason 'abort'",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_failed_request_is_tried_again_and_finished_shards_are_kept(
    kind: str, server: CompletionsServer, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    fault, message = FAULTS[kind]
    settings = config(server, num_completions=1, max_new_tokens=2, shard_size=1)
    settings = replace(settings, server=replace(settings.server, max_retries=1, concurrency=1))
    whole = sample_policy(
        tiny_models["policy"], tiny.prompts(3), config=settings, seed=0, work_dir=tmp_path / "whole"
    ).rows()
    server.requests.clear()
    server.trouble = lambda request, number: fault if number == 3 else None  # the first answer, once
    assert (
        sample_policy(
            tiny_models["policy"], tiny.prompts(3), config=settings, seed=0, work_dir=tmp_path / "once"
        ).rows()
        == whole
    )
    server.requests.clear()
    server.trouble = lambda request, number: fault if number >= 4 else None
    with pytest.raises(UserError, match=rf"{message}.*after 2 attempts; finished shards are kept"):
        sample_policy(tiny_models["policy"], tiny.prompts(3), config=settings, seed=0, work_dir=tmp_path / "twice")
    assert len(list((tmp_path / "twice").glob("shard-*"))) == 1
    server.requests.clear()
    server.trouble = lambda request, number: None
    assert (
        sample_policy(
            tiny_models["policy"], tiny.prompts(3), config=settings, seed=0, work_dir=tmp_path / "twice"
        ).rows()
        == whole
    )
    assert len(server.requests) == 3 + 2  # of the probes, and of the two shards that were missing


def test_a_slow_server_is_given_up_after_the_timeout(server: CompletionsServer, tiny_models: dict[str, str]) -> None:
    settings = config(server)
    settings = replace(settings, server=replace(settings.server, max_retries=0, timeout=0.2))
    server.trouble = lambda request, number: Fault(body=None, delay=0.6)
    with pytest.raises(UserError, match=r"no reply within 0\.2 seconds, after 1 attempt;"):
        ServerGenerator(settings, "policy").repeats()


def test_nobody_there_is_an_error_of_one_line(tiny_models: dict[str, str], server: CompletionsServer) -> None:
    settings = config(server)
    settings = replace(settings, server=replace(settings.server, base_url="http://127.0.0.1:9/v1", max_retries=1))
    with pytest.raises(UserError, match=r"^127\.0\.0\.1:9: no connection \(.*refused\), after 2 attempts"):
        ServerGenerator(settings, "policy")


def test_the_address_may_stand_in_the_environment_and_the_key_stays_there(
    server: CompletionsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(server)
    settings = replace(settings, server=replace(settings.server, base_url=None))
    with pytest.raises(UserError, match=r"sampling\.server\.base_url: missing; set it, or SHFCAS_SERVER_URL"):
        ServerGenerator(settings, "policy")
    monkeypatch.setenv("SHFCAS_SERVER_URL", server.url)
    monkeypatch.setenv("VLLM_API_KEY", "a-secret-key")
    generator = ServerGenerator(settings, "policy")
    server.trouble = lambda request, number: Fault(400, '{"error": {"message": "bad a-secret-key"}}')
    with pytest.raises(UserError, match=r"refuses the request \(400: bad \*\*\*\)"):
        generator.repeats()
    assert server.keys == ["Bearer a-secret-key"]


def test_a_server_of_another_name_or_tokenizer_is_refused(
    server: CompletionsServer, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    settings = config(server)
    with pytest.raises(UserError, match=r"serves policy, not .*or set sampling\.server\.model to its name there"):
        ServerGenerator(replace(settings, server=replace(settings.server, model=None)), tiny_models["policy"])
    server.tokenizer = tiny.reward_tokenizer()
    with pytest.raises(UserError, match=r"splits text into other tokens .*policy there is another model"):
        sample_policy(tiny_models["policy"], tiny.prompts(2), config=settings, seed=0, work_dir=tmp_path)


def test_a_server_with_other_weights_is_refused(tiny_models: dict[str, str], tmp_path: Path) -> None:
    with CompletionsServer(tiny_models["reference"]) as server:  # the same tokenizer
        with pytest.raises(UserError, match=r"differ by [\d.]+ per token from those of.*it has a different model"):
            sample_policy(tiny_models["policy"], tiny.prompts(2), config=config(server), seed=0, work_dir=tmp_path)
        assert not list(tmp_path.glob("shard-*"))
        settings = config(server, max_logprob_gap=None)
        table = sample_policy(tiny_models["policy"], tiny.prompts(2), config=settings, seed=0, work_dir=tmp_path)
    assert table.metadata["generation"]["logprob_difference"] > 0.1
    for row in table.rows():  # but the column is the policy's
        assert row["engine_logprobs"] != pytest.approx(row["logprobs"], abs=0.1)


@pytest.mark.parametrize("shift", [0.04, 0.06])
def test_the_allowed_gap_is_a_mean_over_tokens(
    shift: float, server: CompletionsServer, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    server.logprob_shift = shift
    if shift < 0.05:
        table = sample_policy(tiny_models["policy"], tiny.prompts(2), config=config(server), seed=0, work_dir=tmp_path)
        mean = sum(map(sum, table.column("num_tokens"))) / 6
        assert table.metadata["generation"]["logprob_difference"] == pytest.approx(shift * mean, rel=1e-3)
    else:
        with pytest.raises(UserError, match=r"differ by 0\.06 per token from .*, more than .*max_logprob_gap=0\.05"):
            sample_policy(tiny_models["policy"], tiny.prompts(2), config=config(server), seed=0, work_dir=tmp_path)


def test_a_context_that_is_too_short_is_said(
    server: CompletionsServer, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    server.longest = 3
    with pytest.raises(UserError, match=r"prompt 'p\d' was truncated after 3 of 60 tokens: .*--max-model-len"):
        sample_policy(
            tiny_models["policy"], tiny.prompts(3), config=config(server, max_new_tokens=60), seed=0, work_dir=tmp_path
        )


def test_stop_tokens_of_the_servers_own_are_refused(tiny_models: dict[str, str]) -> None:
    model, tokenizer = load_policy(tiny_models["policy"])

    class Other:
        def __call__(self, requests: Any) -> Iterator[list[Answer]]:
            yield from ([Answer(True, tokens)] for _ in requests)

        def close(self) -> None: ...

    sampler = RescoredSampler(
        model, tokenizer, generator=Other(), config=SamplingConfig(num_completions=1, max_new_tokens=4)
    )
    tokens = [50, 51]
    with pytest.raises(UserError, match=r"'p0' ended with token 51, which is not an end token of the policy \(0\)"):
        list(sampler(tiny.prompts(1)))
    tokens = [50, 9999]
    with pytest.raises(UserError, match="tokens outside the policy's vocabulary"):
        list(sampler(tiny.prompts(1)))
    tokens = [50, 0, 51, 0]  # what follows the end is no part of the answer
    (row,) = sampler(tiny.prompts(1))
    assert row["num_tokens"] == [2] and row["finished"] == [True]


def test_a_table_has_one_generator(server: CompletionsServer, tiny_models: dict[str, str], tmp_path: Path) -> None:
    settings = config(server, num_completions=1, max_new_tokens=2, shard_size=1)
    here = replace(settings, generator="transformers")
    whole = sample_policy(tiny_models["policy"], tiny.prompts(2), config=here, seed=0, work_dir=tmp_path)
    assert whole.metadata["generator"] == {"name": "transformers"} and "generation" not in whole.metadata
    message = r"expected shards sampled by openai vllm 0\.0\.test, got transformers; a table has one generator"
    with pytest.raises(UserError, match=message):
        sample_policy(tiny_models["policy"], tiny.prompts(2), config=settings, seed=0, work_dir=tmp_path)
    assert (
        sample_policy(tiny_models["policy"], tiny.prompts(2), config=here, seed=0, work_dir=tmp_path).rows()
        == whole.rows()
    )
    sample_policy(tiny_models["policy"], tiny.prompts(2), config=settings, seed=0, work_dir=tmp_path / "served")
    server.version = "0.1"
    with pytest.raises(UserError, match=r"expected shards sampled by openai vllm 0\.1, got openai vllm 0\.0\.test"):
        sample_policy(tiny_models["policy"], tiny.prompts(2), config=settings, seed=0, work_dir=tmp_path / "served")


def test_the_address_may_change_while_a_table_is_made(tiny_models: dict[str, str], tmp_path: Path) -> None:
    with CompletionsServer(tiny_models["policy"]) as server:
        first = sample_policy(tiny_models["policy"], tiny.prompts(2), config=config(server), seed=0, work_dir=tmp_path)
    with CompletionsServer(tiny_models["policy"]) as server:
        assert (
            sample_policy(
                tiny_models["policy"], tiny.prompts(2), config=config(server), seed=0, work_dir=tmp_path
            ).rows()
            == first.rows()
        )
        assert len(server.requests) == 2  # the probes; nothing is left to draw, so nothing is loaded


def test_the_command_samples_at_a_server(
    server: CompletionsServer, tiny_models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    prompts = tiny.write_lines(tmp_path / "prompts.jsonl", tiny.prompts(2))
    output = tmp_path / "candidates.parquet"
    flags = ["--sampling.generator", "openai", "--sampling.server.base_url", server.url]
    flags += ["--sampling.server.model", "policy", "--sampling.num_completions", "2", "--sampling.max_new_tokens", "4"]
    sample = ["sample", "--policy", tiny_models["policy"], "--prompts", prompts, "--output", str(output), "--json"]
    assert main([*sample, *flags]) == 0
    assert json.loads(capsys.readouterr().out)["answers"] == 4
    table = read_candidates(output)
    assert str(pq.read_schema(output).field("engine_logprobs").type) == "list<element: double>"
    assert table.metadata["generation"]["model"] == "policy"
    assert describe_generation(table).startswith("openai vllm 0.0.test sampled 4 answers")


def test_the_report_says_how_far_the_two_lie_apart(
    server: CompletionsServer, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    from shfcas import report  # plots need matplotlib, which vLLM's environment lacks

    server.logprob_shift = 0.01
    table = sample_policy(
        tiny_models["policy"],
        tiny.prompts(2),
        config=config(server, max_new_tokens=1),
        seed=0,
        work_dir=tmp_path / "work",
    )
    scored = add_conflicts(table.with_columns(rewards=[[1.0, 0.0, 2.0], [0.5, 1.0, 0.0]]))
    write_candidates(tmp_path / "round-1" / "conflicts.parquet", scored)
    tiny.write_lines(tmp_path / "round-1" / "queue.jsonl", [{"prompt_id": "p0", "first": 0, "second": 1}])
    generation = report._selection(tmp_path, "round-1/queue.jsonl")["generation"]
    assert (
        "sampled 6 answers, transformers scored them; their log-probabilities differ by 0.01 per answer" in generation
    )


def test_vllm_that_is_not_installed_is_said(tiny_models: dict[str, str], tmp_path: Path) -> None:
    try:
        import vllm  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(MissingExtra, match=r"vllm is not installed; .*shfcas\[vllm\]"):
            sample_policy(
                tiny_models["policy"],
                tiny.prompts(1),
                config=SamplingConfig(generator="vllm"),
                seed=0,
                work_dir=tmp_path,
            )


def test_vllms_own_types_fit(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    tokenizer = tiny.policy_tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(  # as tiny as vLLM's kernels take it
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.1,
        )
    )
    save_model(tmp_path / "policy", model, tokenizer)
    settings = SamplingConfig(num_completions=8, temperature=1.5, max_new_tokens=90, generator="vllm")
    table = sample_policy(
        str(tmp_path / "policy"), tiny.prompts(4), config=settings, seed=1, work_dir=tmp_path / "work"
    )
    assert table.metadata["generator"]["name"] == "vllm"
    assert table.metadata["generation"]["logprob_difference"] < 0.1
    assert {finished for row in table.column("finished") for finished in row} == {True, False}
    for row in table.rows():
        assert all((n == 90) or done for n, done in zip(row["num_tokens"], row["finished"], strict=True))


@pytest.mark.parametrize(
    "bad",
    [
        lambda: ServerConfig(base_url="localhost:8000"),
        lambda: ServerConfig(answers_per_request=0),
        lambda: ServerConfig(timeout=0),
        lambda: VLLMConfig(gpu_memory_utilization=1.2),
        lambda: VLLMConfig(tensor_parallel_size=0),
    ],
)
def test_impossible_settings_are_refused(bad: Any) -> None:
    with pytest.raises(UserError):
        bad()
