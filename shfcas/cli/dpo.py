"""Fine-tune a policy on preferences, without a reward model (DPO through TRL)."""

from dataclasses import dataclass
from typing import Any

from shfcas.cli._rl import settings_of
from shfcas.data.candidates import read_candidates
from shfcas.data.formats import PairColumns
from shfcas.data.preferences import read_preferences
from shfcas.training.dpo import REWARD, DPOConfig, train_dpo
from shfcas.training.output import trained_folder
from shfcas.utils.config import option, unexpected
from shfcas.utils.files import write_json


@dataclass
class Config(DPOConfig, PairColumns):
    """`shfcas dpo`."""

    policy: str = option("", "policy to start from", common=True)
    preferences: list[str] = option(
        list, "preferences: files, org/name on the Hub, or module:function, comma-separated", common=True
    )
    candidates: str | None = option(
        None, "candidate table of the answers, whose sampled tokens are then learned (none: their texts)"
    )
    kl_reference: str | None = option(None, "model that the log-ratios refer to (none: the policy to start from)")
    chat_template: str | None = option(
        None, "chat template for a policy without one: plain, or a Jinja file (none: the policy's own)"
    )
    output: str = option("policy", "folder of the new policy", common=True)
    seed: int = option(0, "seed of everything random", common=True)

    def check(self) -> None:
        """Checks that the pairs are given ones."""
        super().check()
        if self.pairs == REWARD:
            raise unexpected("pairs", "labels or all", self.pairs, "in a run, or with shfcas rso, a reward makes pairs")


def run(config: Config) -> dict[str, Any]:
    """Trains and saves the policy."""
    preferences = [pair for name in config.preferences for pair in read_preferences(name, config.columns())]
    candidates = read_candidates(config.candidates).rows() if config.candidates else []
    with trained_folder(config.output) as (partial, work_dir):
        history = train_dpo(
            config.policy,
            preferences,
            candidates=candidates,
            settings=settings_of(config, DPOConfig),
            output=partial,
            work_dir=work_dir,
            seed=config.seed,
            chat_template=config.chat_template,
            reference=config.kl_reference,
        )
        write_json(partial / "history.json", history)
    last = {name: value for name, value in history[-1].items() if name.startswith("rewards/") or name == "loss"}
    return {"pairs": history[0]["dpo/pairs"], **last, "output": config.output}
