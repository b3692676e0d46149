"""Sources of verdicts in a run: the gold reward, people, or a language model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from shfcas.feedback import FeedbackSource
from shfcas.feedback.gold import GoldFeedback
from shfcas.feedback.human import HumanFeedback
from shfcas.feedback.judge.source import JudgeFeedback
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.content import Source, data_source, scorer_source
from shfcas.rewards.scorers import RewardScorer
from shfcas.utils.config import lasting


class Verdicts:
    """The sources of verdicts that a configuration names, and what a stage that asks them depends on.

    Args:
        config: the configuration of the run.
        run: path of the run directory.
        gold: loads the gold reward.

    Raises:
        UserError: the language model's settings are incomplete, or its API key is missing.
    """

    def __init__(self, config: RunConfig, run: Path, gold: Callable[[], RewardScorer]) -> None:
        self.config, self.run, self.gold = config, run, gold
        # Made here to fail early if the API key is missing. All rounds share its replies.
        asked = "judge" in (config.feedback, config.evaluation.judge)
        self.judge = JudgeFeedback(config.judge, run / "judge.jsonl") if asked else None

    def source(self, name: str, queue: str, seed: int) -> FeedbackSource:
        """Returns the source called `gold`, `human` or `judge`; see `ask`."""
        return GoldFeedback(self.gold(), str(self.config.gold)) if name == "gold" else self.ask(name, queue, seed)

    def ask(self, name: str, queue: str, seed: int) -> HumanFeedback | JudgeFeedback:
        """Returns a source that can be asked for ties too.

        Args:
            name: `human` or `judge`.
            queue: the queue in which people are asked, such as `round-1`.
            seed: seed of the order in which answers are shown.
        """
        if name == "judge" and self.judge:
            return self.judge
        settings, finish = self.config.human, self.config.finish_with_what_we_have
        return HumanFeedback(self.run, queue, settings=settings, seed=seed, finish=finish)

    def reads(self, name: str) -> dict[str, Source]:
        """Returns what a source reads besides the comparisons."""
        config = self.config
        if name == "gold" and config.gold:
            return {"gold": scorer_source(config.gold)}
        if name == "judge" and config.judge.guidelines:
            return {"guidelines": data_source(config.judge.guidelines)}
        return {}

    def settings(self, name: str) -> dict[str, Any]:
        """Returns the part of the configuration that a source uses."""
        judge = lasting(self.config.judge)
        del judge["guidelines"]  # their content is an input
        section = {"human": lasting(self.config.human), "judge": judge}.get(name)
        return {} if section is None else {name: section, "seed": self.config.seed}
