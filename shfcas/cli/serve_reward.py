"""Serve rewards over HTTP to verl, OpenRLHF, slime, TRL or any other client, until Ctrl-C.

Several models are an ensemble: the reward is their mean, minus --pessimism standard deviations. With --weights, they
are a mixture. The reward of an answer never depends on other requests. Set SHFCAS_REWARD_TOKEN to require a token.
"""

import threading
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from shfcas.data.candidates import read_candidates
from shfcas.rewards.scorers import TOO_LONG
from shfcas.rewards.shaping import SHAPINGS
from shfcas.utils.config import Options, option
from shfcas.utils.errors import MissingExtra, UsageError

INPUTS, INPUTS_HELP = "model", "reward models, folders of ensembles, or module:function"
PACKAGES = ("fastapi", "uvicorn")


@dataclass
class Config(Options):
    """`shfcas serve-reward`."""

    model: list[str] = option(list, "reward models, folders of ensembles, or module:function")
    weights: list[float] = option(list, "weight of each model in a mixture, comma-separated (none: an ensemble)")
    pessimism: float = option(
        0.0, "ensemble: standard deviations to subtract from the mean, for a lower bound", ge=0, common=True
    )
    cost_model: bool = option(False, "the models are cost models: lower is better", common=True)
    too_long: str = option(
        "cut",
        "an answer that exceeds the reward model's limit with its prompt: cut the beginning of the prompt, or error",
        tuple(name for name in TOO_LONG if name != "floor"),  # the lowest of the others depends on the others
    )
    reward_shaping: str = option(
        "none",
        "subtract the mean reward of reference answers (centre), or take the probability to beat one of them (par)",
        ("none", *SHAPINGS),
        common=True,
    )
    references: str | None = option(
        None, "reward_shaping: candidate table with reference answers to all training prompts", common=True
    )
    policy: str | None = option(
        None,
        "policy that is trained, for OpenRLHF and slime: its special tokens are not part of an answer",
        common=True,
    )
    batch_size: int = option(
        1, "answers per forward pass; 1 pads nothing, more are faster on a GPU with short answers", ge=1
    )
    host: str = option("127.0.0.1", "address to listen on; others need SHFCAS_REWARD_TOKEN")
    port: int = option(8901, "port, 0 for any free one", ge=0, le=65535)
    log: str | None = option(None, "file to add a JSON line per reward to, with all texts; for shfcas monitor")
    most_waiting: int = option(8192, "answers that may wait before requests are refused with 503", ge=1)
    most_megabytes: int = option(16, "largest body of a request", ge=1)


def run(config: Config) -> None:
    """Serves until it is interrupted."""
    if not config.model:
        raise UsageError("model: expected at least one reward model, got none; name them behind the command")
    for package in PACKAGES:
        if find_spec(package) is None:
            raise MissingExtra(package, "serve")
    from shfcas.serve.app import Limits, RewardApp
    from shfcas.serve.dialects import PolicyText, dialects
    from shfcas.serve.log import RewardLog
    from shfcas.serve.reward import ServedReward
    from shfcas.serve.server import serve, token_for
    from shfcas.utils.listening import listen

    token = token_for(config.host)
    with listen(config.host, config.port) as listener:
        references: list[dict[str, Any]] = read_candidates(config.references).rows() if config.references else []
        spoken = dialects(PolicyText(config.policy) if config.policy else None)
        reward = ServedReward(
            config.model,
            weights=config.weights,
            pessimism=config.pessimism,
            cost_model=config.cost_model,
            too_long=config.too_long,
            batch_size=config.batch_size,
            shaping=config.reward_shaping,
            references=references,
        )
        log = RewardLog(config.log) if config.log else None
        app = RewardApp(
            reward, spoken, token=token, limits=Limits(config.most_megabytes << 20, config.most_waiting), log=log
        )
        with serve(app, listener) as address:
            paths = ", ".join(dialect.path for dialect in spoken)
            print(f"serving {', '.join(config.model)} at {address} ({paths}); stop with Ctrl-C", flush=True)
            threading.Event().wait()
