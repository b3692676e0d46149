"""How completions are sampled: parameters, the completions server, vLLM."""

from dataclasses import dataclass

from shfcas.utils.config import option
from shfcas.utils.errors import UserError

GENERATORS = ("transformers", "vllm", "openai")


@dataclass
class ServerConfig:
    """A server of OpenAI's completions protocol, such as `vllm serve`; its key, if any, is read from VLLM_API_KEY."""

    base_url: str | None = option(
        None, "its address, such as http://localhost:8000/v1 (none: SHFCAS_SERVER_URL)", volatile=True
    )
    model: str | None = option(None, "the policy's name there (none: as it is called here)", volatile=True)
    prompts: str = option(
        "tokens", "send prompts as token ids, or as rendered text to a server that takes no ids", ("tokens", "text")
    )
    answers_per_request: int = option(
        1, "answers asked for at once; each request has one seed, so that with 1 each answer has its own"
    )
    concurrency: int = option(32, "requests at a time", volatile=True)
    timeout: float = option(600.0, "seconds to wait for a reply", volatile=True)
    max_retries: int = option(6, "further attempts after a failed request (busy, broken, no reply)", volatile=True)
    retry_wait: float = option(
        1.0, "seconds before the first of those; doubled each time, unless the server names a time", volatile=True
    )

    def __post_init__(self) -> None:
        if self.base_url is not None:
            from shfcas.utils.http import check_base_url

            check_base_url(self.base_url, "server.base_url")
        for name, least in (("answers_per_request", 1), ("concurrency", 1), ("max_retries", 0), ("retry_wait", 0)):
            if getattr(self, name) < least:
                raise UserError(f"server.{name}: expected at least {least}, got {getattr(self, name)}")
        if self.timeout <= 0:
            raise UserError(f"server.timeout: expected more than 0 seconds, got {self.timeout}")


@dataclass
class VLLMConfig:
    """vLLM in this process; the policy is loaded a second time, by transformers, to score what vLLM draws."""

    gpu_memory_utilization: float = option(0.5, "vLLM's share of the GPU; the rest is for scoring", volatile=True)
    tensor_parallel_size: int = option(1, "GPUs that share the model", volatile=True)
    max_model_len: int | None = option(None, "tokens of prompt and answer together (none: what the model can see)")

    def __post_init__(self) -> None:
        if not 0 < self.gpu_memory_utilization <= 1 or self.tensor_parallel_size < 1:
            raise UserError("vllm: expected 0 < gpu_memory_utilization <= 1, tensor_parallel_size >= 1")


@dataclass
class SamplingConfig:
    """How answers are drawn; the defaults are the authors'."""

    num_completions: int = option(8, "answers per prompt (N)", common=True)
    temperature: float = option(0.7, "sampling temperature; log-probabilities are always at temperature 1")
    top_p: float = option(1.0, "nucleus sampling; 1 keeps every token")
    top_k: int = option(0, "keep the k most likely tokens; 0 keeps every token")
    max_new_tokens: int = option(128, "an answer ends here if it has not ended by itself", common=True)
    batch_size: int = option(64, "sequences generated at once")
    shard_size: int = option(64, "prompts per resumable shard")
    generator: str = option(
        "transformers", "who draws: transformers, vLLM in this process, or a completions server", GENERATORS
    )
    max_logprob_gap: float | None = option(
        0.05, "refuse a generator whose log-probabilities lie further from the policy's, a token (none: never)"
    )
    server: ServerConfig = option(ServerConfig, "generator openai: the server")
    vllm: VLLMConfig = option(VLLMConfig, "generator vllm")

    def __post_init__(self) -> None:
        for name in ("num_completions", "max_new_tokens", "batch_size", "shard_size"):
            if getattr(self, name) < 1:
                raise UserError(f"sampling.{name}: expected at least 1, got {getattr(self, name)}")
        if self.temperature <= 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise UserError("sampling: expected temperature > 0, 0 < top_p <= 1, top_k >= 0")
