"""Configuration of a language model that judges: endpoint, instructions, limits."""

from dataclasses import dataclass

from shfcas.utils.config import Options, option, unexpected
from shfcas.utils.http import check_base_url


@dataclass
class JudgeConfig(Options):
    """A language model that judges, at any endpoint of OpenAI's chat protocol; its key is read from OPENAI_API_KEY."""

    model: str = option("", "name of the judge at the endpoint", common=True)
    base_url: str | None = option(
        None,
        "address of the endpoint, such as http://localhost:8000/v1 (none: OPENAI_BASE_URL, or OpenAI)",
        common=True,
    )
    criterion: str = option(
        "the answer that serves the person who wrote the conversation better: helpful, correct and harmless",
        "what makes an answer better, in a few words",
        common=True,
    )
    guidelines: str | None = option(None, "text file with rules for the judge (none: no rules)")
    temperature: float | None = option(
        0.0, "sampling temperature of the judge (none: not sent, for models that refuse it)", ge=0
    )
    max_tokens: int = option(512, "maximum tokens per reply; a reply that reaches it gives no verdict", ge=1)
    max_tokens_name: str = option(
        "max_tokens", "the endpoint's name for max_tokens", ("max_tokens", "max_completion_tokens")
    )
    response_format: str = option(
        "auto",
        "form of reply to ask for: any text, any JSON object, or JSON of our schema (auto: the strictest that the "
        "endpoint takes)",
        ("auto", "text", "json_object", "json_schema"),
    )
    system_message: bool = option(
        True, "send the instructions as a system message (false: before the rest, for models without that role)"
    )
    concurrency: int = option(4, "maximum requests at the same time", volatile=True, ge=1)
    timeout: float = option(60.0, "seconds to wait for a reply", volatile=True, gt=0)
    max_retries: int = option(
        5, "maximum retries of a failed request (endpoint busy, broken or silent)", volatile=True, ge=0
    )
    retry_wait: float = option(
        1.0, "seconds before the first retry; doubled each time, unless the endpoint names a time", volatile=True, ge=0
    )
    max_failed_share: float = option(
        0.2,
        "maximum share of comparisons without a verdict, for any reason; a larger one is an error",
        volatile=True,
        ge=0,
        le=1,
    )
    price_per_million_input: float | None = option(
        None, "price of a million tokens sent (none: costs are not reported)", volatile=True, ge=0
    )
    price_per_million_output: float | None = option(
        None, "price of a million tokens received (none: costs are not reported)", volatile=True, ge=0
    )
    cache: str | None = option(
        None, "file that keeps every verdict for later runs (none: one in the run directory)", volatile=True
    )

    def check(self) -> None:
        """Checks the address, the criterion and the prices."""
        if self.base_url is not None:
            check_base_url(self.base_url, "base_url")
        if not self.criterion.strip():
            raise unexpected("criterion", "a few words about what makes an answer better", self.criterion)
        prices = self.price_per_million_input, self.price_per_million_output
        if None in prices and prices != (None, None):
            raise unexpected("price_per_million_input", "both prices or neither", prices)
