"""How a language model is asked to judge: which one, where, what for, and when to give up."""

from dataclasses import dataclass

from shfcas.utils.config import option
from shfcas.utils.errors import UsageError
from shfcas.utils.http import check_base_url


@dataclass
class JudgeConfig:
    """A language model that judges, at any endpoint of OpenAI's chat protocol; its key is read from OPENAI_API_KEY."""

    model: str = option("", "the judge's name at the endpoint", common=True)
    base_url: str | None = option(
        None, "the endpoint, such as http://localhost:8000/v1 (none: OPENAI_BASE_URL, or OpenAI's own)", common=True
    )
    criterion: str = option(
        "the answer that serves the person who wrote the conversation better: helpful, correct and harmless",
        "what makes an answer better, in a few words",
        common=True,
    )
    guidelines: str | None = option(None, "a text file with rules for the judge, such as those that people are shown")
    temperature: float | None = option(0.0, "temperature (none: not sent, for models that refuse it)")
    max_tokens: int = option(512, "limit of a reply; a reply that reaches it gives no verdict")
    max_tokens_name: str = option(
        "max_tokens", "what the endpoint calls that limit", ("max_tokens", "max_completion_tokens")
    )
    response_format: str = option(
        "text", "ask the endpoint to allow nothing but JSON", ("text", "json_object", "json_schema")
    )
    system_message: bool = option(
        True, "send the instructions as a system message (false: before the rest, for models without that role)"
    )
    concurrency: int = option(4, "requests at a time", volatile=True)
    timeout: float = option(60.0, "seconds to wait for the endpoint", volatile=True)
    max_retries: int = option(
        5, "attempts after a failed request (busy, broken, no reply) before it is given up", volatile=True
    )
    retry_wait: float = option(
        1.0, "seconds before the first of those; doubled each time, unless the endpoint names a time", volatile=True
    )
    max_failed_share: float = option(
        0.2, "stop when more than this share of the comparisons got no verdict, for whatever reason", volatile=True
    )
    price_per_million_input: float | None = option(None, "price of a million tokens sent", volatile=True)
    price_per_million_output: float | None = option(None, "price of a million tokens received", volatile=True)
    cache: str | None = option(
        None, "a file that keeps every verdict for later runs (none: one in the run directory)", volatile=True
    )

    def __post_init__(self) -> None:
        if self.base_url is not None:
            check_base_url(self.base_url, "base_url")
        if not self.criterion.strip():
            raise UsageError("criterion: expected a few words about what makes an answer better")
        for name, least in (("max_tokens", 1), ("concurrency", 1), ("max_retries", 0), ("retry_wait", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if self.timeout <= 0:
            raise UsageError(f"timeout: expected more than 0 seconds, got {self.timeout}")
        if not 0 <= self.max_failed_share <= 1:
            raise UsageError(f"max_failed_share: expected a share from 0 to 1, got {self.max_failed_share}")
        for name in ("temperature", "price_per_million_input", "price_per_million_output"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UsageError(f"{name}: expected at least 0, or none, got {value}")
        if (self.price_per_million_input is None) != (self.price_per_million_output is None):
            raise UsageError("price_per_million_input, price_per_million_output: give both, or none of them")

    def check(self) -> "JudgeConfig":
        """Says what is missing before any work is done."""
        if not self.model:
            raise UsageError("missing: judge.model, the judge's name at the endpoint")
        return self
