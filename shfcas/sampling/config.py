"""Configuration of sampling: parameters, the completions server, vLLM."""

from dataclasses import dataclass

from shfcas.utils.config import Options, option
from shfcas.utils.http import check_base_url

GENERATORS = ("transformers", "vllm", "openai")


@dataclass
class ServerConfig(Options):
    """A server of OpenAI's completions protocol, such as `vllm serve`; its key, if any, is read from VLLM_API_KEY."""

    base_url: str | None = option(
        None, "address of the server, such as http://localhost:8000/v1 (none: SHFCAS_SERVER_URL)", volatile=True
    )
    model: str | None = option(None, "name of the policy at the server (none: its name here)", volatile=True)
    prompts: str = option(
        "tokens", "send prompts as token ids, or as rendered text to a server that takes no ids", ("tokens", "text")
    )
    answers_per_request: int = option(
        1, "answers per request; each request has one seed, so with 1 each answer has its own", ge=1
    )
    concurrency: int = option(32, "maximum requests at the same time", volatile=True, ge=1)
    timeout: float = option(600.0, "seconds to wait for a reply", volatile=True, gt=0)
    max_retries: int = option(
        6, "maximum retries of a failed request (server busy, broken or silent)", volatile=True, ge=0
    )
    retry_wait: float = option(
        1.0, "seconds before the first retry; doubled each time, unless the server names a time", volatile=True, ge=0
    )

    def check(self) -> None:
        """Checks the server's address."""
        if self.base_url is not None:
            check_base_url(self.base_url, "base_url")


@dataclass
class VLLMConfig(Options):
    """vLLM in this process; transformers loads the policy a second time, to score what vLLM samples."""

    gpu_memory_utilization: float = option(
        0.5, "share of the GPU's memory for vLLM; the rest is for scoring", volatile=True, gt=0, le=1
    )
    tensor_parallel_size: int = option(1, "GPUs that share the model", volatile=True, ge=1)
    max_model_len: int | None = option(
        None, "maximum tokens of prompt and answer together (none: the model's context)", ge=1
    )


@dataclass
class SamplingConfig(Options):
    """Sampling of answers; the defaults are those of the authors of SHF-CAS."""

    num_completions: int = option(8, "answers per prompt (N)", ge=1, common=True)
    temperature: float = option(
        0.7,
        "sampling temperature; log-probabilities are at temperature 1",
        gt=0,
        remedy="for greedy answers set top_k to 1",
    )
    top_p: float = option(
        1.0, "nucleus sampling: keep the most likely tokens of this total probability (1: all)", gt=0, le=1
    )
    top_k: int = option(0, "keep this many of the most likely tokens (0: all)", ge=0)
    max_new_tokens: int = option(128, "maximum new tokens per answer", ge=1, common=True)
    batch_size: int = option(64, "sequences generated at the same time", ge=1)
    shard_size: int = option(64, "prompts per shard; sampling resumes after the last complete shard", ge=1)
    float32_head: bool = option(
        False, "compute logits in float32 where the policy is bfloat16: slower, log-probabilities are more precise"
    )
    generator: str = option(
        "transformers", "what samples: transformers, vLLM in this process, or a completions server", GENERATORS
    )
    max_logprob_gap: float | None = option(
        0.05,
        "maximum mean gap per token between log-probabilities of the generator and of the policy; "
        "a larger one is an error (none: no limit)",
        ge=0,
    )
    server: ServerConfig = option(ServerConfig, "generator openai: the server")
    vllm: VLLMConfig = option(VLLMConfig, "generator vllm")
